//! The phases of the process, as types: [`Loaded`] -> [`Bound`] -> [`Running`] -> [`Draining`].
//! Each phase consumes the one before.
//!
//! | to find | look in |
//! |---|---|
//! | the order of the phases, from the start to the exit | `cli::daemon`, in `serve_with` |
//! | binding listeners, then opening storage and the bundle | `bind` |
//! | building the parts and starting them | `start` |
//! | every supervised task | `tasks` |
//! | the drain: its order, its deadline, the report of what is late | `drain` |
//! | why the relay did not start or end well | `error` |
//! | restarting tasks, and tasks whose end is fatal | [`supervisor`] |
//! | applying a changed config | [`reloader`] |
//! | whether the files that a config names can be used | [`preflight`], [`service`] |
//! | limits as metrics, the line for `systemctl status` | `report` |
//! | the relay's test of itself | [`watchdog`] |

mod bind;
mod drain;
mod error;
pub mod preflight;
pub mod reloader;
mod report;
pub mod service;
mod shared_tokens;
mod start;
pub mod supervisor;
mod tasks;
pub mod watchdog;

pub use self::{
    bind::{Addresses, Bound, Loaded},
    drain::{Draining, Running},
    error::AppError,
};
