//! `tonk-relay status`: asks the running relay for its state.

use std::time::Duration;

use hyper::Method;

use super::{error::CliError, output::show, relay::RelayArguments};
use crate::admin::status::Status;

pub(super) fn run(relay: &RelayArguments, json: bool) -> Result<(), CliError> {
    let status: Status = relay.running()?.request(Method::GET, "/status")?;
    show(json, &status, || describe(&status));
    Ok(())
}

fn describe(status: &Status) -> String {
    let bundle = match (&status.bundle_sha256, status.bundle_documents) {
        (Some(sha256), Some(documents)) => format!("{documents} documents, sha256 {sha256}"),
        _ => "none".to_owned(),
    };
    let mut text = format!(
        "tonk-relay {} (pid {}), {} for {}\n\
         ready        {}\n\
         connections  {} ({} peers)\n\
         documents    {} live, {} waited for\n\
         unsaved      {} bytes\n\
         bundle       {bundle}\n",
        status.version,
        status.pid,
        status.phase.name(),
        humantime::format_duration(Duration::from_secs(status.uptime_seconds)),
        if status.ready { "yes" } else { "no" },
        status.connections,
        status.peers,
        status.documents_live,
        status.documents_waited_for,
        status.unsaved_bytes,
    );
    if status.quarantined > 0 {
        let quarantined = status.quarantined;
        text.push_str(&format!(
            "quarantine   {quarantined} files that do not parse: `tonk-relay quarantine list`\n"
        ));
    }
    if status.blocked > 0 {
        text.push_str(&format!(
            "blocked      {} documents: `tonk-relay doc blocked`\n",
            status.blocked
        ));
    }
    for line in &status.failed {
        text.push_str(&format!("failed       {line}\n"));
    }
    for line in &status.degraded {
        text.push_str(&format!("degraded     {line}\n"));
    }
    text
}
