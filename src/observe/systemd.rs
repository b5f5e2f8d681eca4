//! What the service manager is told (`sd_notify(3)`). Outside systemd each of these does nothing.

use std::{path::PathBuf, time::Duration};

use sd_notify::NotifyState;
use tracing::warn;

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("systemd cannot be told how it stands: {error}");
    }
}

/// Ready, with a line for `systemctl status`.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How often systemd wants to hear that all goes on (`WatchdogSec=`), if it does.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// All goes on.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// The file of a credential that the unit passes on (`LoadCredential=`), if it does.
#[expect(clippy::disallowed_methods, reason = "called at the start, or on a thread that may block")]
pub fn credential(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    Some(PathBuf::from(folder).join(name)).filter(|file| file.is_file())
}

/// A new line for `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] says that it is over.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!("no clock to tell systemd of the reload: {error}"),
    }
}

/// Stopping, which may take up to `timeout`.
pub fn stopping(timeout: Duration, status: &str) {
    let timeout = u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX);
    notify(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(timeout),
        NotifyState::Status(status),
    ]);
}
