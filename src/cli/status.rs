//! `tonk-relay status`: asks the running relay for its state.

use std::time::{Duration, SystemTime};

use hyper::Method;

use super::{
    error::CliError,
    output::{byte_size, describe_relay, show},
    relay::RelayArguments,
};
use crate::{admin::status::Status, base::text::Count, config::AuthMode};

pub(super) fn run(relay: &RelayArguments, json: bool) -> Result<(), CliError> {
    let status: Status = relay.running()?.request(Method::GET, "/status")?;
    show(json, &status, || describe(&status));
    if status.ready { Ok(()) } else { Err(CliError::Reported(1)) }
}

fn describe(status: &Status) -> String {
    let mut text = format!(
        "tonk-relay {} (pid {}), {} for {}\n",
        status.version,
        status.pid,
        status.phase.name(),
        humantime::format_duration(Duration::from_secs(status.uptime_seconds)),
    );
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<12} {value}\n"));
    row("ready", if status.ready { "yes" } else { "no" }.to_owned());
    row("connections", format!("{} ({})", status.connections, Count(status.peers, "peer")));
    row(
        "documents",
        format!("{} live, {} requested", status.documents_live, status.documents_requested),
    );
    if let Some(database) = &status.database {
        row("database", format!("{database}: `tonk-relay cluster status` shows more"));
    }
    for relay in &status.relays {
        row("relay", describe_relay(relay));
    }
    row("unsaved", Count(status.unsaved_bytes, "byte").to_string());
    row(
        "disk",
        format!(
            "{} free (storage.min_free: {})",
            byte_size(status.free_bytes),
            byte_size(status.min_free_bytes)
        ),
    );
    row("memory", memory(status));
    row("sign-in", sign_in(status.sign_in).to_owned());
    row(
        "certificate",
        match &status.certificate_until {
            Some(until) => format!("expires {until} ({})", from_now(until)),
            None => "none: plain HTTP".to_owned(),
        },
    );
    row("bundle", bundle(status));
    row(
        "last backup",
        match &status.backed_up_at {
            Some(at) => format!("{at} ({})", from_now(at)),
            None => "never: `tonk-relay backup DIR` makes one".to_owned(),
        },
    );
    row(
        "quarantine",
        match status.quarantined {
            0 => "empty".to_owned(),
            count => {
                format!("{}: `tonk-relay quarantine list`", Count(count, "file"))
            }
        },
    );
    if status.blocked > 0 {
        row("blocked", format!("{}: `tonk-relay doc blocked`", Count(status.blocked, "document")));
    }
    for line in &status.failed {
        row("failed", line.clone());
    }
    for line in &status.degraded {
        row("degraded", line.clone());
    }
    text
}

fn memory(status: &Status) -> String {
    let used = byte_size(status.figures.resident_bytes);
    format!("{used} (sync.memory: {})", byte_size(status.memory_limit_bytes))
}

fn bundle(status: &Status) -> String {
    match (&status.bundle_sha256, status.bundle_documents) {
        (Some(sha256), Some(documents)) => {
            format!("{}, sha256 {sha256}", Count(documents, "document"))
        }
        _ => "none".to_owned(),
    }
}

fn sign_in(mode: AuthMode) -> &'static str {
    match mode {
        AuthMode::Unset => "none: clients on this machine only (auth.mode is not set)",
        AuthMode::Open => "none: open to everybody (auth.mode = \"open\")",
        AuthMode::Token => "by token",
        AuthMode::Jwt => "by JWT",
    }
}

/// Returns how far a time in RFC 3339 is from now, in days or hours, such as `3 days ago`.
fn from_now(time: &str) -> String {
    let Ok(time) = humantime::parse_rfc3339(time) else { return String::new() };
    let now = SystemTime::now();
    let (distance, is_past) = match time.duration_since(now) {
        Ok(left) => (left, false),
        Err(passed) => (passed.duration(), true),
    };
    let hours = distance.as_secs() / 3600;
    if hours == 0 {
        let text = if is_past { "less than an hour ago" } else { "in less than an hour" };
        return text.to_owned();
    }
    let distance = if hours < 48 { Count(hours, "hour") } else { Count(hours / 24, "day") };
    if is_past { format!("{distance} ago") } else { format!("in {distance}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_in_time_are_in_hours_or_days() {
        let of = |time: SystemTime| from_now(&humantime::format_rfc3339(time).to_string());
        let hour = Duration::from_secs(3600);
        assert_eq!(of(SystemTime::now()), "less than an hour ago");
        assert_eq!(of(SystemTime::now() + hour / 2), "in less than an hour");
        assert_eq!(of(SystemTime::now() - hour), "1 hour ago");
        assert_eq!(of(SystemTime::now() - 72 * hour), "3 days ago");
        assert_eq!(of(SystemTime::now() + 49 * hour), "in 2 days");
    }
}
