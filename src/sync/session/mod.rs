//! Sessions: peers that have joined over one WebSocket each.
//!
//! | to find | look in |
//! |---|---|
//! | what the rest of the relay holds of a session | [`handle`] |
//! | the session's own task: reading, closing, leaving | `actor` |
//! | the join message, and why a socket is refused | `handshake` |
//! | where each message goes | `route` |
//! | the documents that the session has open | `subscriptions` |
//! | how fast it may send | `rate_limit` |
//! | sign-ins that expire, and rights that change | `revalidate` |
//! | what all sessions share | [`shared`] |
//! | what they count in the metrics | [`counts`] |

mod actor;
pub mod counts;
pub mod handle;
mod handshake;
mod rate_limit;
mod revalidate;
mod route;
pub mod shared;
pub(crate) mod subscriptions;
