//! The steps of a connection.

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use super::error::Late;

/// Time limit of a step.
pub(in crate::cli) const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// A step that has succeeded.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Step {
    pub(in crate::cli) step: &'static str,
    /// What was found.
    pub(in crate::cli) text: String,
    /// How long it took, if it was measured.
    pub(in crate::cli) seconds: Option<f64>,
}

impl Step {
    pub(in crate::cli) fn new(step: &'static str, text: String, took: Option<Duration>) -> Self {
        Self { step, text, seconds: took.map(|took| took.as_secs_f64()) }
    }
}

/// Waits for what a step does, at most for the time `limit`.
pub(in crate::cli) async fn within<T>(
    limit: Duration,
    step: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, Late> {
    timeout(limit, work).await.map_err(|_| Late { step, limit })
}
