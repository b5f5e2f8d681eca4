//! The time before a request for an unknown document is answered.

use std::time::{Duration, Instant};

use tokio::{sync::OwnedSemaphorePermit, time::Instant as Deadline};

/// How long the first request for a document that nobody has waits for somebody to bring it. Where
/// one client creates a document and another requests it at once, the request often arrives a few
/// milliseconds before the document.
const GRACE: Duration = Duration::from_millis(100);

/// The time in which a request for an unknown document is not answered yet.
pub(super) struct Grace {
    until: Deadline,
    /// One of the relay's permits for documents in this time; returned when the time is over.
    permit: Option<OwnedSemaphorePermit>,
}

impl Grace {
    /// The time after a request that was received at `since`. It is over at once without a permit.
    pub(super) fn new(since: Instant, permit: Option<OwnedSemaphorePermit>) -> Self {
        let length = if permit.is_some() { GRACE } else { Duration::ZERO };
        Self { until: Deadline::from_std(since) + length, permit }
    }

    /// The earliest time for an answer. Returns the permit if the time is over.
    pub(super) fn earliest_answer(&mut self, now: Deadline) -> Deadline {
        if self.until <= now {
            self.permit = None;
        }
        self.until
    }
}
