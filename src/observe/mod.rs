//! What the relay tells its operator: metrics, health, the log and what systemd is told; and what
//! signals ask of it.

pub mod health;
pub mod log;
pub mod metrics;
pub mod signals;
pub mod systemd;
pub mod usage;
