//! One room: who is in it, what it is sent, its document, and the task that runs it.
//!
//! | to find | look in |
//! |---|---|
//! | which rooms there are, and which sessions are in them | [`directory`] |
//! | who is in one room, and what each member waits for | [`members`] |
//! | what a room is sent | [`input`] |
//! | the way into a room | [`mailbox`] |
//! | how a room opens, reopens and leaves the directory | `task` |
//! | when an idle room unloads | `live` |
//! | evicting all idle rooms when memory is short | [`shared`] |
//! | what happens when a room's task panics | `Rooms::abandon` in `sync::rooms` |
//! | what a room does while its document is loaded | `opening` |
//! | what it does with an engine | `live` |
//! | ... sending subscribers the durable heads; "unavailable" to those nobody answered | `answers` |
//! | what it does while nobody has brought the document | `unknown` |
//! | ... and the earliest time at which it answers so | `grace` |
//! | what it does while nobody may have the document | `refused` |
//! | what these states have in common | [`state`] |
//! | what all rooms share, such as permits to load a document | [`shared`] |
//! | what a room needs of the part that synchronizes | [`engine`] |
//! | that part on automerge itself, and on a `samod::Repo` | [`native`], [`samod`] |
//! | the engine's way to a member | [`port`] |
//! | changes that were received and are not durable | [`pending`] |
//! | acknowledgements, which do not wake the room | `delayed` |
//! | passing presence on, each message once | `presence`, [`seen`] |

mod answers;
mod delayed;
pub mod directory;
pub mod engine;
mod grace;
pub mod input;
mod live;
pub mod mailbox;
pub mod members;
pub mod native;
mod opening;
pub mod pending;
pub mod port;
pub(super) mod presence;
mod refused;
pub mod samod;
pub mod seen;
pub mod shared;
pub mod state;
mod task;
#[cfg(test)]
mod tests;
pub(super) mod unknown;
