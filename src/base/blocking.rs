//! Moves blocking calls off the async threads, so that only threads that may block touch files.
//!
//! While a worker thread of tokio waits for a disk, it serves none of its connections.
//! `clippy.toml` lists the calls that can block, and the lint denies them in the whole library. A
//! module or function that only runs on threads that may block, in a command, or before anything is
//! served allows them with an attribute that says so.

use std::{
    future::pending,
    ops::{Deref, DerefMut},
    panic::resume_unwind,
};

/// Runs `work` on a thread that may block and returns its result. A panic in it continues in the
/// caller. `work` runs to its end even when the caller is cancelled.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(|error| error.try_into_panic()) {
        Ok(result) => result,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is shutting down and drops the caller.
        Err(Err(_)) => pending().await,
    }
}

/// Runs `work` on a thread that may block, and does not wait for it. Outside of a runtime `work`
/// runs on the current thread.
pub fn detach(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}

/// A value that is dropped on a thread that may block, wherever its owner is dropped. The last
/// close of a large deleted file frees its blocks, which takes milliseconds.
#[derive(Debug)]
pub struct DropOnBlockingThread<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DropOnBlockingThread<T> {
    /// Returns an owner of `value`.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send + 'static> Deref for DropOnBlockingThread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap_or_else(|| unreachable!("only drop takes it"))
    }
}

impl<T: Send + 'static> DerefMut for DropOnBlockingThread<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap_or_else(|| unreachable!("only drop takes it"))
    }
}

impl<T: Send + 'static> Drop for DropOnBlockingThread<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        detach(move || drop(value));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        thread::{self, ThreadId},
        time::Duration,
    };

    use super::*;

    struct ReportsThread(mpsc::Sender<ThreadId>);

    impl Drop for ReportsThread {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    #[test]
    fn a_value_is_dropped_on_a_thread_that_may_block() {
        let (sender, dropped_on) = mpsc::channel();
        let value = DropOnBlockingThread::new(ReportsThread(sender));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async move { drop(value) });
        let thread = dropped_on.recv_timeout(Duration::from_secs(60)).expect("it is dropped");
        assert_ne!(thread, thread::current().id());
    }
}
