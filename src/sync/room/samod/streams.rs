//! What passes between the repo and the sessions, and what of it the repo has not read.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::Sink;
use samod::{RepoEvent, RepoObserver};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::sync::{
    room::port::Port,
    wire::{Body, Message},
};

/// The longest a room waits for the repo to read more: samod does not report messages that it
/// refuses.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What the repo has not handled yet.
#[derive(Default)]
pub(super) struct UnderWay {
    /// Bytes of sync messages. samod does not report requests.
    pub(super) bytes: AtomicUsize,
    /// Streams of sessions that it has not read to their ends.
    pub(super) streams: AtomicUsize,
    less: Notify,
}

impl UnderWay {
    fn handled(&self, bytes: usize) {
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            Some(now.saturating_sub(bytes))
        });
        self.less.notify_waiters();
    }

    /// Waits until there are few enough streams and bytes, or nothing was handled for
    /// [`PATIENCE`].
    pub(super) async fn wait_for(&self, few: impl Fn(usize, usize) -> bool) {
        loop {
            let less = self.less.notified();
            if few(self.streams.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed)) {
                return;
            }
            if tokio::time::timeout(PATIENCE, less).await.is_err() {
                // Messages that samod refuses are never reported.
                self.bytes.store(0, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// A stream that the repo reads. It drops it at its end.
pub(super) struct Reading(pub(super) Arc<UnderWay>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.less.notify_waiters();
    }
}

/// Hears from the repo what it has read.
pub(super) struct Observer(pub(super) Arc<UnderWay>);

impl RepoObserver for Observer {
    fn observe(&self, event: &RepoEvent) {
        if let RepoEvent::SyncMessageReceived { bytes, .. } = event {
            self.0.handled(*bytes);
        }
    }
}

/// What the repo sends to one session.
pub(super) struct PortSink(pub(super) Port);

impl Sink<Vec<u8>> for PortSink {
    type Error = std::io::Error;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, frame: Vec<u8>) -> Result<(), Self::Error> {
        match Message::decode(&frame).map(|message| message.body) {
            Ok(Body::Sync { data, .. }) => self.0.sync(&data),
            // The room answers for documents that nobody has: only it knows who else was asked.
            Ok(Body::Peer | Body::DocUnavailable { .. }) => {}
            Ok(other) => {
                debug!(kind = other.name(), "the repo sent a message that no session needs")
            }
            Err(error) => warn!("the repo sent something that is not a message: {error}"),
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
}
