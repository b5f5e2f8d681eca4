//! How fast a session may send.
//!
//! The session's task (`actor`) waits as long as this says before it reads the next message.

use std::time::{Duration, Instant};

use crate::{config::Limits, limits::Bucket};

/// What a message counts as.
pub(super) struct Load {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// What a session may still send, by each of its limits.
pub(super) struct RateLimit {
    messages: Bucket,
    bytes: Bucket,
    processor: Bucket,
}

impl RateLimit {
    /// The limits of a session that has sent nothing.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { messages: Bucket::new(now), bytes: Bucket::new(now), processor: Bucket::new(now) }
    }

    /// Counts a message, and the processor time that messages `took` since the last one. Returns
    /// how long to wait before reading the next message and which limit requires it, or none if it
    /// may be read at once.
    pub(super) fn take(
        &mut self,
        load: Load,
        took: Duration,
        limits: &Limits,
        now: Instant,
    ) -> Option<(Duration, &'static str)> {
        let messages = self.messages.take(load.messages, limits.messages_per_connection, now);
        let bytes = self.bytes.take(load.bytes, limits.bytes_per_connection, now);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let rate = limits.processor_per_connection.as_rate();
        let processor = self.processor.take(took, rate, now);
        let longest = [
            (messages, "messages_per_connection"),
            (bytes, "bytes_per_connection"),
            (processor, "processor_per_connection"),
        ];
        longest.into_iter().filter(|(wait, _)| !wait.is_zero()).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Share;

    #[test]
    fn a_session_over_its_processor_share_is_throttled() {
        let limits = Limits { processor_per_connection: Share::percent(25), ..Limits::default() };
        let mut limit = RateLimit::new();
        let now = Instant::now();
        let load = || Load { messages: 1, bytes: 100 };
        let second = Duration::from_secs(1);
        assert_eq!(limit.take(load(), 2 * second, &limits, now), None, "a quarter of ten seconds");
        let wait = limit.take(load(), second, &limits, now);
        assert_eq!(wait, Some((2 * second, "processor_per_connection")));
        assert_eq!(limit.take(load(), Duration::ZERO, &limits, now + 2 * second), None);
    }
}
