//! The phases of the process, as types: [`Loaded`] -> [`Bound`] -> [`Running`] -> [`Draining`]. Each step consumes the last
//! one.
//!
//! | to find | look in |
//! |---|---|
//! | opening storage and the bundle, binding listeners | `bind` |
//! | building the parts and starting every task | `start`, `tasks` |
//! | the drain: its order, its deadline, what names what is late | `drain` |
//! | why the relay did not start or end well | `error` |
//! | restarting tasks, and what their end means | [`supervisor`] |
//! | a changed config | [`reloader`] |
//! | whether what a config names can be used | [`preflight`], [`service`] |
//! | limits as metrics, the line for `systemctl status` | `report` |
//! | the relay's own test that it answers | [`watchdog`] |

mod bind;
mod drain;
mod error;
pub mod preflight;
pub mod reloader;
mod report;
pub mod service;
mod start;
pub mod supervisor;
mod tasks;
pub mod watchdog;

pub use self::{
    bind::{Bound, Loaded},
    drain::{Draining, Running},
    error::AppError,
};
