//! What relays that share a store say about themselves.

use serde::{Deserialize, Serialize};

use crate::base::text::is_invisible;

/// What a relay says about itself every few seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayReport {
    /// Its open WebSockets.
    pub sessions: u64,
    /// The documents in its memory.
    pub documents: u64,
    /// The SHA-256 of the bundle that it serves, if it serves one.
    pub bundle: Option<String>,
    /// The longest time that news of another relay took to reach it after a hint since its last
    /// report, in milliseconds. None if there were none.
    pub news_ms: Option<u64>,
}

/// A relay, as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRelay {
    /// Its peer id, which names it to clients, too.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How many seconds ago it was last there.
    pub seen_seconds: u64,
    /// Its last report. None from a relay of an older version, or one that has just started.
    pub report: Option<RelayReport>,
}

impl SeenRelay {
    /// Reads what a relay has reported as JSON. Another relay has chosen all of it, and it is shown
    /// on terminals.
    pub fn new(name: &str, version: &str, seen_seconds: f64, report: Option<&str>) -> Self {
        let visible = |text: &str| text.chars().filter(|c| !is_invisible(*c)).collect();
        let report = report.and_then(|report| serde_json::from_str(report).ok());
        let report = report.map(|report: RelayReport| RelayReport {
            bundle: report.bundle.as_deref().map(visible),
            ..report
        });
        let seen_seconds = seen_seconds.max(0.0) as u64;
        Self { name: visible(name), version: visible(version), seen_seconds, report }
    }
}
