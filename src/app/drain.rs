//! The last phases: serving until a signal, and the drain.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use super::{
    error::AppError,
    reloader::Reloader,
    supervisor::{Supervisor, TaskEnded},
};
use crate::{
    auth::Auth,
    base::{blocking, lock::lock, run_to_completion::RunToCompletion, text::Count},
    bundle::import::Importer,
    config::Config,
    observe::{
        health::{Health, Phase},
        metrics::ProcessMetrics,
        signals::Request,
        systemd,
    },
    storage::{local::journal::Journal, open::OpenedStorage, store::Store},
    sync::{build::Sync, close_reason::CloseReason},
};

/// A drain spreads the closing of sockets, because clients reconnect after a fixed interval: the
/// time for each socket, and the most for all of them.
const STAGGER: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(5));
/// Terminals, GNU `timeout` and npm send a signal twice within milliseconds. A second signal only
/// ends the relay at once if it arrives at least this long after the first.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_secs(1);

/// How long requests may take to finish once all documents are durable.
const HTTP_GRACE: Duration = Duration::from_secs(5);
/// How long the last files may take to be written and removed.
const CLEANUP: Duration = Duration::from_secs(2);
/// How much longer systemd waits than the relay, so that the relay still logs what was late.
const SYSTEMD_WAITS_LONGER: Duration = Duration::from_secs(5);

/// A relay that serves.
pub struct Running {
    parts: Parts,
    requests: mpsc::Receiver<Request>,
}

impl Running {
    pub(super) fn new(parts: Parts, requests: mpsc::Receiver<Request>) -> Self {
        Self { parts, requests }
    }

    /// Serves until a signal requests a stop, or an essential task ends.
    pub async fn serve(mut self) -> Draining {
        let cause = loop {
            tokio::select! {
                Some(request) = self.requests.recv() => match request {
                    // Not awaited: reading a large bundle must not delay a stop. The outcome is in
                    // the log, the metrics and the status line.
                    Request::Reload => drop(self.parts.reloader.start()),
                    Request::Stop => break None,
                },
                ended = self.parts.supervisor.failed() => break Some(ended),
            }
        };
        if let Some(ended) = &cause {
            error!("a task that the relay needs has ended; stopping: {ended}");
        }
        Draining { parts: self.parts, requests: self.requests, cause }
    }
}

/// A relay that finishes what has begun.
pub struct Draining {
    parts: Parts,
    requests: mpsc::Receiver<Request>,
    cause: Option<TaskEnded>,
}

impl Draining {
    /// Closes every session, makes every document durable, and ends.
    ///
    /// # Errors
    /// The drain was caused by the end of a task, did not finish in time, or was ended by a second
    /// signal.
    pub async fn finish(mut self) -> Result<(), AppError> {
        let parts = &self.parts;
        let limit = parts.config.borrow().drain_timeout;
        let start = Instant::now();
        let connections = parts.sync.sessions.peers.len();
        info!(
            connections,
            "draining: {}; a second signal ends the relay at once",
            Count(connections, "connection")
        );
        parts.health.enter_phase(Phase::Draining);
        parts.metrics.ready.set(0);
        systemd::stopping(limit.0 + SYSTEMD_WAITS_LONGER, "Draining");

        let finished = tokio::select! {
            finished = timeout(limit.0, parts.drain(limit.0)) => finished.is_ok(),
            () = show_drain(start, &parts.metrics) => false,
            () = second_stop(start, &mut self.requests) => return Err(AppError::Quit(parts.late())),
        };
        parts.stopping.cancel();
        let (auth, sockets) = (parts.sync.sessions.auth.clone(), parts.sockets.clone());
        // A disk that hangs must not keep the process alive.
        if timeout(CLEANUP, blocking::run(move || clean_up(&auth, &sockets))).await.is_err() {
            warn!("the last use of tokens was not saved within {CLEANUP:?}");
        }
        if !finished {
            return Err(AppError::Late { timeout: limit, late: parts.late() });
        }
        info!(seconds = start.elapsed().as_secs_f64(), "all documents are durable");
        self.cause.take().map_or(Ok(()), |cause| Err(cause.into()))
    }
}

/// The parts of a running relay.
pub(super) struct Parts {
    pub(super) metrics: ProcessMetrics,
    pub(super) health: Arc<Health>,
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) supervisor: Supervisor,
    pub(super) reloader: Arc<Reloader>,
    pub(super) storage: OpenedStorage,
    pub(super) importer: Arc<Importer>,
    pub(super) sync: Sync,
    /// Tracks connections of the public port that are not sessions.
    pub(super) http_running: TaskTracker,
    /// Work that requests of both ports have begun and that finishes without them.
    pub(super) unfinished: RunToCompletion,
    /// Ends all tasks but the public port's.
    pub(super) stopping: CancellationToken,
    /// The admin port's Unix sockets.
    pub(super) sockets: Vec<PathBuf>,
    /// The current step of the drain.
    pub(super) step: Mutex<Step>,
}

impl Parts {
    async fn drain(&self, limit: Duration) {
        let start = tokio::time::Instant::now();
        self.enter(Step::Connections);
        self.sync.draining.cancel();
        let end_sessions = async {
            self.close_sessions(start, limit / 3).await;
            self.sync.running.close();
            self.sync.running.wait().await;
        };
        // The client of a socket that is late has not been told that its last edits are saved, and
        // sends them again.
        if timeout_at(start + limit / 2, end_sessions).await.is_err() {
            let connections = self.sync.running.len();
            info!(connections, "cutting off connections that did not close in time");
        }
        self.enter(Step::Documents);
        self.sync.rooms.stop().await;
        self.enter(Step::Import);
        self.importer.stop().await;
        if let Some(journal) = &self.storage.journal {
            self.enter(Step::Checkpoint);
            checkpoint(journal, start + limit * 2 / 3).await;
        }
        self.enter(Step::Requests);
        // Requests end last, so that a client that reads its download slowly or sends nothing does
        // not delay the documents.
        self.http_running.close();
        let ended = async {
            self.http_running.wait().await;
            self.unfinished.finish().await;
            // Those that were still connecting when all sessions were closed, or that were late.
            self.sync.running.wait().await;
        };
        // Ends before `limit`, which would make the drain a late one.
        let deadline = (tokio::time::Instant::now() + HTTP_GRACE).min(start + limit * 9 / 10);
        if timeout_at(deadline, ended).await.is_err() {
            let requests = self.http_running.len().max(self.unfinished.unfinished());
            let requests = requests.max(self.sync.running.len());
            info!(requests, "cutting off requests that did not end in time");
        }
        if let Some(database) = &self.storage.database {
            // Others find it out by themselves, but later.
            let _ = timeout_at(deadline, database.leave()).await;
        }
    }

    /// Closes every session, spread over a time that is at most `longest`.
    async fn close_sessions(&self, start: tokio::time::Instant, longest: Duration) {
        let sessions = self.sync.sessions.peers.all();
        let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        let all = STAGGER.0.saturating_mul(count).min(STAGGER.1).min(longest);
        for (n, session) in (0u32..).zip(sessions) {
            // A sleep of the same length for each would be rounded up to a millisecond.
            let due = start + all.mul_f64(f64::from(n) / f64::from(count));
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            session.close(CloseReason::Draining);
        }
    }

    fn enter(&self, step: Step) {
        *lock(&self.step) = step;
    }

    /// Describes what the drain has not finished.
    fn late(&self) -> String {
        let step = *lock(&self.step);
        let connections = Count(self.sync.running.len(), "open connection");
        let mut text = format!("{}; {connections}", step.text());
        let late = self.sync.rooms.late();
        for (documents, what) in
            [(late.unsaved, "may not be durable"), (late.loading, "still being loaded")]
        {
            if !documents.is_empty() {
                let named: Vec<String> =
                    documents.iter().take(10).map(ToString::to_string).collect();
                let (count, named) = (Count(documents.len(), "document"), named.join(" "));
                text.push_str(&format!("; {count} {what}: {named}"));
            }
        }
        text
    }
}

/// Moves the journal into the folders. On a slow disk the rest of it is moved after the next start:
/// everything is durable.
async fn checkpoint(journal: &Journal, deadline: tokio::time::Instant) {
    match timeout_at(deadline, journal.checkpoint()).await {
        Ok(Ok(chunks)) => info!(chunks, "the journal is empty; the folders contain all changes"),
        Ok(Err(error)) => {
            warn!(
                "cannot move all chunks from the journal into the folders; the journal keeps the \
                 rest: {error}"
            );
        }
        Err(_) => warn!(
            "no time was left to move all chunks from the journal into the folders; the journal \
             keeps the rest, and `tonk-relay checkpoint` moves it"
        ),
    }
}

/// The steps of a drain, in their order.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Connections,
    Documents,
    Import,
    Checkpoint,
    Requests,
}

impl Step {
    fn text(self) -> &'static str {
        match self {
            Self::Connections => "connections are being closed",
            Self::Documents => "documents are being saved",
            Self::Import => "the import of a bundle has not ended",
            Self::Checkpoint => {
                "all documents are durable, and the journal is being moved into the folders"
            }
            Self::Requests => "all documents are durable, and HTTP requests have not ended",
        }
    }
}

/// Updates the metric of the drain's duration. Runs forever.
async fn show_drain(start: Instant, metrics: &ProcessMetrics) {
    loop {
        metrics.drain_seconds.set(start.elapsed().as_secs_f64());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for a second signal to stop, after which the drain that began at `start` ends at once.
async fn second_stop(start: Instant, requests: &mut mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        if request == Request::Stop && start.elapsed() >= SECOND_SIGNAL_AFTER {
            return;
        }
    }
    std::future::pending().await
}

/// Removes the admin sockets and saves when tokens were last used.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn clean_up(auth: &Auth, sockets: &[PathBuf]) {
    for socket in sockets {
        let _ = std::fs::remove_file(socket);
    }
    if let Err(error) = auth.last_use().save() {
        warn!("cannot save the last use of tokens: {error}");
    }
}
