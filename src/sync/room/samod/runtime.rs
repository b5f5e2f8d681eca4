//! Where a repo's tasks run, and where the engine's own long work runs.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use prometheus::Histogram;
use samod::runtime::RuntimeHandle;
use tokio::task::{AbortHandle, JoinError};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    base::{document_id::DocumentId, lock::lock},
    limits::turns::{Payer, Turns},
    observe::{
        metrics::RoomMetrics,
        usage::{Polled, Usage, thread_time},
    },
};

/// Runs work on documents on threads that may block.
pub(super) struct Work {
    pub(super) heavy: Arc<Turns>,
    pub(super) usage: Usage,
}

impl Work {
    /// Runs `work`, which waits for a permit of `payer` if it takes long. Returns its result and
    /// the processor time that it took.
    ///
    /// # Errors
    /// A panic in `work`, or the runtime is shutting down.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        payer: Payer,
        is_long: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), JoinError> {
        let usage = self.usage.clone();
        let permit = if is_long { Some(self.heavy.take(payer).await) } else { None };
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let began = thread_time();
            let done = usage.charge(work);
            (done, thread_time().saturating_sub(began))
        });
        working.await
    }
}

/// Runs a repo's tasks, and ends them.
#[derive(Clone)]
pub(super) struct Runtime {
    document: DocumentId,
    metrics: RoomMetrics,
    polls: Histogram,
    usage: Usage,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    /// Cancelled after a panic in a task.
    pub(super) failed: CancellationToken,
}

impl Runtime {
    pub(super) fn new(
        document: DocumentId,
        (metrics, polls): (RoomMetrics, Histogram),
        usage: Usage,
    ) -> Self {
        let failed = CancellationToken::new();
        Self { document, metrics, polls, usage, tasks: Arc::default(), failed }
    }

    /// Ends all tasks.
    pub(super) fn abort(&self) {
        let mut tasks = lock(&self.tasks);
        for task in tasks.drain(..) {
            task.abort();
        }
    }
}

/// Counts a task for as long as it lives.
struct Counted(RoomMetrics);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.engine_tasks.dec();
    }
}

impl RuntimeHandle for Runtime {
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send + 'static>>) {
        let (failed, document) = (self.failed.clone(), self.document);
        let task = Polled::new(task, self.polls.clone()).charged_to(&self.usage);
        self.metrics.engine_tasks.inc();
        let counted = Counted(self.metrics.clone());
        let task = tokio::spawn(async move {
            let _counted = counted;
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                error!(%document, "the document's engine panicked; restarting it");
                failed.cancel();
            }
        });
        lock(&self.tasks).push(task.abort_handle());
    }

    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        Box::pin(std::future::pending())
    }
}
