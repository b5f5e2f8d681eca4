//! Tasks that finish even if their callers are cancelled.

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// The owner of tasks that run to completion once they have begun: a delete, an import, the storing
/// of an upload. Dropping the returned handle, as when a client disconnects and its request is
/// cancelled, does not end them. A clone owns the same tasks. Shutdown waits for them with
/// [`finish`](Self::finish).
///
/// A task that ends with its owner is an `AbortOnDropHandle` or in a `JoinSet` instead.
#[derive(Clone, Debug, Default)]
pub struct RunToCompletion(TaskTracker);

impl RunToCompletion {
    /// Begins `work`, and returns a handle to wait for its result.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.spawn(work)
    }

    /// How many tasks have not finished.
    pub fn unfinished(&self) -> usize {
        self.0.len()
    }

    /// Waits until every task has finished, including those that begin meanwhile.
    pub async fn finish(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_finishes_although_its_caller_is_cancelled() {
        let tasks = RunToCompletion::default();
        let (go_on, waits) = oneshot::channel::<()>();
        let (sender, mut done) = oneshot::channel();
        drop(tasks.spawn(async move {
            let _ = waits.await;
            let _ = sender.send(());
        }));
        assert_eq!(tasks.unfinished(), 1);
        assert!(tasks.finish().now_or_never().is_none(), "it waits for the task");
        drop(go_on);
        tasks.finish().await;
        assert!(done.try_recv().is_ok());
    }
}
