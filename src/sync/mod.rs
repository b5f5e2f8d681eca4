//! Synchronization: the automerge-repo network protocol, version 1, over WebSocket.
//!
//! A session is a peer that has joined over one WebSocket. A room is a live document, with an
//! engine that synchronizes it.
//!
//! | to find | look in |
//! |---|---|
//! | one session: its rights, what it is charged, its end | [`session`], a table of its own |
//! | all sessions | [`peers`] |
//! | one document: who is in its room, its engine, when it unloads | [`room`], a table of its own |
//! | all rooms; entering one, and a panic in one | [`rooms`] |
//! | what rooms hear of other relays that share the store | `other_relays` |
//! | the messages of the protocol | [`wire`] |
//! | reading a socket, and how fast | [`incoming`] |
//! | a message that is too large: how its middle is discarded | [`truncating`] |
//! | ... refusing it for its document alone | `session::route`, in `refuse_truncated` |
//! | ... closing the session, if it has no document or is far too large | `session::actor` |
//! | what waits to be sent; closing a reader if something does not fit | [`outbound`] |
//! | writing a socket; closing a reader that reads nothing, or answers no ping | `socket` |
//! | ... a large message, in fragments | `writer` |
//! | why a connection is closed, with code and text | [`close_reason`] |
//! | the memory that all documents may take | [`memory`] |
//! | ... and unloading idle ones above it | `room::shared` |
//! | what an operator sees of documents and sessions | [`inspect`], [`report`], [`activity`] |
//! | what happens to one document, for those who follow it | [`events`] |
//! | wiring | [`build`] |

pub mod activity;
pub mod build;
pub mod close_reason;
pub mod events;
pub mod incoming;
pub mod inspect;
pub mod memory;
mod other_relays;
pub mod outbound;
pub mod peers;
pub mod report;
pub mod room;
pub mod rooms;
pub mod session;
mod socket;
pub mod truncating;
pub mod wire;
mod writer;
