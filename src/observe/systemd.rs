//! What the service manager is told (`sd_notify(3)`). Outside systemd each of these does nothing.

use std::time::Duration;

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
