//! The owner of every long-running task.
//!
//! A task that ends without being asked gets a verdict: it is started again after a pause that grows, or
//! it takes the relay down. Connections and rooms are not here: each of those is one of many, and a panic in
//! one is its own matter (`http`, `sync::rooms`).

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

/// The pause before a task is started again: the first, and the longest.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A task that ran for so long begins again with the first pause.
const RAN_WELL: Duration = Duration::from_secs(60);

/// What a task's end without being asked means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// Start it again.
    Restart,
    /// The relay cannot do without it: drain and exit with an error.
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

/// A task that the relay cannot do without has ended.
#[derive(Debug, thiserror::Error)]
#[error("the task {task:?} ended: {cause}")]
pub struct TaskEnded {
    /// Its name.
    pub task: &'static str,
    /// A panic's text, or that it just returned.
    pub cause: String,
}

/// Owns tasks; dropping it ends them.
pub struct Supervisor {
    tasks: JoinSet<()>,
    fatal: (mpsc::Sender<TaskEnded>, mpsc::Receiver<TaskEnded>),
    metrics: ProcessMetrics,
}

impl Supervisor {
    /// No task yet.
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
            let mut backoff = Backoff::new(RESTART.0, RESTART.1);
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
                    // The first one is enough: a full channel already has it.
                    let _ = fatal.try_send(TaskEnded { task, cause });
                    return;
                }
                exits.with_label_values(&[task, "restart"]).inc();
                if started.elapsed() >= RAN_WELL {
                    backoff.reset();
                }
                let pause = backoff.pause();
                error!(task, cause, ?pause, "a task ended; it is started again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stopping.cancelled() => return,
                }
            }
        });
    }

    /// Wait until a task has ended that the relay cannot do without.
    pub async fn failed(&mut self) -> TaskEnded {
        match self.fatal.1.recv().await {
            Some(ended) => ended,
            // The supervisor holds a sender itself.
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

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_returns_is_started_again() {
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
    async fn ends_are_expected_once_the_relay_stops() {
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
