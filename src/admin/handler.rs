//! What the admin socket's handlers share.

use std::io;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::mpsc;

use super::error::Failed;

/// Lines that wait to be sent; who makes them waits for their place.
const LINES: usize = 64;

/// Answer with a line of JSON for each thing that `work` tells, on a thread that may block.
pub(super) fn lines<T: Serialize + Send + 'static>(
    work: impl FnOnce(&mut dyn FnMut(T) -> bool) + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel::<String>(LINES);
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

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await?
}
