//! Token buckets.
//!
//! governor, the usual crate for such limits, fixes the quota of a limiter when it is created, so a
//! reload could not change it. It also refuses amounts above the burst size, which a message may
//! have. A bucket here is two numbers, and each call passes the rate.

use std::time::{Duration, Instant};

use crate::config::Rate;

/// A token bucket. It may go into debt, for which the caller has to wait.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    pub(super) left: f64,
    at: Instant,
}

impl Bucket {
    /// Returns a full bucket.
    pub fn new(now: Instant) -> Self {
        Self { left: f64::INFINITY, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + elapsed * per_second(rate)).min(burst(rate));
    }

    /// Takes `amount`, even if the bucket holds less. Returns how long to wait until the debt is
    /// paid.
    pub fn take(&mut self, amount: u64, rate: Rate, now: Instant) -> Duration {
        self.refill(rate, now);
        self.left -= as_f64(amount);
        if self.left >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.left / per_second(rate)).unwrap_or(Duration::MAX)
    }

    /// Takes `amount` if anything is left. A part is enough, so that no amount is refused forever.
    pub fn try_take(&mut self, amount: u64, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= as_f64(amount);
        }
        is_left
    }

    /// Returns what was taken and not used.
    pub fn refund(&mut self, amount: u64) {
        self.left += as_f64(amount);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a limit needs no more than 53 bits")]
fn as_f64(amount: u64) -> f64 {
    amount as f64
}

fn per_second(rate: Rate) -> f64 {
    as_f64(rate.count) / rate.per.as_secs_f64()
}

/// The burst size: the amount of two seconds for a rate per second, and the whole amount for one
/// per minute or hour.
fn burst(rate: Rate) -> f64 {
    as_f64(rate.count) * (2.0 / rate.per.as_secs_f64()).max(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_above_the_limit_has_to_wait() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let rate = Rate::per_second(10);
        assert_eq!(
            bucket.take(20, rate, now),
            Duration::ZERO,
            "the burst of a rate per second is twice the rate"
        );
        assert_eq!(bucket.take(5, rate, now), Duration::from_millis(500));
        let later = now + Duration::from_millis(500);
        assert!(!bucket.try_take(1, rate, later), "the debt is paid, and nothing is left");
        assert!(bucket.try_take(1, rate, later + Duration::from_millis(101)));
        let doubled = Rate::per_second(20);
        assert!(
            bucket.try_take(1, doubled, later + Duration::from_millis(200)),
            "a new rate applies at once"
        );
        let mut hourly = Bucket::new(now);
        assert!((0..3).all(|_| hourly.try_take(1, Rate::per_hour(3), now)));
        assert!(!hourly.try_take(1, Rate::per_hour(3), now));
        let mut large = Bucket::new(now);
        assert!(large.try_take(1_000_000, rate, now), "no amount is too large for a full bucket");
        assert!(!large.try_take(1, rate, now + Duration::from_secs(60)));
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_and_its_burst_passes(
            steps in proptest::collection::vec((0u64..200, 1u64..50), 1..100), count in 1u64..100,
        ) {
            let start = Instant::now();
            let (mut now, mut bucket, mut passed, mut last) = (start, Bucket::new(start), 0, 0);
            for (pause, amount) in steps {
                now += Duration::from_millis(pause);
                if bucket.try_take(amount, Rate::per_second(count), now) {
                    passed += amount;
                    last = amount;
                }
            }
            let most = 2.0 * count as f64 + count as f64 * (now - start).as_secs_f64();
            prop_assert!((passed - last) as f64 <= most + 1e-6, "{passed} of {most}");
        }
    }
}
