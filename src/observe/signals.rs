//! Signals: TERM and INT drain, HUP reloads.

use std::io;

use futures::{Stream, StreamExt};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Finish what was begun, and exit; the second time, a second or more later, exit at once.
    Stop,
    /// Read the config again.
    Reload,
}

/// The requests that reach this process from now on.
///
/// # Errors
/// The handlers cannot be set.
pub fn requests() -> io::Result<impl Stream<Item = Request> + Unpin> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    Ok(signals.map(|signal| if signal == SIGHUP { Request::Reload } else { Request::Stop }))
}
