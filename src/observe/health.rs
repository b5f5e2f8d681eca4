//! What the relay can promise right now, for `/livez`, `/readyz`, `status` and systemd's status line.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};

use crate::base::lock::lock;

/// The state of every check.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Writes that have failed and are being tried again.
    failing_writes: usize,
    storage_fault: String,
    /// Documents that cannot be read and are tried again.
    unreadable: usize,
    read_fault: String,
    /// Checks that are not met although sync can be promised.
    degraded: BTreeMap<&'static str, String>,
}

/// Where the process is between its start and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not ready yet.
    #[default]
    Starting,
    /// Serving.
    Running,
    /// Finishing what was begun.
    Draining,
}

impl Phase {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
        }
    }
}

/// One look at the health.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether sync can be promised.
    pub ready: bool,
    /// The phase.
    pub phase: Phase,
    /// Why not, where it cannot be promised.
    pub failed: BTreeMap<&'static str, String>,
    /// What is amiss besides.
    pub degraded: BTreeMap<&'static str, String>,
}

/// A line for each check, with its reason.
pub fn lines(checks: &BTreeMap<&'static str, String>) -> Vec<String> {
    checks.iter().map(|(check, reason)| format!("{check}: {reason}")).collect()
}

/// A write that is failing, for as long as this lives.
#[derive(Debug)]
pub struct FailingWrite(Arc<Health>);

/// A document that cannot be read, for as long as this lives.
#[derive(Debug)]
pub struct Unreadable(Arc<Health>);

impl Health {
    /// The names of all checks, so that each has a metric from the start.
    pub const CHECKS: [&str; 10] = [
        "auth",
        "bundle",
        "bundles",
        "documents",
        "keys",
        "phase",
        "reload",
        "space",
        "storage",
        "tls",
    ];

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The process has come to `phase`.
    pub fn enter(&self, phase: Phase) {
        self.state().phase = phase;
    }

    /// A write fails, for as long as what this returns is kept.
    pub fn storage_fails(self: &Arc<Self>, fault: &str) -> FailingWrite {
        let mut state = self.state();
        state.failing_writes += 1;
        state.storage_fault = fault.to_owned();
        FailingWrite(self.clone())
    }

    /// A document cannot be read, for as long as what this returns is kept. The others can be served.
    pub fn document_unreadable(self: &Arc<Self>, fault: &str) -> Unreadable {
        let mut state = self.state();
        state.unreadable += 1;
        state.read_fault = fault.to_owned();
        Unreadable(self.clone())
    }

    /// Note that `check` is not met, or with `None` that it is met again.
    pub fn degrade(&self, check: &'static str, reason: Option<String>) {
        let mut state = self.state();
        match reason {
            Some(reason) => state.degraded.insert(check, reason),
            None => state.degraded.remove(check),
        };
    }

    /// How it stands.
    pub fn report(&self) -> Report {
        let state = self.state();
        debug_assert!(state.degraded.keys().all(|check| Self::CHECKS.contains(check)));
        let mut failed = BTreeMap::new();
        match state.phase {
            Phase::Starting => _ = failed.insert("phase", "starting".to_owned()),
            Phase::Draining => _ = failed.insert("phase", "draining".to_owned()),
            Phase::Running => {}
        }
        if state.failing_writes > 0 {
            failed.insert("storage", state.storage_fault.clone());
        }
        let mut degraded = state.degraded.clone();
        if state.unreadable > 0 {
            let text = format!("{} cannot be read: {}", state.unreadable, state.read_fault);
            degraded.insert("documents", text);
        }
        Report { ready: failed.is_empty(), phase: state.phase, failed, degraded }
    }
}

impl Drop for FailingWrite {
    fn drop(&mut self) {
        self.0.state().failing_writes -= 1;
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        self.0.state().unreadable -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_running_and_durable() {
        let health = Arc::new(Health::default());
        assert!(!health.report().ready);
        health.enter(Phase::Running);
        assert!(health.report().ready);

        let (one, two) = (health.storage_fails("no space"), health.storage_fails("no space"));
        assert_eq!(health.report().failed["storage"], "no space");
        drop(one);
        assert!(!health.report().ready, "another write still fails");
        drop(two);
        assert!(health.report().ready);

        health.degrade("bundle", Some("broken".into()));
        let report = health.report();
        assert!(report.ready && report.degraded["bundle"] == "broken");
        health.degrade("bundle", None);
        let unreadable = health.document_unreadable("an I/O error");
        let report = health.report();
        assert!(report.ready && report.degraded["documents"] == "1 cannot be read: an I/O error");
        drop(unreadable);
        assert!(health.report().degraded.is_empty());
        health.enter(Phase::Draining);
        assert_eq!(health.report().failed["phase"], "draining");
    }
}
