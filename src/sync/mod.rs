//! Synchronisation: the automerge-repo network protocol, version 1, over WebSocket.
//!
//! [`wire`] reads and writes its messages. [`session`] is one WebSocket: handshake, routing by document
//! id, liveness, [`outbound`] queue. [`peers`] knows all sessions; [`rooms`] knows the live documents, each
//! a [`room`] with an engine that synchronises it and the [`ephemera`] that pass through.

pub mod ephemera;
pub mod outbound;
pub mod peers;
pub mod room;
pub mod rooms;
pub mod session;
pub mod wire;
