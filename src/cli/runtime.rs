//! The async runtime of the daemon and of the commands.

use tokio::runtime::{Builder, Runtime};

use super::error::CliError;

/// Threads for what blocks: disks, and what takes processor time. Each keeps about half a MiB of freed memory for itself:
/// with tokio's 512, twenty large uploads at once took 250 MiB, and with these 110.
const BLOCKING: usize = 96;

pub(super) fn runtime() -> Result<Runtime, CliError> {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().max_blocking_threads(BLOCKING).build().map_err(CliError::Runtime)
}
