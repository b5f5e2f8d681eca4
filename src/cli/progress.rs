//! The progress bar of long commands.

// indicatif is widely used for command line tools, and prints nothing if stderr is not a terminal.
use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar on a terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shows a bar that counts `what`.
    pub(super) fn new(what: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        let template = format!("{{bar:30}} {{pos}} of {{len}} {what}, {{eta}} to go");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Updates the bar: `done` of `total` are done.
    pub(super) fn set(&self, done: usize, total: usize) {
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
    }

    /// Hides the bar while `write` prints lines.
    pub(super) fn suspend(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }

    /// Removes the bar.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
