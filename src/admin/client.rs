//! The other end of the admin socket: what the commands speak to the relay with.

use std::{
    io,
    path::{Path, PathBuf},
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::error::Problem;

/// Why a command has no answer.
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
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Refused(String),
}

/// The way to a relay.
pub enum Connection {
    /// A running one's socket, and the task of the last request's connection. Each request has a
    /// connection of its own: an idle one would be closed.
    Socket(PathBuf, Option<AbortOnDropHandle<()>>),
    /// One that serves this connection alone, and the connection's task.
    Stream(http1::SendRequest<Body>, AbortOnDropHandle<()>),
}

impl Connection {
    /// Requests go to the relay that listens on `socket`.
    pub fn at(socket: PathBuf) -> Self {
        Self::Socket(socket, None)
    }

    /// Speak over `stream`.
    ///
    /// # Errors
    /// Nobody is at its other end.
    pub async fn over(stream: UnixStream) -> Result<Self, AdminError> {
        let (sender, task) = open(stream).await?;
        Ok(Self::Stream(sender, task))
    }

    /// Send a request; the answer may be a refusal. It has to be read before the next request.
    ///
    /// # Errors
    /// The relay is not there, may not be asked, or does not answer.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, AdminError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "admin")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| AdminError::Answer(error.to_string()))?;
        match self {
            Self::Socket(socket, last) => {
                let (mut sender, task) = connect(socket).await?;
                *last = Some(task);
                Ok(sender.send_request(request).await?)
            }
            Self::Stream(sender, _) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }

    /// Send a request and take the whole answer.
    ///
    /// # Errors
    /// As for [`Self::send`], and the relay's refusal.
    pub async fn fetch(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, AdminError> {
        let answer = accepted(self.send(method, path, body).await?).await?;
        Ok(answer.into_body().collect().await?.to_bytes())
    }

    /// Call `each` for every line of an answer.
    ///
    /// # Errors
    /// As for [`Self::fetch`].
    pub async fn lines<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        mut each: impl FnMut(T),
    ) -> Result<(), AdminError> {
        let mut body = accepted(self.send(method, path, Bytes::new()).await?).await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                each(parse(&line)?);
            }
        }
        Ok(())
    }
}

/// An answer that is no refusal.
async fn accepted(answer: Response<Incoming>) -> Result<Response<Incoming>, AdminError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.into_body().collect().await?.to_bytes();
    let problem = parse(&body).map(|Problem { problem }| problem);
    let problem = problem.unwrap_or_else(|_| format!("the relay answers {status}"));
    Err(match status {
        StatusCode::NOT_FOUND => AdminError::Missing(problem),
        _ => AdminError::Refused(problem),
    })
}

/// Read an answer.
///
/// # Errors
/// It is none of that kind.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(json).map_err(|error| AdminError::Answer(error.to_string()))
}

/// The sender of requests, and the connection's task.
type Http = (http1::SendRequest<Body>, AbortOnDropHandle<()>);

async fn connect(socket: &Path) -> Result<Http, AdminError> {
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
    open(stream).await
}

async fn open(stream: UnixStream) -> Result<Http, AdminError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // What goes wrong is in the answer.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, AbortOnDropHandle::new(task)))
}
