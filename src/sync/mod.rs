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
//! | the messages of the protocol | [`wire`] |
//! | reading a socket, and how fast | [`incoming`] |
//! | a message that is too large: how its middle is discarded | [`truncating`] |
//! | ... and how it is refused: for its document | `session::route`, in `refuse_truncated` |
//! | ... if it is of no document, or far too large: with the session | `session::actor`, [`incoming`] |
//! | what waits to be sent; closing a reader for whom an urgent frame does not fit | [`outbound`] |
//! | writing a socket; closing a reader that reads nothing, or answers no ping | `socket` |
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
pub mod outbound;
pub mod peers;
pub mod report;
pub mod room;
pub mod rooms;
pub mod session;
mod socket;
pub mod truncating;
pub mod wire;
