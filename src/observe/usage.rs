//! What a room or a session costs: the time its tasks run, its messages and its bytes, in the last
//! minute.
//!
//! Memory is bounded: a sum for the current minute and one for the minute before. The older sum
//! counts in proportion to its overlap with the last 60 seconds.

use std::{
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use prometheus::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::base::lock::lock;

const WINDOW: Duration = Duration::from_secs(60);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What something cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds in which its tasks ran, including the time in which they waited for a processor.
    /// Measured by the clock, because the scheduler's figure takes ten times as long to read.
    pub seconds: f64,
    /// Messages, in and out.
    pub messages: f64,
    /// Bytes of these messages.
    pub bytes: f64,
}

impl Cost {
    fn add(&mut self, other: Self, share: f64) {
        self.seconds += other.seconds * share;
        self.messages += other.messages * share;
        self.bytes += other.bytes * share;
    }
}

#[derive(Debug, Default)]
struct Windows {
    /// The number of the current minute since the start.
    minute: u64,
    current: Cost,
    last: Cost,
}

impl Windows {
    fn advance(&mut self, now: Duration) {
        let minute = now.as_secs() / WINDOW.as_secs();
        if minute != self.minute {
            let current = std::mem::take(&mut self.current);
            self.last = if minute == self.minute + 1 { current } else { Cost::default() };
            self.minute = minute;
        }
    }

    fn add(&mut self, now: Duration, cost: Cost) {
        self.advance(now);
        self.current.add(cost, 1.0);
    }

    fn last_minute(&mut self, now: Duration) -> Cost {
        self.advance(now);
        let begun = (now.as_secs_f64() / WINDOW.as_secs_f64()).fract();
        let mut cost = self.current;
        cost.add(self.last, 1.0 - begun);
        cost
    }
}

/// The sum of what something costs. A clone adds to the same sum.
#[derive(Clone, Debug, Default)]
pub struct Usage(Arc<Sums>);

#[derive(Debug, Default)]
struct Sums {
    /// Messages and their bytes that are not in `windows` yet. They are counted without a lock,
    /// and added with the next time that a task ran, which is right after them.
    messages: AtomicU64,
    bytes: AtomicU64,
    windows: Mutex<Windows>,
}

impl Usage {
    /// Adds a sent or received message of this many bytes.
    pub fn message(&self, bytes: usize) {
        self.0.messages.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Adds the time that a task ran.
    pub fn ran(&self, time: Duration) {
        self.windows(START.elapsed()).current.seconds += time.as_secs_f64();
    }

    /// Returns the cost in the last minute.
    pub fn last_minute(&self) -> Cost {
        let now = START.elapsed();
        self.windows(now).last_minute(now)
    }

    /// The windows, with all messages in them.
    fn windows(&self, now: Duration) -> MutexGuard<'_, Windows> {
        let messages = self.0.messages.swap(0, Ordering::Relaxed);
        let bytes = self.0.bytes.swap(0, Ordering::Relaxed);
        let mut windows = lock(&self.0.windows);
        windows.add(now, Cost { messages: messages as f64, bytes: bytes as f64, seconds: 0.0 });
        windows
    }

    /// Runs `work` and adds the time that it took.
    pub fn charge<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.ran(start.elapsed());
        result
    }
}

/// Returns the processor time that this thread has used.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A future whose polls are timed. During a poll the thread serves nothing else. tokio's own
/// histogram of this needs a build with its unstable features.
pub struct Polled<F> {
    future: Pin<Box<F>>,
    polls: Histogram,
    usage: Option<Usage>,
}

impl<F: Future> Polled<F> {
    /// Records the polls of `future` in `polls`, in seconds.
    pub fn new(future: F, polls: Histogram) -> Self {
        Self { future: Box::pin(future), polls, usage: None }
    }

    /// Also adds their time to `usage`.
    pub fn charged_to(self, usage: &Usage) -> Self {
        Self { usage: Some(usage.clone()), ..self }
    }
}

impl<F: Future> Future for Polled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let start = Instant::now();
        let polled = self.future.as_mut().poll(cx);
        let took = start.elapsed();
        self.polls.observe(took.as_secs_f64());
        if let Some(usage) = &self.usage {
            usage.ran(took);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_fade_out_of_the_last_minute() {
        let mut windows = Windows::default();
        let second = Duration::from_secs;
        let one = Cost { seconds: 0.5, messages: 1.0, bytes: 100.0 };
        for now in 0..60 {
            windows.add(second(now), one);
        }
        assert_eq!(windows.last_minute(second(59)).messages, 60.0);
        assert_eq!(windows.last_minute(second(60)).messages, 60.0);
        let later = windows.last_minute(second(75));
        assert!((later.messages - 45.0).abs() < 1e-6 && (later.bytes - 4500.0).abs() < 1e-6);
        windows.add(second(75), one);
        assert!((windows.last_minute(second(75)).seconds - 23.0).abs() < 1e-6);
        assert!(windows.last_minute(second(121)).messages < 1.01);
        assert_eq!(windows.last_minute(second(180)), Cost::default());
        windows.add(second(1000), one);
        assert_eq!(windows.last_minute(second(1000)), one);
    }
}
