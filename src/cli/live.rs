//! The commands about live documents and sessions: `top`, `doc ID` and `doc ID --follow`.

use std::{
    io::{IsTerminal, stdout},
    time::Duration,
};

use hyper::Method;

use super::{
    CliError, print,
    relay::{Relay, RelayArguments},
    show,
    storage::StorageArguments,
};
use crate::{
    admin::client::AdminError,
    base::{document_id::DocumentId, text::is_invisible},
    sync::{
        follow::{Event, What},
        look::{LiveDocument, LiveSession, Top, TopDocument, TopSession},
    },
};

/// How often `top` looks again on a terminal.
const EVERY: Duration = Duration::from_secs(2);
/// Home, and erase what is below (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";
/// Hexadecimal digits by which a hash is known here.
const SHORT: usize = 8;

pub(super) fn top(relay: &RelayArguments, once: bool, json: bool) -> Result<(), CliError> {
    let mut relay = relay.running()?;
    let again = !once && !json && stdout().is_terminal();
    loop {
        let mut top: Top = relay.ask(Method::GET, "/top")?;
        if !again {
            show(json, &top, || describe_top(&top));
            return Ok(());
        }
        let (rows, columns) = terminal();
        // Besides the rows: three lines of titles, an empty one and the cursor's.
        let rows = rows.saturating_sub(6) / 2;
        top.documents.truncate(rows);
        top.sessions.truncate(rows);
        let text = describe_top(&top);
        let lines = text.lines().map(|line| line.chars().take(columns).collect::<String>());
        print(&format!("{CLEAR}{}", lines.collect::<Vec<_>>().join("\n")));
        std::thread::sleep(EVERY);
    }
}

/// Rows and columns.
fn terminal() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(stdout()) {
        Ok(size) if size.ws_row > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => (24, 80),
    }
}

fn describe_top(top: &Top) -> String {
    let mut text = "of the last minute: seconds of processor time, messages, bytes\n\n".to_owned();
    text.push_str(&format!(
        "{:<28} {:>7} {:>9} {:>9} {:>8} {:>9} {:>8} {:>5}\n",
        "DOCUMENT", "SECONDS", "MESSAGES", "BYTES", "SESSIONS", "STORED", "CHANGES", "QUEUE"
    ));
    for TopDocument { document, cost, sessions, bytes, changes, queue } in &top.documents {
        text.push_str(&format!(
            "{document:<28} {:>7.2} {:>9.0} {:>9} {sessions:>8} {:>9} {:>8} {queue:>5}\n",
            cost.seconds,
            cost.messages,
            size(cost.bytes as u64),
            bytes.map_or_else(|| "?".to_owned(), size),
            changes.map_or_else(|| "?".to_owned(), |changes| changes.to_string()),
        ));
    }
    text.push_str(&format!(
        "\n{:<28} {:>7} {:>9} {:>9} {:>9} {:>8}  {:<10} ADDRESS\n",
        "PEER", "SECONDS", "MESSAGES", "BYTES", "DOCUMENTS", "QUEUE", "CONNECTION"
    ));
    for TopSession { connection, peer, client, cost, documents, queue_bytes } in &top.sessions {
        text.push_str(&format!(
            "{:<28} {:>7.2} {:>9.0} {:>9} {documents:>9} {:>8}  {connection:<10} {}\n",
            printable(peer, 28),
            cost.seconds,
            cost.messages,
            size(cost.bytes as u64),
            size(*queue_bytes as u64),
            client.as_deref().unwrap_or("?"),
        ));
    }
    text
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// What a client called itself, without what would move the cursor.
pub(super) fn printable(text: &str, most: usize) -> String {
    text.chars().map(|c| if is_invisible(c) { '?' } else { c }).take(most).collect()
}

/// What a document's room says; none where there is none, or no relay runs.
pub(super) fn look(relay: &mut Relay, id: DocumentId) -> Result<Option<LiveDocument>, CliError> {
    match relay.ask(Method::GET, &format!("/documents/{id}/live")) {
        Ok(live) => Ok(Some(live)),
        Err(CliError::Admin(AdminError::Missing(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

fn short(heads: &[String]) -> String {
    let short = heads.iter().map(|head| head.get(..SHORT).unwrap_or(head));
    short.collect::<Vec<_>>().join(" ")
}

pub(super) fn describe(live: &LiveDocument) -> String {
    let mut text = format!("live         {}", live.state);
    if let Some(heads) = &live.heads {
        let is_saved = live.saved.as_ref() == Some(heads);
        let saved = if is_saved { "all of it saved" } else { "NOT all of it saved yet" };
        text.push_str(&format!(", heads {}, {saved}", short(heads)));
    }
    text.push('\n');
    for session in &live.sessions {
        let LiveSession { connection, peer, client, heads, waits, queue_bytes } = session;
        let stands = match (heads, &live.heads) {
            _ if *waits => "asked for it and waits".to_owned(),
            (Some(theirs), Some(ours)) if theirs == ours => "has all of it".to_owned(),
            (Some(theirs), _) if theirs.is_empty() => "has nothing of it".to_owned(),
            (Some(theirs), _) => format!("last said that it has {}", short(theirs)),
            (None, Some(_)) => "has not said what it has".to_owned(),
            (None, None) => "is here".to_owned(),
        };
        let client = client.as_deref().unwrap_or("?");
        let peer = printable(peer, 40);
        text.push_str(&format!("  {connection:<8} {peer} ({client}) {stands}"));
        if *queue_bytes > 0 {
            text.push_str(&format!(", {} wait to be read by it", size(*queue_bytes as u64)));
        }
        text.push('\n');
    }
    text
}

/// Say what happens to a document until the relay ends, or whoever reads has had enough.
pub(super) fn follow(id: DocumentId, arguments: &StorageArguments) -> Result<(), CliError> {
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
        // The stream has no other end.
        Err(CliError::Admin(AdminError::Http(_))) => {
            eprintln!("the relay has stopped");
            Ok(())
        }
        followed => followed,
    }
}

fn describe_event(Event { at, peer, connection, what }: &Event) -> String {
    let what = match what {
        What::Opened { heads } if heads.is_empty() => "opened: nothing of it is here".to_owned(),
        What::Opened { heads } => format!("opened at {}", short(heads)),
        What::Unloaded { reason } => format!("left memory: {reason}"),
        What::Joined => "is here".to_owned(),
        What::Left => "has left".to_owned(),
        What::Received { kind, bytes, heads, brings_changes } => {
            let changes = if *brings_changes { ", with changes" } else { "" };
            format!("sent {kind}, {bytes} bytes, {heads} heads{changes}")
        }
        What::Applied { new_changes: 0 } => {
            "nothing of it was new, or it waits for changes before it".to_owned()
        }
        What::Applied { new_changes } => format!("applied: {new_changes} new changes"),
        What::Refused { reason } => format!("REFUSED: {reason}"),
        What::Sent { kind, bytes } => format!("was sent {kind}, {bytes} bytes"),
        What::KeptBack => "reads slowly: it is told later".to_owned(),
        What::Saved { heads } => format!("saved at {}", short(heads)),
        What::Missed { events } => format!("{events} events came too fast to be told"),
    };
    let time = at.get(11..23).unwrap_or(at);
    let who = match (connection, peer) {
        (Some(connection), Some(peer)) => format!("{connection} {}", printable(peer, 40)),
        _ => "relay".to_owned(),
    };
    format!("{time}  {who:<32} {what}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_calls_itself_moves_no_cursor() {
        assert_eq!(printable("a\x1b[2Jb\n", 40), "a?[2Jb?");
        assert_eq!(printable("abcdef", 3), "abc");
    }
}
