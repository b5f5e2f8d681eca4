//! How fast a connection sends.

use std::time::{Duration, Instant};

use crate::{config::Limits, limits::Bucket};

/// What a message counts as.
pub(super) struct Load {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// What one connection has sent of late.
pub(super) struct Flow {
    messages: Bucket,
    bytes: Bucket,
    processor: Bucket,
}

impl Flow {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { messages: Bucket::new(now), bytes: Bucket::new(now), processor: Bucket::new(now) }
    }

    /// Count a message, and the processor time that messages `took` since the last. Returns how long to wait before the next is
    /// read, if it is not at once, and for which limit.
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
    fn who_takes_more_of_the_processor_than_its_share_is_read_later() {
        let limits = Limits { processor_per_connection: Share::percent(25), ..Limits::default() };
        let mut flow = Flow::new();
        let now = Instant::now();
        let load = || Load { messages: 1, bytes: 100 };
        let second = Duration::from_secs(1);
        assert_eq!(flow.take(load(), 2 * second, &limits, now), None, "a quarter of ten seconds");
        let wait = flow.take(load(), second, &limits, now);
        assert_eq!(wait, Some((2 * second, "processor_per_connection")));
        assert_eq!(flow.take(load(), Duration::ZERO, &limits, now + 2 * second), None);
    }
}
