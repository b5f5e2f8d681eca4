//! What `ping` finds, printed step by step or as JSON.

use std::cell::RefCell;

use serde::Serialize;

use super::error::PingError;
use crate::cli::{connect::step::Step, output::print};

/// The steps so far.
pub(super) struct Report {
    json: bool,
    steps: RefCell<Vec<Step>>,
}

/// The whole report, as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    url: &'a str,
    ok: bool,
    steps: &'a [Step],
    /// Why the next step failed.
    error: Option<String>,
}

impl Report {
    /// A report that prints each step at once, or all of them as JSON at its end.
    pub(super) fn new(json: bool) -> Self {
        Self { json, steps: RefCell::default() }
    }

    pub(super) fn add(&self, step: Step) {
        if !self.json {
            print(&format!("{:<12} {}\n", step.step, step.text));
        }
        self.steps.borrow_mut().push(step);
    }

    /// Prints the JSON.
    pub(super) fn end(&self, url: &str, result: &Result<(), PingError>) {
        if self.json {
            let error = result.as_ref().err().map(ToString::to_string);
            let report = Printed { url, ok: error.is_none(), steps: &self.steps.borrow(), error };
            print(&format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default()));
        }
    }
}
