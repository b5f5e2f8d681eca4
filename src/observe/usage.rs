//! What a room or a session costs: the time its tasks run, its messages and its bytes, in the last minute.
//!
//! Bounded: two windows of a minute each, of which the older counts for what of it is left in the last 60
//! seconds, as if it had come evenly.

use std::{
    pin::Pin,
    sync::{Arc, LazyLock, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use prometheus::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::base::lock::lock;

const WINDOW: Duration = Duration::from_secs(60);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds in which its tasks ran: a processor's time, and what they waited for one meanwhile. Read from the
    /// clock and not from the scheduler, whose answer costs ten times as much.
    pub seconds: f64,
    /// Messages, in and out.
    pub messages: f64,
    /// Bytes of these.
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
    /// Which minute since the start the current window is.
    minute: u64,
    current: Cost,
    last: Cost,
}

impl Windows {
    fn turn(&mut self, now: Duration) {
        let minute = now.as_secs() / WINDOW.as_secs();
        if minute != self.minute {
            let current = std::mem::take(&mut self.current);
            self.last = if minute == self.minute + 1 { current } else { Cost::default() };
            self.minute = minute;
        }
    }

    fn add(&mut self, now: Duration, cost: Cost) {
        self.turn(now);
        self.current.add(cost, 1.0);
    }

    fn last_minute(&mut self, now: Duration) -> Cost {
        self.turn(now);
        let begun = (now.as_secs_f64() / WINDOW.as_secs_f64()).fract();
        let mut cost = self.current;
        cost.add(self.last, 1.0 - begun);
        cost
    }
}

/// Adds up what something costs. A clone adds to the same sum.
#[derive(Clone, Debug, Default)]
pub struct Usage(Arc<Mutex<Windows>>);

impl Usage {
    /// A message of so many bytes came or went.
    pub fn message(&self, bytes: usize) {
        self.add(Cost { messages: 1.0, bytes: bytes as f64, ..Cost::default() });
    }

    /// Its tasks ran for so long.
    pub fn ran(&self, time: Duration) {
        self.add(Cost { seconds: time.as_secs_f64(), ..Cost::default() });
    }

    fn add(&self, cost: Cost) {
        lock(&self.0).add(START.elapsed(), cost);
    }

    /// What it cost in the last minute.
    pub fn last_minute(&self) -> Cost {
        lock(&self.0).last_minute(START.elapsed())
    }

    /// Add the time that `work` takes to run.
    pub fn charge<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.ran(start.elapsed());
        result
    }
}

/// Processor time that this thread has had.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A future of which it is noted how long each poll holds the thread, which serves others meanwhile not. tokio's own histogram of
/// this needs a build with unstable parts of it.
pub struct Polled<F> {
    future: Pin<Box<F>>,
    polls: Histogram,
    usage: Option<Usage>,
}

impl<F: Future> Polled<F> {
    /// Note polls of `future` in `polls`, in seconds.
    pub fn new(future: F, polls: Histogram) -> Self {
        Self { future: Box::pin(future), polls, usage: None }
    }

    /// Add their time to what something costs.
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
    fn the_last_minute_slides_and_ends() {
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
