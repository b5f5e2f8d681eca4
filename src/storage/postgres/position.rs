//! Where a relay is in what the others write, and when it looks again.

use std::time::{Duration, Instant};

use tokio::{sync::mpsc, time::timeout_at};
use tokio_postgres::Notification;

use super::{
    connection::Group,
    hints::{Heard, Hint},
    link::Link,
};

/// How long a relay waits for a hint before it looks.
const POLL: Duration = Duration::from_secs(1);

/// Where a relay is in what the others write.
pub(super) struct Follower {
    /// The snapshot of the last look; none before the first.
    pub(super) snapshot: Option<String>,
    /// The connections of the last look, by their name.
    pub(super) connection: Vec<u8>,
    notifications: mpsc::Receiver<Notification>,
    pub(super) heard: Heard,
    /// When the relay last said that it is there, and when it deleted leftovers.
    pub(super) seen_at: Option<Instant>,
    pub(super) swept_at: Instant,
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
}

impl Follower {
    pub(super) fn new(notifications: mpsc::Receiver<Notification>) -> Self {
        Self {
            snapshot: None,
            connection: Vec::new(),
            notifications,
            heard: Heard::default(),
            seen_at: None,
            swept_at: Instant::now(),
        }
    }

    /// Waits until it is time to look.
    pub(super) async fn wait(&mut self, link: &Link, group: &Group) -> Cause {
        let next = Instant::now() + POLL;
        loop {
            let mut notification = tokio::select! {
                notification = timeout_at(next.into(), self.notifications.recv()) => {
                    notification.ok().flatten()
                }
                () = group.broken.cancelled() => None,
            };
            if notification.is_none() {
                return Cause::Poll;
            }
            let mut oldest: Option<u64> = None;
            while let Some(received) = notification {
                if let Some(hint) =
                    Hint::read(received.payload()).filter(|hint| hint.node != group.node)
                {
                    self.record(link, &hint);
                    oldest = Some(oldest.map_or(hint.at, |oldest| oldest.min(hint.at)));
                }
                notification = self.notifications.try_recv().ok();
            }
            if let Some(at) = oldest {
                return Cause::Hint(at);
            }
        }
    }

    fn record(&mut self, link: &Link, hint: &Hint) {
        let hints = &link.metrics.hints;
        hints.with_label_values(&["received"]).inc();
        hints.with_label_values(&["lost"]).inc_by(self.heard.record(hint));
        link.set_company(true);
    }
}
