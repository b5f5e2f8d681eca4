//! What commands print, and how values are shown in it.

use std::{
    io::{self, ErrorKind, Write},
    time::Duration,
};

use serde::Serialize;

use crate::{
    base::text::{Count, is_invisible},
    storage::relay_report::{RelayReport, SeenRelay},
};

/// Hexadecimal digits that are shown of a hash.
const HASH_DIGITS: usize = 8;

/// Prints what a command was asked for to stdout. A reader that closes the pipe early, such as
/// `head`, is not an error.
pub(super) fn print(text: &str) {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("cannot write the output: {error}");
        }
        _ => {}
    }
}

/// Prints an answer, as JSON or as text.
pub(super) fn show(json: bool, answer: &impl Serialize, text: impl FnOnce() -> String) {
    print(&match json {
        true => format!("{}\n", serde_json::to_string_pretty(answer).unwrap_or_default()),
        false => text(),
    });
}

/// Prints a list, as JSON or as a line for each entry. That it is empty goes to stderr as `empty`,
/// so that a script that counts lines counts none.
pub(super) fn show_list<T: Serialize>(
    json: bool,
    entries: &[T],
    empty: &str,
    line: impl Fn(&T) -> String,
) {
    if entries.is_empty() && !json {
        eprintln!("{empty}");
    }
    show(json, &entries, || entries.iter().map(line).collect());
}

/// A size with its unit, such as `1.5 MiB`.
pub(super) fn byte_size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

pub(super) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The first `max_chars` characters of a text that a client chose, without those that would move
/// the cursor.
pub(super) fn printable(text: &str, max_chars: usize) -> String {
    text.chars().map(|c| if is_invisible(c) { '?' } else { c }).take(max_chars).collect()
}

/// Describes a relay of a group.
pub(super) fn describe_relay(relay: &SeenRelay) -> String {
    let SeenRelay { name, version, seen_seconds, report } = relay;
    let mut text = format!("{name}, version {version}, seen {seen_seconds} s ago");
    if let Some(RelayReport { sessions, documents, bundle, news_ms }) = report {
        let (sessions, documents) = (Count(*sessions, "session"), Count(*documents, "document"));
        text.push_str(&format!(", {sessions}, {documents} live"));
        match bundle.as_ref().and_then(|sha256| sha256.get(..12)) {
            Some(sha256) => text.push_str(&format!(", bundle {sha256}")),
            None => text.push_str(", no bundle"),
        }
        if let Some(news_ms) = news_ms {
            text.push_str(&format!(", news after {news_ms} ms"));
        }
    }
    text
}

/// The first digits of each hash.
pub(super) fn short_hashes(hashes: &[String]) -> String {
    let short = hashes.iter().map(|hash| hash.get(..HASH_DIGITS).unwrap_or(hash));
    short.collect::<Vec<_>>().join(" ")
}

/// A document, bundle or file that could not be processed, and why.
#[derive(Debug, Serialize)]
pub(super) struct Failure {
    pub(super) place: String,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn new(place: impl ToString, reason: impl ToString) -> Self {
        Self { place: place.to_string(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_replaces_control_characters_and_truncates() {
        assert_eq!(printable("a\x1b[2Jb\n", 40), "a?[2Jb?");
        assert_eq!(printable("abcdef", 3), "abc");
    }
}
