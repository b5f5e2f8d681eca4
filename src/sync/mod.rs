//! Synchronisation: the automerge-repo network protocol, version 1, over WebSocket.
//!
//! [`wire`] reads and writes its messages. [`sessions`] runs each WebSocket: handshake, routing by
//! document id, and what ends it ([`close_reason`]); [`truncating`] discards the middle of messages
//! that are too large, [`incoming`] reads the socket, `socket` writes it and checks that the peer is
//! alive, `flow` limits how fast a peer may send, `review` ends expired sign-ins. A [`session`] is
//! what the rest of the relay sees of one, with its [`outbound`] queue. [`peers`] knows all sessions;
//! [`rooms`] knows the live documents, each a [`room`] with an engine that synchronises it and the
//! [`ephemera`] that pass through; [`memory`] is what all of them may take. For operators, [`look`]
//! shows live documents and sessions, and [`follow`] what happens to one document.

pub mod activity;
pub mod build;
pub mod close_reason;
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
