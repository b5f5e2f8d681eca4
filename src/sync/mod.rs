//! Synchronisation: the automerge-repo network protocol, version 1, over WebSocket.
//!
//! [`wire`] reads and writes its messages. [`sessions`] runs each WebSocket: handshake, routing by document
//! id, what ends it; [`truncating`] keeps messages that are too large from the socket, [`incoming`] reads it, `socket` writes it and looks after it, `flow` is how fast one may send,
//! `review` the end of sign-ins. A [`session`] is what the rest of the relay sees of one, with its [`outbound`] queue. [`peers`] knows
//! all sessions; [`rooms`] knows the live documents, each a [`room`] with an engine that synchronises it and the
//! [`ephemera`] that pass through; [`memory`] is what all of them may take, and in [`turns`] they take long work to the processors. For the operator, [`look`] is what can be
//! seen of live documents and sessions, and [`follow`] what happens to one document.

pub mod activity;
pub mod build;
pub mod ephemera;
mod flow;
pub mod follow;
pub mod incoming;
pub mod look;
pub mod memory;
pub mod outbound;
pub mod peers;
mod review;
pub mod room;
pub mod rooms;
pub mod session;
pub mod sessions;
mod socket;
pub mod truncating;
pub mod wire;
