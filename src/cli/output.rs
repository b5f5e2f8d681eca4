//! What commands print, and how values look in it.

use std::{
    io::{self, ErrorKind, Write},
    time::Duration,
};

use serde::Serialize;

use crate::base::text::is_invisible;

/// Hexadecimal digits by which a hash is known here.
const SHORT: usize = 8;

/// What a command was asked for goes to stdout. Whoever reads it may have had enough of it.
pub(super) fn print(text: &str) {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("the answer cannot be written: {error}");
        }
        _ => {}
    }
}

/// Print an answer, as JSON or as a text.
pub(super) fn show(json: bool, answer: &impl Serialize, text: impl FnOnce() -> String) {
    print(&match json {
        true => format!("{}\n", serde_json::to_string_pretty(answer).unwrap_or_default()),
        false => text(),
    });
}

pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// What a client called itself, without what would move the cursor.
pub(super) fn printable(text: &str, most: usize) -> String {
    text.chars().map(|c| if is_invisible(c) { '?' } else { c }).take(most).collect()
}

pub(super) fn short(heads: &[String]) -> String {
    let short = heads.iter().map(|head| head.get(..SHORT).unwrap_or(head));
    short.collect::<Vec<_>>().join(" ")
}

pub(super) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// What could not be taken, and why.
#[derive(Debug, Serialize)]
pub(super) struct Refused {
    pub(super) place: String,
    pub(super) reason: String,
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
