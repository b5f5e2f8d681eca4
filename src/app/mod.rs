//! The phases of the process, as types: [`Loaded`] -> [`Bound`] -> [`Running`] -> [`Draining`]. Each step
//! consumes the last one. `tasks` has what is started between the second and the third.

pub mod preflight;
pub mod reloader;
pub mod service;
pub mod supervisor;
mod tasks;
pub mod watchdog;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc, watch},
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    admin::{self, storage::Stored},
    app::{
        reloader::Reloader,
        supervisor::{Supervisor, TaskEnded},
        watchdog::Watchdog,
    },
    auth::{Auth, AuthError, Policy, last_use::LastUse},
    base::{blocking, document_id::DocumentId, lock::lock},
    bundle::{
        disk_budget::DiskBudget, import::Importer, served::ServeError, store, watch::BundleKeeper,
    },
    config::{AdminAddress, AuthMode, Config, EngineKind, load::LoadedConfig},
    http::{
        self, App,
        listener::Connections,
        tls::{TlsError, TlsKeeper},
    },
    limits::Principals,
    observe::{
        health::{Health, Phase, Report, lines},
        log::{LogLevel, Repeats},
        metrics::{Metrics, ProcessMetrics},
        signals::{self, Request},
        systemd,
    },
    storage::{
        StorageError,
        documents::Documents,
        local::{
            TMP,
            journal::Journal,
            replacing::{self, Replacing},
            space::Space,
        },
    },
    sync::{
        incoming::Arriving,
        memory,
        peers::Peers,
        room::{native, samod},
        rooms::{Rooms, Shared},
        sessions::{REFUSED_AT_ONCE, Sessions},
        turns::Turns,
    },
};

/// File descriptors beside the connections: files, listeners, the log.
const FILES_BESIDE: u64 = 500;
/// A drain spreads the closing of sockets, because clients reconnect after a fixed interval: the time for each socket,
/// and the most for all of them.
const STAGGER: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(5));
/// Terminals, GNU `timeout` and npm send a signal twice within milliseconds. Only a signal that comes this long after
/// the first ends the relay at once.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_secs(1);

/// Requests that were begun may take so long to end, once all documents are durable.
const HTTP_GRACE: Duration = Duration::from_secs(5);
/// How long the last files may take to be written and removed.
const CLEANUP: Duration = Duration::from_secs(2);
/// systemd waits a little longer than we do, so that what was late is still named.
const SYSTEMD_WAITS_LONGER: Duration = Duration::from_secs(5);
/// Places for received bytes of the relay's own questions, in KiB.
const PROBE_PLACES: u32 = 64;
/// Bundles unpacked at a time.
const UNPACKING: usize = 2;

/// Why the relay did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum AppError {
    #[error("{}: http.listen: cannot listen on {address}: {source}", place(file))]
    Listen { file: Option<PathBuf>, address: SocketAddr, source: std::io::Error },
    #[error("the sockets that systemd passes on: {0}")]
    Inherited(std::io::Error),
    #[error(
        "tonk-relay.socket: {address} is not loopback: set auth.mode in {}, \"open\" to let anybody in",
        place(file)
    )]
    OpenSocket { file: Option<PathBuf>, address: SocketAddr },
    #[error("{}: admin.listen: cannot listen on {address}: {source}", place(file))]
    AdminListen { file: Option<PathBuf>, address: AdminAddress, source: std::io::Error },
    #[error("{}: storage.path: {source}", place(file))]
    Storage { file: Option<PathBuf>, source: StorageError },
    #[error(
        "{}: storage.path: {}: `tonk-relay restore --replace {}` was not finished: run it again; or, to go back, put \
         what is in {name} there in the place of what is beside it, and delete .replacing",
        place(file), path.display(), backup.display()
    )]
    Replacing { file: Option<PathBuf>, path: PathBuf, backup: PathBuf, name: String },
    #[error("{}: bundles.path: {}: {source}", place(file), path.display())]
    Bundles { file: Option<PathBuf>, path: PathBuf, source: std::io::Error },
    #[error("{}: bundle.path: {source}", place(file))]
    Bundle { file: Option<PathBuf>, source: ServeError },
    #[error("{}: {}: {source}", place(file), source.key())]
    Tls { file: Option<PathBuf>, source: TlsError },
    #[error("{}: {}: {source}", place(file), source.key())]
    Auth { file: Option<PathBuf>, source: AuthError },
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
    tls: Arc<TlsKeeper>,
    auth: Arc<Auth>,
    journal: Arc<Journal>,
    documents: Arc<Documents>,
    storage_id: String,
    store: store::Opened,
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
        let is_default = config.http.listen == Config::default().http.listen;
        let mut public = http::listener::inherited().map_err(AppError::Inherited)?;
        for listener in &public {
            let address = listener.local_addr().map_err(AppError::Inherited)?;
            if config.auth.mode == AuthMode::Unset && !address.ip().is_loopback() {
                return Err(AppError::OpenSocket { file: file(), address });
            }
        }
        let to_bind = if public.is_empty() { config.http.listen.as_slice() } else { &[] };
        for address in to_bind.iter().copied() {
            match http::listener::bind(address) {
                Ok(listener) => public.push(listener),
                // The default names both; a machine without IPv6 has one of them.
                Err(error) if is_default && address.is_ipv6() && !is_taken(&error) => {
                    warn!(%address, "not listening there: {error}");
                }
                Err(source) => return Err(AppError::Listen { file: file(), address, source }),
            }
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

        let journal = Journal::open(&config.storage, metrics.storage.clone())
            .map_err(|source| AppError::Storage { file: file(), source })?;
        let unfinished = replacing::unfinished(&config.storage.path)
            .map_err(|source| AppError::Storage { file: file(), source })?;
        if let Some(Replacing { backup, folders, .. }) = unfinished {
            let path = config.storage.path.clone();
            let name = folders.into_iter().next().unwrap_or_default();
            return Err(AppError::Replacing { file: file(), path, backup: backup.folder, name });
        }
        let journal = Arc::new(journal);
        let uploads = store::open(&config.bundles, health.clone()).await.map_err(|source| {
            AppError::Bundles { file: file(), path: config.bundles.path.clone(), source }
        })?;
        let (sender, receiver) = watch::channel(Arc::new(config.clone()));
        let space = Space::new(receiver.clone(), health.clone(), metrics.storage.clone());
        let space = Arc::new(space);
        let keeper = BundleKeeper::new(receiver, health.clone(), metrics.bundles.clone());
        let bundle = keeper.prepare(&config).await;
        keeper.serve(bundle.map_err(|source| AppError::Bundle { file: file(), source })?);
        let tls = TlsKeeper::new(sender.subscribe(), health.clone(), metrics.http.clone());
        let certificate = tls.prepare_settled(&config.tls).await;
        tls.install(certificate.map_err(|source| AppError::Tls { file: file(), source })?);
        #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
        let policy =
            Policy::load(&config.auth).map_err(|source| AppError::Auth { file: file(), source })?;
        let auth =
            Auth::new(policy, LastUse::new(&config.storage.path, config.storage.path.join(TMP)));
        let documents = Documents::new(
            journal.clone(),
            keeper.served(),
            health.clone(),
            space,
            sender.subscribe(),
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
            tls: Arc::new(tls),
            auth: Arc::new(auth),
            journal,
            documents: Arc::new(documents),
            storage_id,
            store: uploads,
            public,
            admin,
        })
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::AddrInUse | std::io::ErrorKind::PermissionDenied)
}

/// Show the configured limits as metrics.
pub fn show_limits(config: &Config, metrics: &ProcessMetrics) {
    let bytes = |size: crate::config::Size| i64::try_from(size.0).unwrap_or(i64::MAX);
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    // As it is written: a second's, a minute's or an hour's.
    let rate = |rate: crate::config::Rate| i64::try_from(rate.count).unwrap_or(i64::MAX);
    for (key, value) in [
        ("limits.connections", count(config.limits.connections)),
        ("limits.documents_per_connection", count(config.limits.documents_per_connection)),
        ("limits.connections_per_address", count(config.limits.connections_per_address)),
        ("limits.handshakes_per_address", rate(config.limits.handshakes_per_address)),
        ("limits.messages_per_connection", rate(config.limits.messages_per_connection)),
        ("limits.bytes_per_connection", rate(config.limits.bytes_per_connection)),
        (
            "limits.processor_per_connection",
            config.limits.processor_per_connection.as_percent().into(),
        ),
        ("limits.unknown_documents", rate(config.limits.unknown_documents)),
        ("limits.new_documents", rate(config.limits.new_documents)),
        ("limits.stored_bytes", bytes(config.limits.stored_bytes)),
        (
            "sync.memory",
            memory::limit(config.sync.memory).map_or(0, |limit| bytes(crate::config::Size(limit))),
        ),
        ("sync.max_message", bytes(config.sync.max_message)),
        ("sync.arriving", bytes(config.sync.arriving)),
        ("sync.message_min_rate", bytes(config.sync.message_min_rate)),
        ("sync.max_inflated", bytes(config.sync.max_inflated)),
        ("sync.send_queue", bytes(config.sync.send_queue)),
        ("sync.receive_queue", bytes(config.sync.receive_queue)),
        ("sync.forward_peers", count(config.sync.forward_peers)),
        ("storage.journal_size", bytes(config.storage.journal_size)),
        ("storage.min_free", bytes(config.storage.min_free)),
        ("storage.max_document", bytes(config.storage.max_document)),
        ("storage.max_changes", i64::try_from(config.storage.max_changes).unwrap_or(i64::MAX)),
        ("storage.max_unsaved", bytes(config.storage.max_unsaved)),
        ("bundles.max_upload", bytes(config.bundles.max_upload)),
        ("bundles.receiving", bytes(config.bundles.receiving)),
        ("bundles.max_inflated", bytes(config.bundles.max_inflated)),
    ] {
        metrics.limits.with_label_values(&[key]).set(value);
    }
}

/// Show whether anybody may do anything.
pub fn show_sign_in(config: &Config, health: &Health) {
    // Unset, it is open to this machine alone.
    let is_open = config.auth.mode != AuthMode::Unset && config.auth.lets_all_write();
    health.degrade("auth", is_open.then(|| "open to anybody".to_owned()));
}

/// The line for `systemctl status`.
pub fn status_line(report: &Report) -> String {
    match (report.ready, report.degraded.is_empty()) {
        (true, true) => "Serving".to_owned(),
        (true, false) => format!("Serving; {}", lines(&report.degraded).join("; ")),
        (false, _) => format!("Not ready: {}", lines(&report.failed).join("; ")),
    }
}

/// Serving. Ends by a signal, or because a task ended that it cannot do without.
pub struct Running {
    parts: Parts,
    requests: mpsc::Receiver<Request>,
}

/// What runs.
struct Parts {
    metrics: Metrics,
    health: Arc<Health>,
    config: watch::Receiver<Arc<Config>>,
    supervisor: Supervisor,
    reloader: Arc<Reloader>,
    journal: Arc<Journal>,
    importer: Arc<Importer>,
    rooms: Arc<Rooms>,
    sessions: Arc<Sessions>,
    sessions_running: TaskTracker,
    /// Connections of the public port that are no sessions.
    http_running: TaskTracker,
    /// The public port takes nothing new.
    draining: CancellationToken,
    /// The other tasks end.
    stopping: CancellationToken,
    sockets: Vec<PathBuf>,
    /// What the drain does now.
    step: Mutex<Step>,
}

impl Bound {
    /// Start every task, and tell systemd.
    ///
    /// # Errors
    /// Signals cannot be caught.
    pub fn run(self) -> Result<Running, AppError> {
        let signals = signals::requests().map_err(AppError::Signals)?;
        let config = self.config.subscribe();
        let now = config.borrow().clone();
        warn_of_few_files(&now);
        let peers = Arc::new(Peers::default());
        let repeats = Arc::new(Repeats::new(now.log.repeat.0));
        let probe = DocumentId::random();
        let principals = Arc::new(Principals::default());
        // More long work at a time than processors only takes more memory at a time.
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let heavy = Arc::new(Turns::new(processors));
        let rooms = Rooms::new(Shared {
            config: config.clone(),
            documents: self.documents.clone(),
            peers: peers.clone(),
            principals: principals.clone(),
            engine: match now.sync.engine {
                EngineKind::Native => native::engine(heavy.clone()),
                EngineKind::Samod => samod::engine(self.storage_id.clone(), &self.metrics),
            },
            storage_id: self.storage_id.as_str().into(),
            probe,
            metrics: self.metrics.clone(),
        });
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let receive_places = now.sync.receive_places();
        let auth = self.auth;
        let sessions = Arc::new(Sessions {
            config: config.clone(),
            rooms: rooms.clone(),
            peers: peers.clone(),
            documents: self.documents.clone(),
            auth: auth.clone(),
            metrics: self.metrics.sessions.clone(),
            repeats: repeats.clone(),
            us: now.sync.peer_id().into(),
            storage_id: self.storage_id,
            receive_queue: Arc::new(Semaphore::new(receive_places as usize)),
            receive_places,
            arriving: Arriving::new(self.metrics.sessions.arriving.clone()),
            refused: Semaphore::new(REFUSED_AT_ONCE),
            heavy,
            polls: self.metrics.process.poll_seconds.with_label_values(&["session"]),
            is_probe: false,
            draining: draining.clone(),
        });
        let (http_running, sessions_running) = (TaskTracker::new(), TaskTracker::new());
        let receiving = Arc::new(DiskBudget::new(
            self.documents.space().clone(),
            config.clone(),
            self.metrics.bundles.receiving.clone(),
        ));
        let importer = Arc::new(Importer::new(
            self.documents.clone(),
            {
                let rooms = rooms.clone();
                move |document| rooms.reopen(document)
            },
            self.store.store.clone(),
            receiving.clone(),
            self.journal.root().to_owned(),
            self.metrics.bundles.clone(),
        ));
        let app = App {
            config: config.clone(),
            served: self.keeper.served(),
            store: self.store.store,
            slims: Arc::default(),
            assets: Arc::default(),
            importer: importer.clone(),
            receiving,
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            documents: self.documents.clone(),
            auth: auth.clone(),
            addresses: Arc::default(),
            principals,
            connections: Arc::default(),
            sessions: sessions.clone(),
            peers,
            sessions_running: sessions_running.clone(),
            unpacking: Arc::new(Semaphore::new(UNPACKING)),
            started: Instant::now(),
        };
        let reloader = Arc::new(Reloader {
            loaded: self.loaded.config.into(),
            config: self.config,
            keeper: self.keeper.clone(),
            tls: self.tls.clone(),
            sessions: sessions.clone(),
            log_level: self.loaded.log_level,
            repeats: repeats.clone(),
            health: self.health.clone(),
            metrics: self.metrics.process.clone(),
        });
        let mut supervisor = Supervisor::new(self.metrics.process.clone());
        let watchdog = watchdog(&app, probe, self.metrics.process.clone())?;

        let public = Connections {
            config: config.clone(),
            tls: Some((self.tls.acceptor(), self.metrics.http.handshakes.clone())),
            open: self.metrics.http.sockets.with_label_values(&["public"]),
            addresses: Some(app.addresses.clone()),
            refused: self.metrics.sessions.refused.clone(),
            sockets: Arc::default(),
            polls: self.metrics.process.poll_seconds.with_label_values(&["http"]),
            tasks: http_running.clone(),
            stopping: draining.clone(),
        };
        let admin = Connections {
            config,
            tls: None,
            open: self.metrics.http.sockets.with_label_values(&["admin"]),
            addresses: None,
            refused: self.metrics.sessions.refused.clone(),
            sockets: Arc::default(),
            polls: self.metrics.process.poll_seconds.with_label_values(&["http"]),
            tasks: TaskTracker::new(),
            stopping: stopping.clone(),
        };
        tasks::listen(&mut supervisor, self.public, &public, &http::router(app.clone()));
        let mut sockets = Vec::new();
        for listener in self.admin {
            match listener {
                AdminListener::Tcp(listener) => {
                    let address = listener.local_addr().map_err(AppError::Inherited)?;
                    let router = admin::tcp_router(app.clone(), address);
                    tasks::listen_admin(&mut supervisor, listener, &admin, &router);
                }
                AdminListener::Unix(listener, path) => {
                    let router = admin::unix_router(
                        app.clone(),
                        rooms.clone(),
                        reloader.admin_handle(),
                        Stored {
                            journal: self.journal.clone(),
                            documents: self.documents.clone(),
                            uploads: app.store.clone(),
                            served: self.keeper.served(),
                            rooms: Some(rooms.clone()),
                            config: sessions.config.clone(),
                        },
                    );
                    tasks::listen_unix(&mut supervisor, listener, &admin, &router);
                    sockets.push(path);
                }
            }
        }
        let requests = tasks::catch_signals(&mut supervisor, &stopping, signals);
        tasks::watch(&mut supervisor, &draining, watchdog);
        tasks::follow_bundle(&mut supervisor, &stopping, &self.keeper, &rooms);
        tasks::follow_certificate(&mut supervisor, &stopping, &self.tls);
        tasks::follow_config(&mut supervisor, &stopping, &reloader);
        tasks::follow_keys(&mut supervisor, &stopping, &reloader);
        tasks::flush_log(&mut supervisor, &stopping, &repeats);
        if let Some(s3) = &self.store.s3 {
            tasks::keep_asking(&mut supervisor, &stopping, s3);
        }
        tasks::watch_space(&mut supervisor, &stopping, &self.documents);
        tasks::count_stored(&mut supervisor, &stopping, &self.journal, &self.metrics.storage);
        tasks::show_status(&mut supervisor, &stopping, &self.health, &self.metrics, &rooms);
        if now.auth.mode != AuthMode::Unset && now.auth.lets_all_write() {
            warn!(
                "open: anybody who reaches this port may read and write every document whose id they know"
            );
        }
        show_sign_in(&now, &self.health);
        tasks::review_sessions(&mut supervisor, &stopping, &sessions);
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
            journal: self.journal,
            importer,
            rooms,
            sessions,
            sessions_running,
            http_running,
            draining,
            stopping,
            sockets,
            step: Mutex::new(Step::Connections),
        };
        Ok(Running { parts, requests })
    }
}

/// What asks the relay whether it answers: over connections of its own, which no limit holds for, and in figures that
/// nobody sees.
fn watchdog(
    app: &App,
    document: DocumentId,
    metrics: ProcessMetrics,
) -> Result<Arc<Watchdog>, AppError> {
    let unseen = Metrics::new()?;
    let config = watch::channel(Arc::new(watchdog::unlimited(&app.config.borrow()))).1;
    let auth = Arc::new(Auth::open());
    let sessions = Arc::new(Sessions {
        config: config.clone(),
        rooms: app.sessions.rooms.clone(),
        peers: app.peers.clone(),
        documents: app.documents.clone(),
        auth: auth.clone(),
        metrics: unseen.sessions.clone(),
        repeats: Arc::default(),
        us: app.sessions.us.clone(),
        storage_id: app.sessions.storage_id.clone(),
        receive_queue: Arc::new(Semaphore::new(PROBE_PLACES as usize)),
        receive_places: PROBE_PLACES,
        arriving: Arriving::new(unseen.sessions.arriving.clone()),
        refused: Semaphore::new(1),
        heavy: app.sessions.heavy.clone(),
        polls: app.metrics.process.poll_seconds.with_label_values(&["session"]),
        is_probe: true,
        draining: app.sessions.draining.clone(),
    });
    let connections = Connections {
        config: config.clone(),
        tls: None,
        open: unseen.http.sockets.with_label_values(&["probe"]),
        addresses: None,
        refused: unseen.sessions.refused.clone(),
        sockets: Arc::default(),
        polls: app.metrics.process.poll_seconds.with_label_values(&["http"]),
        tasks: TaskTracker::new(),
        stopping: app.sessions.draining.clone(),
    };
    let app = App {
        config,
        auth,
        metrics: unseen,
        connections: Arc::default(),
        sessions,
        sessions_running: TaskTracker::new(),
        ..app.clone()
    };
    Ok(Arc::new(Watchdog { connections, router: http::router(app), document, metrics }))
}

/// Remove the admin sockets and save when tokens were last used.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn clean_up(auth: &Auth, sockets: &[PathBuf]) {
    for socket in sockets {
        let _ = std::fs::remove_file(socket);
    }
    if let Err(error) = auth.last_use().save() {
        warn!("the last use of tokens cannot be written: {error}");
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

impl Running {
    /// Serve until a signal says to stop, or a task ends that the relay cannot do without.
    pub async fn serve(mut self) -> Draining {
        let cause = loop {
            tokio::select! {
                Some(request) = self.requests.recv() => match request {
                    // Beside this loop: a bundle that takes long to read must not keep a stop waiting. The
                    // outcome is in the log, the metrics and the status line.
                    Request::Reload => drop(self.parts.reloader.start()),
                    Request::Stop => break None,
                },
                ended = self.parts.supervisor.failed() => break Some(ended),
            }
        };
        if let Some(ended) = &cause {
            error!("the relay cannot go on: {ended}");
        }
        Draining { parts: self.parts, requests: self.requests, cause }
    }
}

/// Finishing what was begun.
pub struct Draining {
    parts: Parts,
    requests: mpsc::Receiver<Request>,
    cause: Option<TaskEnded>,
}

impl Draining {
    /// Tell every peer, make every document durable, and end.
    ///
    /// # Errors
    /// A task's end was the cause, or not all was finished in time, or a second signal came.
    pub async fn finish(mut self) -> Result<(), AppError> {
        let parts = &self.parts;
        let limit = parts.config.borrow().drain_timeout;
        let start = Instant::now();
        let connections = parts.sessions.peers.len();
        info!(
            connections,
            "draining: {connections} connections; a second signal ends the relay at once"
        );
        parts.health.enter(Phase::Draining);
        parts.metrics.process.ready.set(0);
        systemd::stopping(limit.0 + SYSTEMD_WAITS_LONGER, "Draining");

        let finished = tokio::select! {
            finished = timeout(limit.0, parts.drain(limit.0)) => finished.is_ok(),
            () = show_drain(start, &parts.metrics.process) => false,
            () = second_stop(start, &mut self.requests) => return Err(AppError::Quit(parts.late())),
        };
        parts.stopping.cancel();
        let (auth, sockets) = (parts.sessions.auth.clone(), parts.sockets.clone());
        // A disk that hangs does not keep the process.
        if timeout(CLEANUP, blocking::run(move || clean_up(&auth, &sockets))).await.is_err() {
            warn!("the last use of tokens was not written within {CLEANUP:?}");
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
        let start = tokio::time::Instant::now();
        self.enter(Step::Connections);
        self.draining.cancel();
        let end_sessions = async {
            self.close_sessions(start, limit / 3).await;
            self.sessions_running.close();
            self.sessions_running.wait().await;
        };
        // A socket that is late has not been told that its last edits are saved, and its client sends them again.
        if timeout_at(start + limit / 2, end_sessions).await.is_err() {
            let connections = self.sessions_running.len();
            info!(connections, "connections that did not close in time are cut off");
        }
        self.enter(Step::Documents);
        self.rooms.stop().await;
        self.enter(Step::Import);
        self.importer.stop().await;
        self.enter(Step::Checkpoint);
        // All is durable by now: on a slow disk what is left in the journal waits for the next start.
        match timeout_at(start + limit * 2 / 3, self.journal.checkpoint()).await {
            Ok(Ok(chunks)) => info!(chunks, "the journal is empty: the folders hold everything"),
            Ok(Err(error)) => {
                warn!("the journal keeps what could not be moved into the folders: {error}");
            }
            Err(_) => warn!(
                "the journal keeps what could not be moved into the folders in time; `tonk-relay checkpoint` moves it"
            ),
        }
        self.enter(Step::Requests);
        // Documents first: a client that reads its download slowly, or sends nothing, holds nobody up.
        self.http_running.close();
        if timeout(HTTP_GRACE.min(limit / 3), self.http_running.wait()).await.is_err() {
            info!(requests = self.http_running.len(), "requests that did not end are cut off");
        }
    }

    /// Closes every session, spread over a time that is at most `longest`.
    async fn close_sessions(&self, start: tokio::time::Instant, longest: Duration) {
        let sessions = self.sessions.peers.all();
        let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        let all = STAGGER.0.saturating_mul(count).min(STAGGER.1).min(longest);
        for (n, session) in (0u32..).zip(sessions) {
            // By the clock: a sleep for each would be rounded up to the timer's millisecond.
            let due = start + all.mul_f64(f64::from(n) / f64::from(count));
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            session.close(1012, "the relay restarts", "drain");
        }
    }

    fn enter(&self, step: Step) {
        *lock(&self.step) = step;
    }

    /// What the drain has not finished.
    fn late(&self) -> String {
        let step = *lock(&self.step);
        let connections = self.sessions_running.len();
        let mut text = format!("{}; {connections} connections are open", step.text());
        let late = self.rooms.late();
        for (documents, what) in
            [(late.unsaved, "may not be durable"), (late.loading, "are still being loaded")]
        {
            if !documents.is_empty() {
                let named: Vec<String> =
                    documents.iter().take(10).map(ToString::to_string).collect();
                let (count, named) = (documents.len(), named.join(" "));
                text.push_str(&format!("; {count} documents {what}: {named}"));
            }
        }
        text
    }
}

/// What a drain does, in this order.
#[derive(Clone, Copy)]
enum Step {
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

/// Show how long the drain has taken, for as long as it takes.
async fn show_drain(start: Instant, metrics: &ProcessMetrics) {
    loop {
        metrics.drain_seconds.set(start.elapsed().as_secs_f64());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for a signal that asks once more for the drain that began at `start` to end.
async fn second_stop(start: Instant, requests: &mut mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        if request == Request::Stop && start.elapsed() >= SECOND_SIGNAL_AFTER {
            return;
        }
    }
    std::future::pending().await
}
