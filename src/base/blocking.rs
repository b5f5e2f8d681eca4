//! The way off the async threads: files and disks are only touched on threads that may block.
//!
//! A worker thread of tokio that waits for a disk serves none of its connections meanwhile.
//! `clippy.toml` lists the calls that can wait, and the lint denies them in the whole library; a
//! module or function that only runs on threads that may block, in a command, or before anything is
//! served says so in an attribute.

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

/// Runs `work` on a thread that may block, and does not wait for it. Outside of a runtime it runs
/// here.
pub fn detach(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}

/// A value that is dropped on a thread that may block, wherever its owner is dropped. The last
/// close of a large deleted file frees its blocks, which takes milliseconds.
#[derive(Debug)]
pub struct DroppedAside<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DroppedAside<T> {
    /// Owns `value`.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send + 'static> Deref for DroppedAside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap_or_else(|| unreachable!("only drop takes it"))
    }
}

impl<T: Send + 'static> DerefMut for DroppedAside<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap_or_else(|| unreachable!("only drop takes it"))
    }
}

impl<T: Send + 'static> Drop for DroppedAside<T> {
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

    struct Tells(mpsc::Sender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    #[test]
    fn a_value_is_not_dropped_on_an_async_thread() {
        let (sender, dropped_on) = mpsc::channel();
        let value = DroppedAside::new(Tells(sender));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async move { drop(value) });
        let thread = dropped_on.recv_timeout(Duration::from_secs(60)).expect("it is dropped");
        assert_ne!(thread, thread::current().id());
    }
}
