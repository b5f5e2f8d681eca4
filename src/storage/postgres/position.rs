//! Where a relay is in what the others write, and when it looks again.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{connection::Group, link::Link};

/// How long a relay waits for a hint before it looks.
const POLL: Duration = Duration::from_secs(1);

/// Where a relay is in what the others write.
pub(super) struct Follower {
    /// The snapshot of the last look; none before the first.
    pub(super) snapshot: Option<String>,
    /// The connections of the last look, by their name.
    pub(super) connection: Vec<u8>,
    /// When it last read how often each relay has written.
    pub(super) counted_at: Option<Instant>,
    /// When the relay last said that it is there, and when it deleted leftovers.
    pub(super) seen_at: Option<Instant>,
    pub(super) swept_at: Instant,
    /// The longest time that news took since the relay last said that it is there.
    pub(super) worst_news: Option<Duration>,
    /// The oldest transaction that was in progress, and since when.
    oldest: Option<(String, Instant)>,
}

impl Follower {
    /// Returns how long the oldest transaction in progress has been seen in snapshots: one that has
    /// written something.
    pub(super) fn oldest_transaction(&mut self, in_progress: Option<&str>) -> Duration {
        let Some(id) = in_progress else {
            self.oldest = None;
            return Duration::ZERO;
        };
        let (oldest, since) = self.oldest.get_or_insert_with(|| (id.to_owned(), Instant::now()));
        if oldest != id {
            (*oldest, *since) = (id.to_owned(), Instant::now());
        }
        since.elapsed()
    }
}

impl Default for Follower {
    fn default() -> Self {
        Self {
            snapshot: None,
            connection: Vec::new(),
            counted_at: None,
            seen_at: None,
            swept_at: Instant::now(),
            worst_news: None,
            oldest: None,
        }
    }
}

/// Why a relay looks.
#[derive(Clone, Copy)]
pub(super) enum Cause {
    /// It was given a hint, of which the oldest was sent then (milliseconds since 1970).
    Hint(u64),
    /// It is time.
    Poll,
}

impl Cause {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Hint(_) => "hint",
            Self::Poll => "poll",
        }
    }

    /// Waits until it is time to look.
    pub(super) async fn next(link: &Link, group: &Group) -> Self {
        tokio::select! {
            // The time may be over.
            _ = timeout(POLL, link.hinted.notified()) => {}
            () = group.broken.cancelled() => {}
        }
        link.take_hint().map_or(Self::Poll, Self::Hint)
    }
}
