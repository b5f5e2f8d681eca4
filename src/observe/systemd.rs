//! Notifications to the service manager (`sd_notify(3)`). Outside of systemd they do nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("cannot notify systemd: {error}");
    }
}

/// Reports that the relay is ready, with a line for `systemctl status`.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Returns the interval of the watchdog (`WatchdogSec=`), if it is enabled.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Feeds the watchdog.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// Sets the line for `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// Reports that a reload has begun. [`ready`] reports its end.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!("cannot notify systemd of the reload: no clock: {error}"),
    }
}

/// Reports that the relay is stopping, which may take up to `timeout`.
pub fn stopping(timeout: Duration, status: &str) {
    let timeout = u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX);
    notify(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(timeout),
        NotifyState::Status(status),
    ]);
}
