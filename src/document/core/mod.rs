//! One live document and its peers: decides what follows from each event. No tokio, no I/O, no
//! clock.
//!
//! [`Core::step`](state::Core::step) applies a batch of events and returns effects. The caller
//! carries these out: it sends messages, stores chunks, and reports back with further events.
//!
//! | to find | look in |
//! |---|---|
//! | what goes in and what comes out | [`event`] |
//! | what is kept between steps | [`state`]; its parts in `peers`, `durability`, `chunks` |
//! | the order of work in a step; restoring a damaged document | `step` |
//! | what a peer's message does | `receive` |
//! | what is sent to whom, and from whom heads are withheld | `answer` |
//! | when and what is written, and what a write replaces | `write` |
//! | what other relays have stored, and what a store has lost | `stored` |
//! | compaction: when chunks are merged, or replaced by a snapshot | `chunks` |
//! | automerge's sync protocol, shared by peers in equal states | `exchange` |
//! | what a step will take, before it begins | [`cost`] |
//! | what is true after every step | `invariants` |
//! | the core under a faulty network, disk and process | `simulation` |
//!
//! # Heads mean durable changes
//! automerge-repo takes the heads in our sync messages as what our storage has. So heads are
//! withheld from a peer while something is not durable that the peer's messages brought or named.
//! Such a peer gets the changes of others at once, under heads that it may be told. All other peers
//! get changes with the document's heads.

mod answer;
mod chunks;
pub mod cost;
mod durability;
pub mod event;
mod exchange;
mod invariants;
mod peers;
mod receive;
#[cfg(test)]
mod simulation;
pub mod state;
mod step;
mod stored;
mod write;
