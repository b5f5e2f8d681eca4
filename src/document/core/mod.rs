//! The core of a room: a pure function from events to effects. No I/O, no clock.

pub mod cost;
pub mod event;
mod exchange;
#[cfg(test)]
mod simulation;
pub mod state;
