//! `tonk-relay top`

use std::{
    io::{IsTerminal, stdout},
    time::Duration,
};

use hyper::Method;

use super::{
    error::CliError,
    output::{print, printable, show, size},
    relay::RelayArguments,
};
use crate::sync::report::{Top, TopDocument, TopSession};

/// How often `top` looks again on a terminal.
const EVERY: Duration = Duration::from_secs(2);
/// Home, and erase what is below (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

pub(super) fn run(relay: &RelayArguments, once: bool, json: bool) -> Result<(), CliError> {
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
