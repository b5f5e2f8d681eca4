//! How fast a connection sends.

use std::time::{Duration, Instant};

use crate::{config::Limits, limits::Bucket};

/// What one connection has sent of late.
pub(super) struct Flow {
    messages: Bucket,
    bytes: Bucket,
}

impl Flow {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { messages: Bucket::new(now), bytes: Bucket::new(now) }
    }

    /// Count a message. Returns how long to wait before the next is read, if it is not at once, and for which limit.
    pub(super) fn take(
        &mut self,
        bytes: u64,
        limits: &Limits,
        now: Instant,
    ) -> Option<(Duration, &'static str)> {
        let messages = self.messages.take(1, limits.messages_per_connection, now);
        let bytes = self.bytes.take(bytes, limits.bytes_per_connection, now);
        let longest = [(messages, "messages_per_connection"), (bytes, "bytes_per_connection")];
        longest.into_iter().filter(|(wait, _)| !wait.is_zero()).max()
    }
}
