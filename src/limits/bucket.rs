//! Token buckets.

use std::time::{Duration, Instant};

use crate::config::Rate;

/// What is left of a rate. It may go into debt, which has to be waited for.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    pub(super) left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { left: f64::INFINITY, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + elapsed * a_second(rate)).min(burst(rate));
    }

    /// Take `amount`, whether or not it is there. Returns how long to wait until it is.
    pub fn take(&mut self, amount: u64, rate: Rate, now: Instant) -> Duration {
        self.refill(rate, now);
        self.left -= as_f64(amount);
        if self.left >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.left / a_second(rate)).unwrap_or(Duration::MAX)
    }

    /// Take `amount` if something is left. A part of it is enough, so that nothing is too large for ever.
    pub fn try_take(&mut self, amount: u64, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= as_f64(amount);
        }
        is_left
    }

    /// Put back what was taken for nothing.
    pub fn give_back(&mut self, amount: u64) {
        self.left += as_f64(amount);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a limit needs no more than 53 bits")]
fn as_f64(amount: u64) -> f64 {
    amount as f64
}

fn a_second(rate: Rate) -> f64 {
    as_f64(rate.count) / rate.per.as_secs_f64()
}

/// What may come at once: of a rate a second twice as much, of longer ones all.
fn burst(rate: Rate) -> f64 {
    as_f64(rate.count) * (2.0 / rate.per.as_secs_f64()).max(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_over_the_rate_has_to_be_waited_for() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let rate = Rate::a_second(10);
        assert_eq!(bucket.take(20, rate, now), Duration::ZERO, "twice a second's at once");
        assert_eq!(bucket.take(5, rate, now), Duration::from_millis(500));
        let later = now + Duration::from_millis(500);
        assert!(!bucket.try_take(1, rate, later), "the debt is paid, and nothing is left");
        assert!(bucket.try_take(1, rate, later + Duration::from_millis(101)));
        let doubled = Rate::a_second(20);
        assert!(
            bucket.try_take(1, doubled, later + Duration::from_millis(200)),
            "a reload holds at once"
        );
        let mut hourly = Bucket::new(now);
        assert!((0..3).all(|_| hourly.try_take(1, Rate::an_hour(3), now)));
        assert!(!hourly.try_take(1, Rate::an_hour(3), now));
        let mut large = Bucket::new(now);
        assert!(large.try_take(1_000_000, rate, now), "nothing is too large for a full one");
        assert!(!large.try_take(1, rate, now + Duration::from_secs(60)));
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_and_its_burst(
            steps in proptest::collection::vec((0u64..200, 1u64..50), 1..100), count in 1u64..100,
        ) {
            let start = Instant::now();
            let (mut now, mut bucket, mut passed, mut last) = (start, Bucket::new(start), 0, 0);
            for (pause, amount) in steps {
                now += Duration::from_millis(pause);
                if bucket.try_take(amount, Rate::a_second(count), now) {
                    passed += amount;
                    last = amount;
                }
            }
            let most = 2.0 * count as f64 + count as f64 * (now - start).as_secs_f64();
            prop_assert!((passed - last) as f64 <= most + 1e-6, "{passed} of {most}");
        }
    }
}
