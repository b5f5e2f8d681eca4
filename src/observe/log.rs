//! The log of the process: where lines go, recent warnings, and limits for repeated lines.

use std::{
    collections::{HashMap, VecDeque},
    env, io,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use tracing::{Event, Level, field::Field, warn};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterExt, LevelFilter, Targets, filter_fn},
    layer::{self, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

use crate::{
    base::lock::lock,
    config::{
        Log, LogFormat,
        levels::{BadLevel, filter, quiet},
    },
};

/// Lines that [`Repeats`] remembers; further ones are written without a limit.
const REMEMBERED: usize = 1024;

/// Warnings and errors that [`recent`] returns.
const RECENT: usize = 50;
static LAST: Mutex<VecDeque<RecentLine>> = Mutex::new(VecDeque::new());

/// A warning or an error in the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecentLine {
    /// The time, in RFC 3339.
    pub at: String,
    /// "WARN" or "ERROR".
    pub level: String,
    /// The message with its fields.
    pub text: String,
}

/// Returns the last warnings and errors of this process, the newest last.
pub fn recent() -> Vec<RecentLine> {
    lock(&LAST).iter().cloned().collect()
}

/// The layer that keeps the last warnings and errors.
struct RecentLines;

impl<S: tracing::Subscriber> Layer<S> for RecentLines {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        if *event.metadata().level() > Level::WARN {
            return;
        }
        let mut text = String::new();
        // The fields follow the message, as in the log.
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| match field.name() {
            "message" => text.insert_str(0, &format!("{value:?}")),
            name => text.push_str(&format!(" {name}={value:?}")),
        });
        let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut last = lock(&LAST);
        if last.len() == RECENT {
            last.pop_front();
        }
        last.push_back(RecentLine { at, level: event.metadata().level().to_string(), text });
    }
}

/// The handle that changes the log level at run time.
pub struct LogLevel(reload::Handle<Targets, Registry>);

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum LogError {
    #[error(transparent)]
    Level(#[from] BadLevel),
    #[error("log.format = \"journal\": the journal cannot be reached: {0}")]
    Journal(io::Error),
    #[error("the log is already set up: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up the log of this process.
///
/// # Errors
/// The level is invalid, or `log.format` is "journal" and the journal cannot be reached.
pub fn init(config: &Log) -> Result<LogLevel, LogError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let journal = match config.format {
        LogFormat::Journal => Some(tracing_journald::layer().map_err(LogError::Journal)?),
        LogFormat::Auto if is_stderr_the_journal() => tracing_journald::layer().ok(),
        _ => None,
    };
    let output: Box<dyn Layer<_> + Send + Sync> = match (journal, config.format) {
        (Some(journal), _) => Box::new(journal.with_field_prefix(Some("TONK".to_owned()))),
        (None, LogFormat::Json) => {
            Box::new(tracing_subscriber::fmt::layer().json().with_writer(io::stderr))
        }
        (None, _) => {
            // NO_COLOR: https://no-color.org
            let ansi = io::IsTerminal::is_terminal(&io::stderr())
                && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            Box::new(tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(ansi))
        }
    };
    // Amazon's crates log access keys, at any level. `And` combines the hints of both filters. If
    // one had none, the trace lines of all libraries would reach the filters.
    let ours = filter_fn(|metadata| !metadata.target().starts_with("aws_"))
        .with_max_level_hint(LevelFilter::TRACE);
    tracing_subscriber::registry()
        .with(output.with_filter(filter.and(ours.clone())))
        // Independent of the level of the log.
        .with(RecentLines.with_filter(quiet(LevelFilter::WARN).and(ours)))
        .try_init()?;
    Ok(LogLevel(handle))
}

/// Whether stderr is connected to the journal. systemd names the file that is in JOURNAL_STREAM,
/// which child processes inherit even if their stderr is another file (systemd.exec(5)).
fn is_stderr_the_journal() -> bool {
    let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|found| stream == format!("{}:{}", found.st_dev, found.st_ino))
}

impl LogLevel {
    /// Puts a filter into effect.
    pub fn set(&self, filter: Targets) {
        // It only fails without the subscriber, which lives as long as the process.
        if let Err(error) = self.0.reload(filter) {
            warn!("cannot change the log level: {error}");
        }
    }
}

/// Limits repeated lines: each is written once per window and client, with a count.
#[derive(Default)]
pub struct Repeats {
    lines: Mutex<HashMap<(String, &'static str), Line>>,
    window: Mutex<Duration>,
}

struct Line {
    since: Instant,
    held_back: u64,
}

impl Repeats {
    /// Returns a limiter that writes each line once per `window`.
    pub fn new(window: Duration) -> Self {
        Self { lines: Mutex::default(), window: Mutex::new(window) }
    }

    /// Sets a new window.
    pub fn set_window(&self, window: Duration) {
        *lock(&self.window) = window;
    }

    fn window(&self) -> Duration {
        *lock(&self.window)
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<(String, &'static str), Line>> {
        lock(&self.lines)
    }

    /// Returns how often `line` has occurred for `client` if it is to be written now, or `None` if
    /// it is held back.
    pub fn pass(&self, client: &str, line: &'static str) -> Option<u64> {
        let window = self.window();
        let mut lines = self.lines();
        let key = (client.to_owned(), line);
        if let Some(known) = lines.get_mut(&key) {
            if known.since.elapsed() < window {
                known.held_back += 1;
                return None;
            }
            let times = known.held_back + 1;
            *known = Line { since: Instant::now(), held_back: 0 };
            return Some(times);
        }
        if lines.len() < REMEMBERED {
            lines.insert(key, Line { since: Instant::now(), held_back: 0 });
        }
        Some(1)
    }

    /// Writes the lines that were held back and whose window is over. To be called once per window.
    pub fn flush(&self) {
        let window = self.window();
        self.lines().retain(|(client, line), known| {
            let over = known.since.elapsed() >= window;
            if over && known.held_back > 0 {
                warn!(client, reason = line, times = known.held_back, "repeated");
            }
            !over
        });
    }

    /// Flushes once per window. Runs forever.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(self.window()).await;
            self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_line_is_written_once_per_window_with_a_count() {
        let repeats = Repeats::new(Duration::from_millis(40));
        assert_eq!(repeats.pass("a", "garbage"), Some(1));
        assert_eq!(repeats.pass("a", "garbage"), None);
        assert_eq!(repeats.pass("a", "garbage"), None);
        assert_eq!(repeats.pass("b", "garbage"), Some(1), "another client");
        assert_eq!(repeats.pass("a", "text"), Some(1), "another line");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(repeats.pass("a", "garbage"), Some(3));
        std::thread::sleep(Duration::from_millis(50));
        repeats.flush();
        assert!(repeats.lines().is_empty());
    }
}
