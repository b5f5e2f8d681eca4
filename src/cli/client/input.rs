//! Lines of standard input.

use std::io::{self, BufRead, Read};

use tokio::sync::mpsc;

/// Lines that are read ahead.
const READ_AHEAD: usize = 16;
/// The longest line, in bytes. A longer one is split.
const MAX_LINE: u64 = 8 << 20;

/// Starts to read lines. The channel closes at the end of input.
pub(super) fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    // A thread of its own: nothing can end a read that waits for a terminal.
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match (&mut input).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if sender.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
