//! The owner of every long-running task.
//!
//! If a task ends although the relay is not stopping, it is restarted after a growing pause, or the
//! relay drains and exits. Connections and rooms are not supervised here: a panic in one affects no
//! other (`http`, `sync::rooms`).

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::{
    base::backoff::Backoff,
    observe::{metrics::ProcessMetrics, usage::Polled},
};

/// The first and the longest pause before a task is restarted.
const RESTART_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A task that ran for this long is restarted after the first pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What to do when a task ends although the relay is not stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// Restart it.
    Restart,
    /// Drain and exit with an error, since the relay cannot work without it.
    Fatal,
}

/// A task to supervise.
pub struct Task {
    name: &'static str,
    on_exit: OnExit,
    /// Once this is cancelled, the task's end is expected.
    stopping: CancellationToken,
    /// Called at each start.
    start: Box<dyn FnMut() -> BoxFuture<'static, ()> + Send>,
}

impl Task {
    /// Returns the task that calls `run` with a clone of `subject` at each start.
    pub fn new<S, F>(
        name: &'static str,
        on_exit: OnExit,
        stopping: &CancellationToken,
        subject: &S,
        run: impl Fn(S) -> F + Send + 'static,
    ) -> Self
    where
        S: Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (stopping, subject) = (stopping.clone(), subject.clone());
        Self { name, on_exit, stopping, start: Box::new(move || run(subject.clone()).boxed()) }
    }
}

/// An essential task has ended.
#[derive(Debug, thiserror::Error)]
#[error("the task {task:?} ended: {cause}")]
pub struct TaskEnded {
    /// Its name.
    pub task: &'static str,
    /// The text of a panic, or that the task returned.
    pub cause: String,
}

/// Owns tasks, and ends them when it is dropped.
pub struct Supervisor {
    tasks: JoinSet<()>,
    fatal: (mpsc::Sender<TaskEnded>, mpsc::Receiver<TaskEnded>),
    metrics: ProcessMetrics,
}

impl Supervisor {
    /// Returns a supervisor without tasks.
    pub fn new(metrics: ProcessMetrics) -> Self {
        Self { tasks: JoinSet::new(), fatal: mpsc::channel(8), metrics }
    }

    /// Runs a task, and restarts it or reports its end as its [`OnExit`] says.
    pub fn supervise(&mut self, task: Task) {
        let Task { name: task, on_exit, stopping, mut start } = task;
        let fatal = self.fatal.0.clone();
        let (exits, polls) = (
            self.metrics.task_exits.clone(),
            self.metrics.poll_seconds.with_label_values(&["background"]),
        );
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(RESTART_BACKOFF.0, RESTART_BACKOFF.1);
            loop {
                let started = Instant::now();
                let running = Polled::new(async { start().await }, polls.clone());
                let end = AssertUnwindSafe(running).catch_unwind().await;
                if stopping.is_cancelled() {
                    exits.with_label_values(&[task, "expected"]).inc();
                    return debug!(task, "ended");
                }
                let cause = match end {
                    Ok(()) => "it returned".to_owned(),
                    Err(panic) => format!("a panic: {}", panic_text(&*panic)),
                };
                if on_exit == OnExit::Fatal {
                    exits.with_label_values(&[task, "fatal"]).inc();
                    // If the channel is full, others have already been reported.
                    let _ = fatal.try_send(TaskEnded { task, cause });
                    return;
                }
                exits.with_label_values(&[task, "restart"]).inc();
                if started.elapsed() >= HEALTHY_AFTER {
                    backoff.reset();
                }
                let pause = backoff.pause();
                error!(task, cause, ?pause, "a task failed; restarting it");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stopping.cancelled() => return,
                }
            }
        });
    }

    /// Waits until an essential task has ended.
    pub async fn failed(&mut self) -> TaskEnded {
        match self.fatal.1.recv().await {
            Some(ended) => ended,
            // `self.fatal` has a sender, so this does not happen.
            None => std::future::pending().await,
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a text")
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::observe::metrics::Metrics;

    fn supervisor() -> (Supervisor, CancellationToken, ProcessMetrics) {
        let metrics = Metrics::new().expect("metrics").process;
        let stopping = CancellationToken::new();
        (Supervisor::new(metrics.clone()), stopping, metrics)
    }

    #[tokio::test]
    async fn a_task_that_panics_or_returns_is_restarted() {
        let (mut supervisor, stopping, metrics) = supervisor();
        let starts = Arc::new(AtomicUsize::new(0));
        let third = Arc::new(tokio::sync::Notify::new());
        let subject = (starts.clone(), third.clone());
        let flaky = Task::new("flaky", OnExit::Restart, &stopping, &subject, |(starts, third)| {
            let start = starts.fetch_add(1, Ordering::SeqCst);
            async move {
                match start {
                    0 => panic!("killed on purpose"),
                    1 => {}
                    _ => {
                        third.notify_one();
                        std::future::pending::<()>().await;
                    }
                }
            }
        });
        supervisor.supervise(flaky);
        third.notified().await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert_eq!(metrics.task_exits.with_label_values(&["flaky", "restart"]).get(), 2);
    }

    #[tokio::test]
    async fn a_fatal_task_is_reported_with_its_panic() {
        let (mut supervisor, stopping, metrics) = supervisor();
        let vital = Task::new("vital", OnExit::Fatal, &stopping, &(), |()| async {
            panic!("killed on purpose")
        });
        supervisor.supervise(vital);
        let ended = supervisor.failed().await;
        assert_eq!(ended.to_string(), "the task \"vital\" ended: a panic: killed on purpose");
        assert_eq!(metrics.task_exits.with_label_values(&["vital", "fatal"]).get(), 1);
    }

    #[tokio::test]
    async fn the_end_of_a_task_is_expected_once_the_relay_stops() {
        let (mut supervisor, stopping, metrics) = supervisor();
        let vital = Task::new("vital", OnExit::Fatal, &stopping, &stopping, |stopping| {
            stopping.cancelled_owned()
        });
        supervisor.supervise(vital);
        stopping.cancel();
        while metrics.task_exits.with_label_values(&["vital", "expected"]).get() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(supervisor.failed().now_or_never().is_none());
    }
}
