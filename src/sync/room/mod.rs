//! One room: who is in it, what it is sent, its document, and the task that runs it.
//!
//! `task` runs a room through its states: `opening`, `live` with an engine, `unknown` while nobody has brought
//! the document, `refused` while nobody may have it; [`state`] is what they have in common. Everything that a room is sent arrives in its [`mailbox`], in
//! order; [`members`] is who is in it, and [`directory`] which rooms there are. [`engine`] is what a room needs of the
//! part that synchronizes: [`native`] does it on automerge itself, [`samod`] through a `samod::Repo`. [`port`] is the
//! engine's way to a member, [`pending`] what was received and is not durable, [`presence`] what passes through, and
//! [`shared`] what all rooms share.

mod answers;
pub mod directory;
pub mod engine;
mod grace;
mod live;
pub mod mailbox;
pub mod members;
pub mod native;
mod opening;
pub mod pending;
pub mod port;
pub mod presence;
mod refused;
pub mod samod;
pub mod shared;
pub mod state;
mod task;
#[cfg(test)]
mod tests;
mod unknown;
