//! The way off the async threads: files and disks are only touched on threads that may block.
//!
//! A worker thread of tokio that waits for a disk serves none of its connections meanwhile. `clippy.toml` lists the calls
//! that can wait, and the lint denies them in the whole library; a module or function that only runs on threads that
//! may block, in a command, or before anything is served says so in an attribute.

use std::{future::pending, panic::resume_unwind};

/// Runs `work` on a thread that may block and returns its result. A panic in it continues in the caller. `work` runs to
/// its end even when the caller is cancelled.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(|error| error.try_into_panic()) {
        Ok(result) => result,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is shutting down and drops the caller.
        Err(Err(_)) => pending().await,
    }
}

/// Runs `work` on a thread that may block, and does not wait for it. Outside of a runtime it runs here.
pub fn detach(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}
