//! How far a long command is, where a terminal shows it.

// indicatif: what cargo's own ecosystem shows progress with; it keeps quiet where there is no terminal.
use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// A bar that counts `what`.
    pub(super) fn new(what: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        let template = format!("{{bar:30}} {{pos}} of {{len}} {what}, {{eta}} to go");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So many are done, of so many.
    pub(super) fn is_at(&self, done: usize, all: usize) {
        self.0.set_length(all as u64);
        self.0.set_position(done as u64);
    }

    /// Write lines while the bar is away.
    pub(super) fn suspend(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }

    /// Take the bar away.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
