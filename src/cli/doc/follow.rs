//! `tonk-relay doc ID --follow`: prints what happens to a document in the running relay.

use hyper::Method;

use crate::{
    admin::client::AdminError,
    base::{document_id::DocumentId, text::Count},
    cli::{
        error::CliError,
        output::{print, printable, short_hashes},
        relay::StorageArguments,
    },
    sync::events::{Event, What},
};

/// Prints what happens to a document until the relay stops or the command is interrupted.
pub(super) fn run(id: DocumentId, arguments: &StorageArguments) -> Result<(), CliError> {
    let mut relay = arguments.relay.running()?;
    let path = format!("/documents/{id}/events");
    let json = arguments.json;
    let followed = relay.lines(Method::GET, &path, |event: Event| {
        print(&match json {
            true => format!("{}\n", serde_json::to_string(&event).unwrap_or_default()),
            false => describe_event(&event),
        });
    });
    match followed {
        // The stream only ends with the relay.
        Err(CliError::Admin(AdminError::Http(_))) => {
            eprintln!("the relay has stopped");
            Ok(())
        }
        followed => followed,
    }
}

fn describe_event(Event { at, peer, connection, what }: &Event) -> String {
    let what = match what {
        What::Opened { heads } if heads.is_empty() => "opened: nothing of it is stored".to_owned(),
        What::Opened { heads } => format!("opened at {}", short_hashes(heads)),
        What::Unloaded { reason } => format!("left memory: {reason}"),
        What::Joined => "is here".to_owned(),
        What::Left => "has left".to_owned(),
        What::Received { kind, bytes, heads, brings_changes } => {
            let changes = if *brings_changes { ", with changes" } else { "" };
            format!("sent {kind}, {}, {}{changes}", Count(*bytes, "byte"), Count(*heads, "head"))
        }
        What::Applied { new_changes: 0 } => {
            "none of it was new, or it depends on changes that are missing".to_owned()
        }
        What::Applied { new_changes } => format!("applied: {}", Count(*new_changes, "new change")),
        What::Refused { reason } => format!("REFUSED: {reason}"),
        What::Sent { kind, bytes } => format!("was sent {kind}, {}", Count(*bytes, "byte")),
        What::KeptBack => "reads slowly: held back for it".to_owned(),
        What::Saved { heads } => format!("saved at {}", short_hashes(heads)),
        What::Missed { events } => {
            format!("{} left out: too many at a time", Count(*events, "event"))
        }
    };
    let time = at.get(11..23).unwrap_or(at);
    let who = match (connection, peer) {
        (Some(connection), Some(peer)) => format!("{connection} {}", printable(peer, 40)),
        _ => "relay".to_owned(),
    };
    format!("{time}  {who:<32} {what}\n")
}
