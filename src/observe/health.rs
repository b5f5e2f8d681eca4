//! The health of the relay, for `/readyz`, `status`, metrics and the status line of systemd.

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
    /// Writes that have failed and are retried.
    failing_writes: usize,
    storage_fault: String,
    /// Documents that cannot be read and are retried.
    unreadable: usize,
    read_fault: String,
    /// Failed checks that do not make the relay unready, with their reasons.
    degraded: BTreeMap<&'static str, String>,
}

/// A phase of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not ready yet.
    #[default]
    Starting,
    /// Serving.
    Running,
    /// Finishing what has begun.
    Draining,
}

impl Phase {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
        }
    }
}

/// The health at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether the relay syncs and can make changes durable.
    pub ready: bool,
    /// The phase.
    pub phase: Phase,
    /// Failed checks that make it unready, with their reasons.
    pub failed: BTreeMap<&'static str, String>,
    /// Other failed checks, with their reasons.
    pub degraded: BTreeMap<&'static str, String>,
}

/// Returns a line for each check, with its reason.
pub fn lines(checks: &BTreeMap<&'static str, String>) -> Vec<String> {
    checks.iter().map(|(check, reason)| format!("{check}: {reason}")).collect()
}

/// A failing write. The relay is unready until this is dropped.
#[derive(Debug)]
pub struct FailingWrite(Arc<Health>);

/// A document that cannot be read. The relay is degraded until this is dropped.
#[derive(Debug)]
pub struct Unreadable(Arc<Health>);

impl Health {
    /// The names of all checks. Each has a metric from the start.
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

    /// Records that the process has entered `phase`.
    pub fn enter_phase(&self, phase: Phase) {
        self.state().phase = phase;
    }

    /// Reports a failing write until the result is dropped.
    pub fn failing_write(self: &Arc<Self>, fault: &str) -> FailingWrite {
        let mut state = self.state();
        state.failing_writes += 1;
        state.storage_fault = fault.to_owned();
        FailingWrite(self.clone())
    }

    /// Reports a document that cannot be read until the result is dropped. Other documents are
    /// served.
    pub fn unreadable_document(self: &Arc<Self>, fault: &str) -> Unreadable {
        let mut state = self.state();
        state.unreadable += 1;
        state.read_fault = fault.to_owned();
        Unreadable(self.clone())
    }

    /// Records why `check` fails, or with `None` that it passes again.
    pub fn set_degraded(&self, check: &'static str, reason: Option<String>) {
        let mut state = self.state();
        match reason {
            Some(reason) => state.degraded.insert(check, reason),
            None => state.degraded.remove(check),
        };
    }

    /// Returns the current health.
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
    fn the_relay_is_ready_while_it_runs_and_no_write_fails() {
        let health = Arc::new(Health::default());
        assert!(!health.report().ready);
        health.enter_phase(Phase::Running);
        assert!(health.report().ready);

        let (one, two) = (health.failing_write("no space"), health.failing_write("no space"));
        assert_eq!(health.report().failed["storage"], "no space");
        drop(one);
        assert!(!health.report().ready, "another write still fails");
        drop(two);
        assert!(health.report().ready);

        health.set_degraded("bundle", Some("broken".into()));
        let report = health.report();
        assert!(report.ready && report.degraded["bundle"] == "broken");
        health.set_degraded("bundle", None);
        let unreadable = health.unreadable_document("an I/O error");
        let report = health.report();
        assert!(report.ready && report.degraded["documents"] == "1 cannot be read: an I/O error");
        drop(unreadable);
        assert!(health.report().degraded.is_empty());
        health.enter_phase(Phase::Draining);
        assert_eq!(health.report().failed["phase"], "draining");
    }
}
