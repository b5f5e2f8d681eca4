//! `tonk-relay doc ID`: what is stored of a document, and who has it open.

use hyper::Method;
use serde::Serialize;

use crate::{
    admin::client::AdminError,
    base::{document_id::DocumentId, text::Count},
    cli::{
        error::CliError,
        output::{byte_size, printable, short_hashes, show},
        relay::{Relay, StorageArguments},
    },
    storage::{
        inspect::Inspection,
        records::{Block, Quarantined},
    },
    sync::report::{LiveDocument, LiveElsewhere, LiveSession},
};

pub(super) fn run(id: DocumentId, arguments: &StorageArguments) -> Result<(), CliError> {
    let path = format!("/documents/{id}");
    let mut relay = arguments.relay.stored()?;
    let stored = relay.request::<Inspection>(Method::GET, &path);
    let live = read_live(&mut relay, id)?;
    let stored = match stored {
        // A live document may not be durable yet.
        Err(CliError::Admin(AdminError::Missing(_))) if live.is_some() => None,
        stored => Some(stored?),
    };
    let elsewhere = read_elsewhere(&mut relay, id)?;
    let report = InspectReport { stored, live, elsewhere };
    show(arguments.json, &report, || {
        let stored = report.stored.as_ref().map(describe_stored);
        let live = report.live.as_ref().map(describe_live);
        stored.unwrap_or_else(|| format!("document     {id}\nnothing of it is stored\n"))
            + &live.unwrap_or_default()
            + &describe_elsewhere(&report.elsewhere)
    });
    Ok(())
}

/// What the relay stores of a document, and who has it open.
#[derive(Serialize)]
struct InspectReport {
    #[serde(flatten)]
    stored: Option<Inspection>,
    /// The state of its room; none if it is not live.
    live: Option<LiveDocument>,
    /// Other relays of the same database that have it in memory.
    elsewhere: Vec<LiveElsewhere>,
}

fn describe_stored(document: &Inspection) -> String {
    let mut text = format!(
        "document     {}\nheads        {}\nchanges      {} by {}, the last {}\n\
         stored       {} in {}\n",
        document.document,
        document.heads.join(" "),
        document.changes,
        Count(document.actors, "actor"),
        document.last_change.as_deref().unwrap_or("at an unknown time"),
        Count(document.bytes, "byte"),
        Count(document.chunks.len(), "chunk"),
    );
    if let Some(Block { blocked_at, reason, .. }) = &document.blocked {
        let reason = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        text.push_str(&format!("blocked      since {blocked_at}{reason}\n"));
    }
    for chunk in &document.chunks {
        let fault = chunk.fault.as_ref().map(|fault| format!("  broken: {fault}"));
        let fault = fault.unwrap_or_default();
        text.push_str(&format!("  {:>9}  {}{fault}\n", chunk.bytes, chunk.key));
    }
    for entry in &document.quarantined {
        let Quarantined { path, bytes, reason, .. } = entry;
        text.push_str(&format!("  {bytes:>9}  in quarantine: {path}: {reason}\n"));
    }
    text
}

/// Reads the state of a document's room; none if it is not live, or no relay runs.
fn read_live(relay: &mut Relay, id: DocumentId) -> Result<Option<LiveDocument>, CliError> {
    match relay.request(Method::GET, &format!("/documents/{id}/live")) {
        Ok(live) => Ok(Some(live)),
        Err(CliError::Admin(AdminError::Missing(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads which other relays have a document in memory; none if no relay runs.
fn read_elsewhere(relay: &mut Relay, id: DocumentId) -> Result<Vec<LiveElsewhere>, CliError> {
    match relay.request(Method::GET, &format!("/documents/{id}/elsewhere")) {
        Err(CliError::Admin(AdminError::Missing(_))) => Ok(Vec::new()),
        answer => answer,
    }
}

fn describe_elsewhere(elsewhere: &[LiveElsewhere]) -> String {
    let line = |LiveElsewhere { relay, sessions }: &LiveElsewhere| {
        let relay = printable(relay, 40);
        format!("live at      {relay}, {}\n", Count(*sessions as usize, "session"))
    };
    elsewhere.iter().map(line).collect()
}

fn describe_live(live: &LiveDocument) -> String {
    let mut text = format!("live         {}", live.state);
    if let Some(heads) = &live.heads {
        let is_saved = live.saved.as_ref() == Some(heads);
        let saved = if is_saved { "all saved" } else { "NOT all saved yet" };
        text.push_str(&format!(", heads {}, {saved}", short_hashes(heads)));
    }
    text.push('\n');
    for session in &live.sessions {
        let LiveSession { connection, peer, client, heads, waits, queue_bytes } = session;
        let state = match (heads, &live.heads) {
            _ if *waits => "requested it and waits".to_owned(),
            (Some(theirs), Some(ours)) if theirs == ours => "has all changes".to_owned(),
            (Some(theirs), _) if theirs.is_empty() => "has no changes".to_owned(),
            (Some(theirs), _) => format!("last reported {}", short_hashes(theirs)),
            (None, Some(_)) => "has not reported what it has".to_owned(),
            (None, None) => "is here".to_owned(),
        };
        let client = client.as_deref().unwrap_or("?");
        let peer = printable(peer, 40);
        text.push_str(&format!("  {connection:<8} {peer} ({client}) {state}"));
        if *queue_bytes > 0 {
            text.push_str(&format!(", {} unsent", byte_size(*queue_bytes as u64)));
        }
        text.push('\n');
    }
    text
}
