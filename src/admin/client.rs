//! The other end of the admin socket: what the live commands do.

use std::{io, path::Path};

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::{Method, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Why a live command has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum AdminError {
    #[error("{socket}: no relay runs there ({source}); start it, or name its socket with --socket")]
    NotRunning { socket: String, source: io::Error },
    #[error("{socket}: permission denied; run this as root, or as a member of the socket's group")]
    Denied { socket: String },
    #[error("{socket}: {source}")]
    Socket { socket: String, source: io::Error },
    #[error("the relay does not answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("the relay's answer is not understood: {0}")]
    Answer(String),
}

/// Ask the relay at `socket`.
///
/// # Errors
/// It is not there, may not be asked, or does not answer.
pub async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<T, AdminError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        let socket = socket.display().to_string();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                AdminError::NotRunning { socket, source }
            }
            io::ErrorKind::PermissionDenied => AdminError::Denied { socket },
            _ => AdminError::Socket { socket, source },
        }
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "admin")
        .body(Body::empty())
        .map_err(|error| AdminError::Answer(error.to_string()))?;
    let answer = async {
        let body = sender.send_request(request).await?.into_body().collect().await?;
        Ok::<_, AdminError>(body.to_bytes())
    };
    let body = tokio::select! {
        body = answer => body?,
        ended = connection => {
            ended?;
            return Err(AdminError::Answer("the connection ended".to_owned()));
        }
    };
    serde_json::from_slice(&body).map_err(|error| AdminError::Answer(error.to_string()))
}
