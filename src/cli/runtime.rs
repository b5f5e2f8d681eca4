//! The async runtime of the daemon and of the commands.

use tokio::runtime::{Builder, Runtime};

use super::error::CliError;

/// Threads for blocking work: disk access and long computations. The allocator keeps about half a
/// MiB of freed memory for each thread: twenty large uploads at once took 250 MiB with tokio's
/// default of 512 threads, and 110 MiB with these.
const MAX_BLOCKING_THREADS: usize = 96;

pub(super) fn runtime() -> Result<Runtime, CliError> {
    let mut builder = Builder::new_multi_thread();
    builder
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build()
        .map_err(CliError::Runtime)
}
