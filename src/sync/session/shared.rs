//! What all sessions share.

use std::{sync::Arc, time::Duration};

use prometheus::Histogram;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::handle::Session;
use crate::{
    auth::Auth,
    config::Config,
    limits::turns::Turns,
    observe::{
        log::Repeats,
        metrics::{Metrics, SessionMetrics},
    },
    storage::documents::Documents,
    sync::{
        close_reason::CloseReason, incoming::InFlightBudget, peers::Peers, rooms::Rooms,
        wire::Message,
    },
};

/// WebSockets that are told at a time why they are refused. Further ones are cut.
pub const REFUSED_AT_ONCE: usize = 200;
/// Permits for received bytes of the relay's own test of itself, in KiB.
const PROBE_PLACES: u32 = 64;
/// Larger messages may take longer than a millisecond to read: they may unpack to a thousand times
/// their size.
const READ_AT_ONCE: usize = 2 << 10;

/// What all sessions share, and the relay with them.
#[expect(missing_docs, reason = "the types say it")]
pub struct Sessions {
    pub config: watch::Receiver<Arc<Config>>,
    pub rooms: Arc<Rooms>,
    pub peers: Arc<Peers>,
    pub documents: Arc<Documents>,
    pub auth: Arc<Auth>,
    pub names: Names,
    pub receiving: Receiving,
    pub observed: Observed,
    /// Permits for telling a WebSocket why it is refused.
    pub refusing: Semaphore,
    /// Permits for long work.
    pub heavy: Arc<Turns>,
    /// Cancelled when no further session may open.
    pub draining: CancellationToken,
}

/// What clients know the relay by.
#[derive(Clone)]
pub struct Names {
    /// Its peer id.
    pub peer_id: Arc<str>,
    /// Its storage id.
    pub storage_id: Arc<str>,
}

/// What messages that were received may hold until they are handled.
pub struct Receiving {
    /// Permits for received bytes, in KiB.
    pub queue: Arc<Semaphore>,
    /// How many permits there are.
    pub places: u32,
    /// Memory of messages that are received in part.
    pub arriving: InFlightBudget,
}

impl Receiving {
    /// A receive queue of this many KiB.
    pub fn new(places: u32, metrics: &SessionMetrics) -> Self {
        Self {
            queue: Arc::new(Semaphore::new(places as usize)),
            places,
            arriving: InFlightBudget::new(metrics.arriving.clone()),
        }
    }
}

/// Where an operator sees what sessions do.
pub struct Observed {
    /// Counts them, their messages and their ends.
    pub metrics: SessionMetrics,
    /// Keeps repeated lines out of the log.
    pub repeats: Arc<Repeats>,
    /// How long their tasks hold a thread.
    pub polls: Histogram,
    /// They are the relay's own test of itself, and the log does not name them.
    pub is_probe: bool,
}

impl Sessions {
    /// The sessions of the relay's own test of itself: in the same rooms, under another config, and
    /// with permits and metrics of their own.
    pub fn for_probe(
        &self,
        config: watch::Receiver<Arc<Config>>,
        auth: Arc<Auth>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            config,
            rooms: self.rooms.clone(),
            peers: self.peers.clone(),
            documents: self.documents.clone(),
            auth,
            names: self.names.clone(),
            receiving: Receiving::new(PROBE_PLACES, &metrics.sessions),
            observed: Observed {
                metrics: metrics.sessions.clone(),
                repeats: Arc::default(),
                polls: self.observed.polls.clone(),
                is_probe: true,
            },
            refusing: Semaphore::new(1),
            heavy: self.heavy.clone(),
            draining: self.draining.clone(),
        }
    }

    /// Counts a message that was received.
    pub(super) fn count_received(&self, message: &Message<'_>, bytes: usize) {
        self.count_bytes(message.body.name(), bytes as u64);
    }

    /// Counts a message of this kind that was received.
    pub(super) fn count_bytes(&self, kind: &str, bytes: u64) {
        let (labels, metrics) = (["in", kind], &self.observed.metrics);
        metrics.messages.with_label_values(&labels).inc();
        metrics.message_bytes.with_label_values(&labels).inc_by(bytes);
    }

    /// Counts and logs a message that is dropped.
    pub(super) fn dropped(&self, session: &Session, reason: &'static str) {
        self.observed.metrics.dropped.with_label_values(&[reason]).inc();
        if let Some(times) = self.observed.repeats.pass(&session.peer_id, reason) {
            warn!(peer = %session.peer_id, connection = %session.id, times, "a message is dropped: {reason}");
        }
    }

    /// Delays the next read of a session that is over a limit: what it sends is not lost.
    pub(super) async fn throttle(&self, session: &Session, wait: Duration, limit: &'static str) {
        self.observed.metrics.throttled.with_label_values(&[limit]).inc();
        if let Some(times) = self.observed.repeats.pass(&session.peer_id, limit) {
            warn!(
                peer = %session.peer_id, connection = %session.id, times,
                "what it sends is more than limits.{limit} allows: it is read more slowly"
            );
        }
        tokio::time::sleep(wait).await;
    }

    /// Reads a message of this size; a large one on a thread that may block.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        session: &Session,
        bytes: usize,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CloseReason> {
        if bytes <= READ_AT_ONCE {
            return Ok(read());
        }
        let worked = self.heavy.run(session.payer(), read).await;
        let (done, took) = worked.map_err(|_| CloseReason::MessagePanic)?;
        session.charge(took, 1);
        Ok(done)
    }
}
