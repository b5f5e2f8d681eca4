//! What automerge's own functions take to receive the messages of an edit's writer and readers, and
//! to generate their answers. A server that computes an answer once for many peers may take less.

use std::time::{Duration, Instant};

use automerge::{
    Automerge,
    sync::{Message, State, SyncDoc},
};

use crate::client::{put, typed};

const EDITS: u64 = 20;

/// A client, and what the server knows of it.
struct Peer {
    doc: Automerge,
    state: State,
    at_server: State,
}

/// Returns the microseconds per delivered edit with this many readers, in a document with this many
/// letters.
pub(crate) fn micros_an_edit(readers: usize, letters: usize) -> f64 {
    let mut server = Automerge::new();
    let new = || Peer { doc: Automerge::new(), state: State::new(), at_server: State::new() };
    let mut peers: Vec<Peer> = (0..=readers).map(|_| new()).collect();
    let Some(writer) = peers.first_mut() else { return 0.0 };
    writer.doc = typed(letters);
    put(&mut writer.doc, 1);
    exchange(&mut server, &mut peers);
    let mut spent = Duration::ZERO;
    for n in 2..2 + EDITS {
        if let Some(writer) = peers.first_mut() {
            put(&mut writer.doc, n);
        }
        spent += exchange(&mut server, &mut peers);
    }
    spent.as_secs_f64() * 1e6 / (EDITS as f64 * readers as f64)
}

/// Sends all messages that there are to send. Returns what they took the server.
fn exchange(server: &mut Automerge, peers: &mut [Peer]) -> Duration {
    let (mut spent, mut is_quiet) = (Duration::ZERO, false);
    while !is_quiet {
        is_quiet = true;
        for Peer { doc, state, at_server } in &mut *peers {
            while let Some(message) = doc.generate_sync_message(state) {
                is_quiet = false;
                let bytes = message.encode();
                let start = Instant::now();
                let message = Message::decode(&bytes).expect("a message");
                server.receive_sync_message(at_server, message).expect("is received");
                spent += start.elapsed();
            }
            let start = Instant::now();
            let answer = server.generate_sync_message(at_server).map(Message::encode);
            spent += start.elapsed();
            if let Some(answer) = answer {
                is_quiet = false;
                let message = Message::decode(&answer).expect("a message");
                doc.receive_sync_message(state, message).expect("is received");
            }
        }
    }
    spent
}
