//! Sessions: peers that have joined over one WebSocket each.
//!
//! [`handle`] is what the rest of the relay holds of a session. Its task is the `actor`: after the `handshake` it
//! reads messages and passes each to `route`, which sends it to the room of its document; `subscriptions` are the
//! documents that it has open. `rate_limit` is how fast it may send, `revalidate` checks the rights of open
//! sessions again, and [`shared`] is what all sessions share.

mod actor;
pub mod handle;
mod handshake;
mod rate_limit;
mod revalidate;
mod route;
pub mod shared;
pub(crate) mod subscriptions;
