//! `tonk-relay cluster status`: shows the database of a relay.

use std::time::Duration;

use super::ConfigArguments;
use crate::{
    cli::{
        error::CliError,
        output::{byte_size, describe_relay, show},
    },
    storage::postgres::{self, report::Report},
};

pub(super) fn run(arguments: &ConfigArguments, json: bool) -> Result<(), CliError> {
    let configured = arguments.read()?;
    let database = &configured.database;
    let found = configured.as_relay(|| postgres::report(database, configured.cluster()))?;
    let report = found.map_err(|error| {
        CliError::Problem(format!("cannot use the database {database}: {error}"))
    })?;
    show(json, &report, || describe(&report));
    if report.problems.is_empty() { Ok(()) } else { Err(CliError::Reported(1)) }
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<12} {value}\n"));
    row("database", report.database.clone());
    row("server", format!("PostgreSQL {}, since {}", report.server, report.started_at));
    for relay in &report.relays {
        row("relay", describe_relay(relay));
    }
    if report.relays.is_empty() {
        row("relays", "none was seen within the last minute".to_owned());
    }
    row(
        "tables",
        match report.format {
            None => "cannot be read".to_owned(),
            Some(0) => "none yet: `tonk-relay cluster init` makes them".to_owned(),
            Some(format) => {
                format!("version {format} (this program uses {})", report.needed_format)
            }
        },
    );
    for setting in &report.durability {
        let value = if setting.value.is_empty() { "not set" } else { &setting.value };
        row("setting", format!("{} = {value}", setting.name));
    }
    for standby in &report.standbys {
        let postgres::report::Standby { name, kind, behind_bytes } = standby;
        let behind = byte_size(u64::try_from(*behind_bytes).unwrap_or(0));
        row("standby", format!("{name} {kind}, {behind} behind"));
    }
    if report.standbys.is_empty() {
        row("standbys", "none is connected".to_owned());
    }
    let (used, most) = report.connections;
    row("connections", format!("{used} of {most} on the server"));
    row("size", byte_size(u64::try_from(report.bytes).unwrap_or(0)));
    let (live, dead) = report.chunks;
    row("chunks", format!("about {live}, and {dead} dead rows"));
    let oldest = Duration::from_secs(u64::try_from(report.oldest_transaction).unwrap_or(0));
    let seen = match report.sees_all {
        true => "on the server",
        false => "with this role (`grant pg_read_all_stats` to it shows all, and the standbys)",
    };
    row("transaction", format!("open for {} at most, {seen}", humantime::format_duration(oldest)));
    for problem in &report.problems {
        row("amiss", problem.clone());
    }
    text
}
