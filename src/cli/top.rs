//! `tonk-relay top`: the documents and sessions that cost the running relay most.

use std::{
    io::{IsTerminal, stdout},
    time::Duration,
};

use hyper::Method;

use super::{
    error::CliError,
    output::{byte_size, print, printable, show},
    relay::RelayArguments,
};
use crate::sync::report::{Top, TopDocument, TopSession};

/// How often the display on a terminal is refreshed.
const REFRESH_EVERY: Duration = Duration::from_secs(2);
/// Moves the cursor to the top left corner and erases the screen (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

pub(super) fn run(relay: &RelayArguments, once: bool, json: bool) -> Result<(), CliError> {
    let mut relay = relay.running()?;
    let refreshes = !once && !json && stdout().is_terminal();
    loop {
        let mut top: Top = relay.request(Method::GET, "/top")?;
        if !refreshes {
            show(json, &top, || describe(&top));
            return Ok(());
        }
        let (rows, columns) = terminal_size();
        // The titles, an empty line and the cursor take six lines; each of the two tables gets half
        // of the rest.
        let rows = rows.saturating_sub(6) / 2;
        top.documents.truncate(rows);
        top.sessions.truncate(rows);
        let text = describe(&top);
        let lines = text.lines().map(|line| line.chars().take(columns).collect::<String>());
        print(&format!("{CLEAR}{}", lines.collect::<Vec<_>>().join("\n")));
        std::thread::sleep(REFRESH_EVERY);
    }
}

/// Rows and columns of the terminal.
fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(stdout()) {
        Ok(size) if size.ws_row > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => (24, 80),
    }
}

fn describe(top: &Top) -> String {
    let mut text = "in the last minute: seconds of CPU time, messages, bytes\n\n".to_owned();
    text.push_str(&format!(
        "{:<28} {:>7} {:>9} {:>9} {:>8} {:>9} {:>8} {:>5}{}\n",
        "DOCUMENT",
        "SECONDS",
        "MESSAGES",
        "BYTES",
        "SESSIONS",
        "STORED",
        "CHANGES",
        "QUEUE",
        if top.documents.iter().all(|top| top.elsewhere.is_empty()) { "" } else { "  ALSO AT" }
    ));
    for TopDocument { document, cost, sessions, bytes, changes, queue, elsewhere } in &top.documents
    {
        let also_at: Vec<String> =
            elsewhere.iter().map(|place| printable(&place.relay, 40)).collect();
        let also_at =
            if also_at.is_empty() { String::new() } else { format!("  {}", also_at.join(", ")) };
        text.push_str(&format!(
            "{document:<28} {:>7.2} {:>9.0} {:>9} {sessions:>8} {:>9} {:>8} {queue:>5}{also_at}\n",
            cost.seconds,
            cost.messages,
            byte_size(cost.bytes as u64),
            bytes.map_or_else(|| "?".to_owned(), byte_size),
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
            byte_size(cost.bytes as u64),
            byte_size(*queue_bytes as u64),
            client.as_deref().unwrap_or("?"),
        ));
    }
    text
}
