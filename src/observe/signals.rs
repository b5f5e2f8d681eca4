//! Signals: SIGTERM and SIGINT drain, SIGHUP reloads.

use std::io;

use futures::{Stream, StreamExt};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

/// What a signal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Drain and exit. The second time, a second or more later, exit at once.
    Stop,
    /// Reload the config.
    Reload,
}

/// Returns the requests that this process receives from now on.
///
/// # Errors
/// The handlers cannot be set.
pub fn requests() -> io::Result<impl Stream<Item = Request> + Unpin> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    Ok(signals.map(|signal| if signal == SIGHUP { Request::Reload } else { Request::Stop }))
}
