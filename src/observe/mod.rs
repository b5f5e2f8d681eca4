//! What the relay reports to its operator and to systemd, and the signals it receives.
//!
//! | to find | look in |
//! |---|---|
//! | every metric, with its name | [`metrics`] |
//! | what makes `/readyz` 503 | [`health`] |
//! | the log, and limits for repeated lines | [`log`] |
//! | what a room or a session costs | [`usage`] |
//! | notifications to systemd | [`systemd`] |
//! | SIGTERM, SIGINT and SIGHUP | [`signals`] |

pub mod health;
pub mod log;
pub mod metrics;
pub mod signals;
pub mod systemd;
pub mod usage;
