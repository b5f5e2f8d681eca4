//! The phases of the process, as types: [`Loaded`] -> [`Bound`] -> [`Running`] -> [`Draining`]. Each step
//! consumes the last one. `tasks` has what is started between the second and the third.

mod tasks;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    admin,
    bundle::{served::ServeError, store::FolderStore, watch::BundleKeeper},
    config::{AdminAddress, AuthMode, Config, load::LoadedConfig},
    health::{Health, Phase, Report},
    http::{self, App, listener::Connections},
    log::{LogLevel, Repeats},
    metrics::{Metrics, ProcessMetrics},
    reloader::Reloader,
    signals::{self, Request},
    storage::{StorageError, documents::Documents, nodefs::NodefsStore},
    supervisor::{Supervisor, TaskEnded},
    sync::{
        peers::Peers,
        room::samod,
        rooms::{Rooms, Shared},
        sessions::Sessions,
    },
    systemd,
};

/// File descriptors beside the connections: files, listeners, the log.
const FILES_BESIDE: u64 = 500;
/// Sockets are closed one after the other in a drain, so that clients, which all come back after the same
/// fixed interval, do not come back at once: so long for each, and at most so long for all.
const STAGGER: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(5));

/// Why the relay did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum AppError {
    #[error("{}: http.listen: cannot listen on {address}: {source}", place(file))]
    Listen { file: Option<PathBuf>, address: SocketAddr, source: std::io::Error },
    #[error("{}: admin.listen: cannot listen on {address}: {source}", place(file))]
    AdminListen { file: Option<PathBuf>, address: AdminAddress, source: std::io::Error },
    #[error("{}: storage.path: {source}", place(file))]
    Storage { file: Option<PathBuf>, source: StorageError },
    #[error("{}: bundles.path: {}: {source}", place(file), path.display())]
    Bundles { file: Option<PathBuf>, path: PathBuf, source: std::io::Error },
    #[error("{}: bundle.path: {source}", place(file))]
    Bundle { file: Option<PathBuf>, source: ServeError },
    #[error("signals cannot be caught: {0}")]
    Signals(std::io::Error),
    #[error("metrics cannot be made: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Task(#[from] TaskEnded),
    #[error("not all was finished within drain_timeout ({timeout}): {late}")]
    Late { timeout: crate::config::Time, late: String },
    #[error("stopped at once by a second signal; {0}")]
    Quit(String),
}

fn place(file: &Option<PathBuf>) -> String {
    file.as_ref().map_or_else(|| "tonk-relay".to_owned(), |file| file.display().to_string())
}

/// A config that was read and checked.
pub struct Loaded {
    /// The config.
    pub config: LoadedConfig,
    /// The way to change the log's level.
    pub log_level: Option<LogLevel>,
}

/// Everything that can fail at a start has not: storage works, the bundle is loaded, every listener is bound.
pub struct Bound {
    loaded: Loaded,
    metrics: Metrics,
    health: Arc<Health>,
    config: watch::Sender<Arc<Config>>,
    keeper: Arc<BundleKeeper>,
    documents: Arc<Documents>,
    storage_id: String,
    store: Arc<FolderStore>,
    public: Vec<TcpListener>,
    admin: Vec<AdminListener>,
}

enum AdminListener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Loaded {
    /// Open storage, load the bundle and bind every listener.
    ///
    /// # Errors
    /// The first of these that cannot be done.
    pub async fn bind(self) -> Result<Bound, AppError> {
        let config = self.config.config.clone();
        let file = || self.config.file.clone();
        let metrics = Metrics::new()?;
        let health = Arc::new(Health::default());
        show_limits(&config, &metrics.process);

        // Listeners first: of two relays started by mistake, the second must not touch the first's files.
        let mut public = Vec::new();
        for address in config.http.listen.iter().copied() {
            let bound = http::listener::bind(address);
            public.push(bound.map_err(|source| AppError::Listen {
                file: file(),
                address,
                source,
            })?);
        }
        let mut admin = Vec::new();
        for address in &config.admin.listen {
            let bound = match address {
                AdminAddress::Tcp(address) => {
                    http::listener::bind(*address).map(AdminListener::Tcp)
                }
                AdminAddress::Unix(path) => http::listener::bind_unix(path)
                    .map(|listener| AdminListener::Unix(listener, path.clone())),
            };
            admin.push(bound.map_err(|source| AppError::AdminListen {
                file: file(),
                address: address.clone(),
                source,
            })?);
        }

        let store = NodefsStore::open(&config.storage.path)
            .map_err(|source| AppError::Storage { file: file(), source })?;
        let uploads = FolderStore::open(&config.bundles.path).map_err(|source| {
            AppError::Bundles { file: file(), path: config.bundles.path.clone(), source }
        })?;
        let (sender, receiver) = watch::channel(Arc::new(config.clone()));
        let keeper = BundleKeeper::new(receiver, health.clone(), metrics.bundles.clone());
        keeper.load(&config).await.map_err(|source| AppError::Bundle { file: file(), source })?;
        let documents = Documents::new(
            Arc::new(store),
            keeper.served(),
            health.clone(),
            metrics.storage.clone(),
        );
        let storage_id = documents
            .storage_id()
            .await
            .map_err(|source| AppError::Storage { file: file(), source })?;
        Ok(Bound {
            loaded: self,
            metrics,
            health,
            config: sender,
            keeper: Arc::new(keeper),
            documents: Arc::new(documents),
            storage_id,
            store: Arc::new(uploads),
            public,
            admin,
        })
    }
}

/// Show the configured limits as metrics.
pub fn show_limits(config: &Config, metrics: &ProcessMetrics) {
    let bytes = |size: crate::config::Size| i64::try_from(size.0).unwrap_or(i64::MAX);
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    for (key, value) in [
        ("limits.connections", count(config.limits.connections)),
        ("limits.documents_per_connection", count(config.limits.documents_per_connection)),
        ("sync.max_message", bytes(config.sync.max_message)),
        ("sync.send_queue", bytes(config.sync.send_queue)),
        ("sync.receive_queue", bytes(config.sync.receive_queue)),
        ("sync.forward_peers", count(config.sync.forward_peers)),
        ("storage.max_unsaved", bytes(config.storage.max_unsaved)),
        ("bundles.max_upload", bytes(config.bundles.max_upload)),
        ("bundles.max_inflated", bytes(config.bundles.max_inflated)),
    ] {
        metrics.limits.with_label_values(&[key]).set(value);
    }
}

/// The line for `systemctl status`.
pub fn status_line(report: &Report) -> String {
    let list = |checks: &std::collections::BTreeMap<&'static str, String>| {
        let lines: Vec<String> =
            checks.iter().map(|(check, why)| format!("{check}: {why}")).collect();
        lines.join("; ")
    };
    match (report.ready, report.degraded.is_empty()) {
        (true, true) => "Serving".to_owned(),
        (true, false) => format!("Serving; {}", list(&report.degraded)),
        (false, _) => format!("Not ready: {}", list(&report.failed)),
    }
}

/// Serving. Ends by a signal, or because a task ended that it cannot do without.
pub struct Running<S> {
    parts: Parts,
    signals: S,
}

/// What runs.
struct Parts {
    metrics: Metrics,
    health: Arc<Health>,
    config: watch::Receiver<Arc<Config>>,
    supervisor: Supervisor,
    reloader: Arc<Reloader>,
    rooms: Arc<Rooms>,
    sessions: Arc<Sessions>,
    /// Connections and sessions of the public port.
    tasks: TaskTracker,
    /// The public port takes nothing new.
    draining: CancellationToken,
    /// The other tasks end.
    stopping: CancellationToken,
    sockets: Vec<PathBuf>,
}

impl Bound {
    /// Start every task, and tell systemd.
    ///
    /// # Errors
    /// Signals cannot be caught.
    pub fn run(self) -> Result<Running<impl Stream<Item = Request> + Unpin>, AppError> {
        let signals = signals::requests().map_err(AppError::Signals)?;
        let config = self.config.subscribe();
        let now = config.borrow().clone();
        warn_of_few_files(&now);
        let peers = Arc::new(Peers::default());
        let repeats = Arc::new(Repeats::new(now.log.repeat.0));
        let rooms = Rooms::new(Shared {
            config: config.clone(),
            documents: self.documents.clone(),
            peers: peers.clone(),
            engine: samod::engine(self.storage_id.clone(), self.metrics.rooms.clone()),
            metrics: self.metrics.clone(),
        });
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let receive_places =
            u32::try_from(now.sync.receive_queue.0 / 1024).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        let sessions = Arc::new(Sessions {
            config: config.clone(),
            rooms: rooms.clone(),
            peers: peers.clone(),
            documents: self.documents.clone(),
            metrics: self.metrics.sessions.clone(),
            repeats: repeats.clone(),
            us: now.sync.peer_id().into(),
            storage_id: self.storage_id,
            receive_queue: Arc::new(Semaphore::new(receive_places as usize)),
            receive_places,
            draining: draining.clone(),
        });
        let tasks = TaskTracker::new();
        let app = App {
            config: config.clone(),
            served: self.keeper.served(),
            store: self.store,
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            sessions: sessions.clone(),
            peers,
            tasks: tasks.clone(),
            started: Instant::now(),
        };
        let reloader = Arc::new(Reloader::new(
            self.loaded.config,
            self.config,
            self.keeper.clone(),
            self.loaded.log_level,
            repeats.clone(),
            self.health.clone(),
            self.metrics.process.clone(),
        ));
        let mut supervisor = Supervisor::new(self.metrics.process.clone());

        let public = Connections {
            config: config.clone(),
            open: self.metrics.http.sockets.with_label_values(&["public"]),
            tasks: tasks.clone(),
            stopping: draining.clone(),
        };
        let admin = Connections {
            config,
            open: self.metrics.http.sockets.with_label_values(&["admin"]),
            tasks: TaskTracker::new(),
            stopping: stopping.clone(),
        };
        tasks::listen(&mut supervisor, self.public, &public, &http::router(app.clone()));
        let mut sockets = Vec::new();
        for listener in self.admin {
            match listener {
                AdminListener::Tcp(listener) => {
                    tasks::listen_admin(
                        &mut supervisor,
                        listener,
                        &admin,
                        &admin::router(app.clone()),
                    );
                }
                AdminListener::Unix(listener, path) => {
                    let router = admin::unix_router(app.clone(), rooms.clone(), reloader.clone());
                    tasks::listen_unix(&mut supervisor, listener, &admin, &router);
                    sockets.push(path);
                }
            }
        }
        tasks::follow_bundle(&mut supervisor, &stopping, &self.keeper, &rooms);
        tasks::follow_config(&mut supervisor, &stopping, &reloader);
        tasks::flush_log(&mut supervisor, &stopping, &repeats);
        tasks::show_status(&mut supervisor, &stopping, &self.health, &self.metrics, &rooms);
        if now.auth.mode == AuthMode::Open {
            warn!(
                "open: anybody who reaches this port may read and write every document whose id they know"
            );
            self.health.degrade("auth", Some("open to anybody".to_owned()));
        }
        self.health.enter(Phase::Running);
        self.metrics.process.ready.set(1);
        systemd::ready(&status_line(&self.health.report()));
        info!(version = env!("CARGO_PKG_VERSION"), peer_id = %sessions.us, "ready");
        let parts = Parts {
            metrics: self.metrics,
            health: self.health,
            config: sessions.config.clone(),
            supervisor,
            reloader,
            rooms,
            sessions,
            tasks,
            draining,
            stopping,
            sockets,
        };
        Ok(Running { parts, signals })
    }
}

fn warn_of_few_files(config: &Config) {
    let needed = config.limits.connections as u64 + FILES_BESIDE;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if limit.is_some_and(|limit| limit < needed) {
        warn!(
            open_files = limit.unwrap_or_default(),
            needed,
            "limits.connections is more than the limit of open files allows: raise LimitNOFILE, or lower it"
        );
    }
}

impl<S: Stream<Item = Request> + Unpin> Running<S> {
    /// Serve until a signal says to stop, or a task ends that the relay cannot do without.
    pub async fn serve(mut self) -> Draining<S> {
        let cause = loop {
            tokio::select! {
                request = self.signals.next() => match request {
                    // The outcome is in the log, the metrics and the status line.
                    Some(Request::Reload) => _ = self.parts.reloader.reload().await,
                    Some(Request::Stop) => break None,
                    None => break Some(TaskEnded { task: "signals", cause: "it returned".to_owned() }),
                },
                ended = self.parts.supervisor.failed() => break Some(ended),
            }
        };
        if let Some(ended) = &cause {
            error!(%ended, "the relay cannot go on");
        }
        Draining { parts: self.parts, signals: self.signals, cause }
    }
}

/// Finishing what was begun.
pub struct Draining<S> {
    parts: Parts,
    signals: S,
    cause: Option<TaskEnded>,
}

impl<S: Stream<Item = Request> + Unpin> Draining<S> {
    /// Tell every peer, make every document durable, and end.
    ///
    /// # Errors
    /// A task's end was the cause, or not all was finished in time, or a second signal came.
    pub async fn finish(mut self) -> Result<(), AppError> {
        let parts = &self.parts;
        let limit = parts.config.borrow().drain_timeout;
        let start = Instant::now();
        info!(connections = parts.sessions.peers.len(), "draining");
        parts.health.enter(Phase::Draining);
        parts.metrics.process.ready.set(0);
        systemd::stopping(limit.0, "Draining");

        let finished = tokio::select! {
            finished = timeout(limit.0, parts.drain(limit.0)) => finished.is_ok(),
            () = second_stop(&mut self.signals) => return Err(AppError::Quit(parts.late())),
        };
        parts.metrics.process.drain_seconds.set(start.elapsed().as_secs_f64());
        for socket in &parts.sockets {
            let _ = std::fs::remove_file(socket);
        }
        if !finished {
            return Err(AppError::Late { timeout: limit, late: parts.late() });
        }
        info!(seconds = start.elapsed().as_secs_f64(), "all is durable");
        self.cause.take().map_or(Ok(()), |cause| Err(cause.into()))
    }
}

impl Parts {
    async fn drain(&self, limit: Duration) {
        self.draining.cancel();
        let sessions = self.sessions.peers.all();
        let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        let all = STAGGER.0.saturating_mul(count).min(STAGGER.1).min(limit / 3);
        for session in sessions {
            session.close(1012, "the relay restarts", "drain");
            tokio::time::sleep(all / count).await;
        }
        self.tasks.close();
        self.tasks.wait().await;
        self.rooms.stop().await;
        self.stopping.cancel();
    }

    fn late(&self) -> String {
        let rooms = self.rooms.late();
        let named: Vec<String> = rooms.iter().take(10).map(ToString::to_string).collect();
        format!(
            "{} connections are open, {} documents may not be durable {}",
            self.sessions.peers.len(),
            rooms.len(),
            named.join(" ")
        )
    }
}

async fn second_stop(signals: &mut (impl Stream<Item = Request> + Unpin)) {
    while let Some(request) = signals.next().await {
        if request == Request::Stop {
            return;
        }
    }
    std::future::pending().await
}
