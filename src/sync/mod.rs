//! Synchronization: the automerge-repo network protocol, version 1, over WebSocket.
//!
//! A [`session`] is a peer that has joined over one WebSocket; [`peers`] knows all of them.
//! [`incoming`] reads its socket and [`wire`] its messages; [`truncating`] discards the middle of
//! messages that are too large. What a session is sent waits in its [`outbound`] queue, which
//! `socket` writes; [`close_reason`] is why it ends. [`rooms`] are the live documents, each a
//! [`room`] with an engine that synchronizes it. [`memory`] is what all of them may take. For the
//! operator, [`inspect`] gathers a [`report`] of documents and sessions, and [`events`] are what
//! happens to one document.

pub mod activity;
pub mod build;
pub mod close_reason;
pub mod events;
pub mod incoming;
pub mod inspect;
pub mod memory;
pub mod outbound;
pub mod peers;
pub mod report;
pub mod room;
pub mod rooms;
pub mod session;
mod socket;
pub mod truncating;
pub mod wire;
