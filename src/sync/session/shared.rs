//! What all sessions share.

use std::{sync::Arc, time::Duration};

use prometheus::Histogram;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Session, counts::Counts};
use crate::{
    auth::Auth,
    config::Config,
    limits::turns::Turns,
    observe::log::Repeats,
    storage::documents::Documents,
    sync::{
        close_reason::CloseReason, incoming::InFlightBudget, peers::Peers, rooms::Rooms,
        wire::Message,
    },
};

/// WebSockets that are told at a time why they are refused. Further ones are cut.
pub const REFUSED_AT_ONCE: usize = 200;
/// Permits for received bytes of the relay's own test of itself, in KiB.
const PROBE_PERMITS: u32 = 64;
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
    pub permits: u32,
    /// Memory of messages that are received in part.
    pub in_flight: InFlightBudget,
}

impl Receiving {
    /// A receive queue of this many KiB.
    pub fn new(permits: u32, counts: &Counts) -> Self {
        Self {
            queue: Arc::new(Semaphore::new(permits as usize)),
            permits,
            in_flight: InFlightBudget::new(counts.in_flight()),
        }
    }

    /// Whether at most half of the receive queue is used, so that some of it may be used for long.
    pub(super) fn is_half_free(&self) -> bool {
        self.queue.available_permits() >= self.permits as usize / 2
    }
}

/// Where an operator sees what sessions do.
pub struct Observed {
    /// Counts them, their messages and their ends.
    pub counts: Counts,
    /// Keeps repeated lines out of the log.
    pub repeats: Arc<Repeats>,
    /// How long their tasks hold a thread.
    pub polls: Histogram,
}

impl Sessions {
    /// The sessions of the relay's own test of itself: in the same rooms, under another config, and
    /// with permits of their own. They do not count as clients.
    pub fn for_probe(&self, config: watch::Receiver<Arc<Config>>, auth: Arc<Auth>) -> Self {
        let counts = self.observed.counts.of_probe();
        Self {
            config,
            rooms: self.rooms.clone(),
            peers: self.peers.clone(),
            documents: self.documents.clone(),
            auth,
            names: self.names.clone(),
            receiving: Receiving::new(PROBE_PERMITS, &counts),
            observed: Observed {
                counts,
                repeats: Arc::default(),
                polls: self.observed.polls.clone(),
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
        self.observed.counts.message("in", kind, bytes);
    }

    /// Counts and logs a message that is dropped.
    pub(super) fn dropped(&self, session: &Session, reason: &'static str) {
        self.observed.counts.dropped(reason);
        if let Some(times) = self.observed.repeats.pass(&session.peer_id, reason) {
            warn!(
                peer = %session.peer_id, connection = %session.id, times,
                "dropped a message: {reason}"
            );
        }
    }

    /// Delays the next read of a session that is over a limit: what it sends is not lost.
    pub(super) async fn throttle(&self, session: &Session, wait: Duration, limit: &'static str) {
        self.observed.counts.throttled(limit);
        if let Some(times) = self.observed.repeats.pass(&session.peer_id, limit) {
            warn!(
                peer = %session.peer_id, connection = %session.id, times,
                "rate limit limits.{limit} exceeded; throttling reads"
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
