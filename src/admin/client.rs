//! The client of the admin socket, which the commands use.

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

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum AdminError {
    #[error(
        "{socket}: no relay is listening there ({source}); start it, or name its socket with \
         --socket"
    )]
    NotRunning { socket: String, source: io::Error },
    #[error(
        "{socket}: a relay is running, but its socket was deleted and nothing can connect; restart \
         the relay"
    )]
    Deleted { socket: String },
    #[error("{socket}: permission denied; run this as root, or as a member of the socket's group")]
    Denied { socket: String },
    #[error("{socket}: {source}")]
    Socket { socket: String, source: io::Error },
    #[error("the relay does not answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("the relay sent an answer that this program does not understand: {0}")]
    Answer(String),
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Refused(String),
}

/// A connection to a relay.
pub enum Connection {
    /// The socket of a running relay, and the task of the last request's connection. Each request
    /// opens a connection, because the relay closes idle ones.
    Socket(PathBuf, Option<AbortOnDropHandle<()>>),
    /// A connection to a process that only serves this client, and the connection's task.
    Stream(http1::SendRequest<Body>, AbortOnDropHandle<()>),
}

impl Connection {
    /// Requests go to the relay that listens on `socket`.
    pub fn at(socket: PathBuf) -> Self {
        Self::Socket(socket, None)
    }

    /// Uses an open stream.
    ///
    /// # Errors
    /// The other end is closed.
    pub async fn over(stream: UnixStream) -> Result<Self, AdminError> {
        let (sender, task) = open(stream).await?;
        Ok(Self::Stream(sender, task))
    }

    /// Sends a request, and returns the answer whatever its status is. The answer has to be read
    /// before the next request.
    ///
    /// # Errors
    /// The relay does not run, permission is denied, or the connection fails.
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

    /// Sends a request and returns the whole answer.
    ///
    /// # Errors
    /// As for [`Self::send`], and if the relay refuses the request.
    pub async fn fetch(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, AdminError> {
        let answer = check_status(self.send(method, path, body).await?).await?;
        Ok(answer.into_body().collect().await?.to_bytes())
    }

    /// Calls `each` for every line of an answer.
    ///
    /// # Errors
    /// As for [`Self::fetch`].
    pub async fn lines<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        mut each: impl FnMut(T),
    ) -> Result<(), AdminError> {
        let mut body =
            check_status(self.send(method, path, Bytes::new()).await?).await?.into_body();
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

/// Converts an answer that refuses the request into an error.
async fn check_status(answer: Response<Incoming>) -> Result<Response<Incoming>, AdminError> {
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

/// Parses an answer.
///
/// # Errors
/// It is not JSON, or of another type.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(json).map_err(|error| AdminError::Answer(error.to_string()))
}

/// The sender of requests, and the connection's task.
type Http = (http1::SendRequest<Body>, AbortOnDropHandle<()>);

async fn connect(socket: &Path) -> Result<Http, AdminError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        let socket = socket.display().to_string();
        match source.kind() {
            io::ErrorKind::NotFound if is_bound(&socket) => AdminError::Deleted { socket },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                AdminError::NotRunning { socket, source }
            }
            io::ErrorKind::PermissionDenied => AdminError::Denied { socket },
            _ => AdminError::Socket { socket, source },
        }
    })?;
    open(stream).await
}

/// Whether a process has a socket of this name, even if its file was deleted (`proc(5)`,
/// `/proc/net/unix`).
#[expect(clippy::disallowed_methods, reason = "runs in a command, and /proc is in memory")]
fn is_bound(socket: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.strip_suffix(socket).is_some_and(|rest| rest.ends_with(' ')))
}

async fn open(stream: UnixStream) -> Result<Http, AdminError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Errors of the connection are also errors of the requests.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, AbortOnDropHandle::new(task)))
}
