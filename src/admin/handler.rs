//! Helpers of the admin socket's handlers.

use std::io;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::mpsc;

use super::error::HandlerError;

/// Lines that are queued to be sent. When the queue is full, the producer blocks.
const QUEUED_LINES: usize = 64;

/// Runs `work` on a thread that may block, and answers with a line of JSON for each value that it
/// emits. The callback returns false when the client has gone.
pub(super) fn json_lines<T: Serialize + Send + 'static>(
    work: impl FnOnce(&mut dyn FnMut(T) -> bool) + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel::<String>(QUEUED_LINES);
    tokio::task::spawn_blocking(move || {
        work(&mut |line| {
            let mut text = serde_json::to_string(&line).unwrap_or_default();
            text.push('\n');
            sender.blocking_send(text).is_ok()
        });
    });
    let lines = futures::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|line| (Ok::<_, io::Error>(line), receiver))
    });
    Body::from_stream(lines).into_response()
}

/// Runs `work` on a thread that may block.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HandlerError> + Send + 'static,
) -> Result<T, HandlerError> {
    tokio::task::spawn_blocking(work).await?
}
