//! From [`Bound`] to [`Running`]: builds the parts and starts every task.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use axum::Router;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    bind::{AdminListener, Bound},
    drain::{Parts, Running, Step},
    error::AppError,
    reloader::Reloader,
    report::{log_warnings, show_sign_in, status_line},
    supervisor::Supervisor,
    tasks::{self, Signals, Subjects},
    watchdog::{self, Watchdog},
};
use crate::{
    admin::{self, storage::state::StorageState},
    auth::Auth,
    base::run_to_completion::RunToCompletion,
    bundle::{disk_budget::DiskBudget, import::Importer, services::Bundles},
    config::{AuthMode, Config},
    http::{
        self,
        listener::Connections,
        state::{App, Services},
        tls::Acceptor,
    },
    observe::{health::Phase, log::Repeats, metrics::ProcessMetrics, signals, systemd},
    sync::build::{Needs, Sync},
};

/// Open files apart from connections: documents, listeners, the log.
const OTHER_FILES: u64 = 500;

impl Bound {
    /// Starts every task, and reports to systemd that the relay is ready. The public port also has
    /// `pages`.
    ///
    /// # Errors
    /// Signals cannot be caught.
    pub fn run(self, pages: Router<App>) -> Result<Running, AppError> {
        let (signals, requests) = Signals::new(signals::requests().map_err(AppError::Signals)?);
        let config = self.config.subscribe();
        let now = config.borrow().clone();
        warn_of_few_files(&now);
        log_warnings(&self.loaded.config);
        let repeats = Arc::new(Repeats::new(now.log.repeat.0));
        let sync = Sync::build(Needs {
            config: config.clone(),
            documents: self.documents.clone(),
            others: self.storage.database.as_ref().map(|database| database.other_relays()),
            auth: self.auth.clone(),
            repeats: repeats.clone(),
            storage_id: self.storage_id.clone(),
            metrics: &self.metrics,
        });
        let app = self.build_http(&config, &sync);
        let (http_running, stopping) = (TaskTracker::new(), CancellationToken::new());
        let (public, admin) =
            connections(&app, self.tls.acceptor(), http_running.clone(), stopping.clone());
        let watchdog = watchdog(&app, self.metrics.process.clone());
        let stored = self.build_stored(&app);
        let reloader = Arc::new(Reloader {
            loaded: self.loaded.config.into(),
            config: self.config,
            keeper: self.keeper.clone(),
            tls: self.tls.clone(),
            sessions: sync.sessions.clone(),
            log_level: self.loaded.log_level,
            repeats: repeats.clone(),
            health: self.health.clone(),
            metrics: self.metrics.process.clone(),
            unfinished: RunToCompletion::default(),
        });

        let mut supervisor = Supervisor::new(self.metrics.process.clone());
        let router = http::router(app.clone(), pages, true);
        listen(&mut supervisor, self.listeners.public, &public, &router);
        let unix =
            admin::unix_router(app.clone(), sync.rooms.clone(), reloader.admin_handle(), stored);
        let sockets = listen_admin(&mut supervisor, self.listeners.admin, &admin, &app, &unix)?;
        let subjects = Subjects {
            app: &app,
            keeper: &self.keeper,
            tls: &self.tls,
            storage: &self.storage,
            s3: self.store.s3.as_ref(),
            reloader: &reloader,
            repeats: &repeats,
            watchdog: &watchdog,
        };
        for task in tasks::table(&subjects, &stopping, &signals) {
            supervisor.supervise(task);
        }
        announce(&now, &app);
        let parts = Parts {
            metrics: self.metrics.process,
            health: self.health,
            config: sync.sessions.config.clone(),
            supervisor,
            reloader,
            storage: self.storage,
            importer: app.bundles.importer.clone(),
            sync,
            http_running,
            unfinished: app.unfinished.clone(),
            stopping,
            sockets,
            step: Mutex::new(Step::Connections),
        };
        Ok(Running::new(parts, requests))
    }

    /// Builds the state of the admin handlers for stored documents.
    fn build_stored(&self, app: &App) -> StorageState {
        StorageState {
            storage: self.storage.clone(),
            documents: self.documents.clone(),
            uploads: self.store.store.clone(),
            served: self.keeper.served(),
            rooms: Some(app.sync.rooms.clone()),
            config: app.config.clone(),
            unfinished: app.unfinished.clone(),
        }
    }

    /// Builds the state of the HTTP handlers.
    fn build_http(&self, config: &watch::Receiver<Arc<Config>>, sync: &Sync) -> App {
        let receiving = Arc::new(DiskBudget::new(
            self.documents.space().clone(),
            config.clone(),
            self.metrics.bundles.receiving.clone(),
        ));
        let rooms = sync.rooms.clone();
        let importer = Arc::new(Importer::new(
            self.documents.clone(),
            move |document| rooms.reopen(document),
            self.store.store.clone(),
            receiving.clone(),
            self.metrics.bundles.clone(),
        ));
        App::from(Services {
            config: config.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            documents: self.documents.clone(),
            bundles: Bundles::new(
                self.keeper.served(),
                self.store.store.clone(),
                importer,
                receiving,
            ),
            assets: Arc::default(),
            auth: self.auth.clone(),
            addresses: Arc::default(),
            connections: Arc::default(),
            sync: sync.clone(),
            unfinished: RunToCompletion::default(),
            started: Instant::now(),
        })
    }
}

/// Returns how connections of the public port are served, and those of the admin port: without TLS
/// and limits by address, and until the process ends.
fn connections(
    app: &App,
    tls: Acceptor,
    http_running: TaskTracker,
    stopping: CancellationToken,
) -> (Connections, Connections) {
    let public = Connections {
        config: app.config.clone(),
        tls: Some((tls, app.metrics.http.handshakes.clone())),
        open: Some(app.metrics.http.sockets.with_label_values(&["public"])),
        addresses: Some(app.addresses.clone()),
        refused: app.metrics.sessions.refused.clone(),
        sockets: Arc::default(),
        polls: app.metrics.process.poll_seconds.with_label_values(&["http"]),
        tasks: http_running,
        stopping: app.sync.draining.clone(),
    };
    let admin = Connections {
        tls: None,
        open: Some(app.metrics.http.sockets.with_label_values(&["admin"])),
        addresses: None,
        sockets: Arc::default(),
        tasks: TaskTracker::new(),
        stopping,
        ..public.clone()
    };
    (public, admin)
}

/// Starts to accept connections of clients.
fn listen(
    supervisor: &mut Supervisor,
    listeners: Vec<TcpListener>,
    connections: &Connections,
    router: &Router,
) {
    for listener in listeners {
        if let Ok(address) = listener.local_addr() {
            let is_tls = connections.tls.as_ref().is_some_and(|(tls, _)| tls.borrow().is_some());
            info!("listening on {}://{address}", if is_tls { "https" } else { "http" });
        }
        supervisor.supervise(tasks::listen("http", listener, connections, router));
    }
}

/// Starts to accept connections of operators. Returns the Unix sockets, which have to be removed at
/// the end.
fn listen_admin(
    supervisor: &mut Supervisor,
    listeners: Vec<AdminListener>,
    connections: &Connections,
    app: &App,
    unix: &Router,
) -> Result<Vec<PathBuf>, AppError> {
    let mut sockets = Vec::new();
    for listener in listeners {
        match listener {
            AdminListener::Tcp(listener) => {
                let address = listener.local_addr().map_err(AppError::Inherited)?;
                let router = admin::tcp_router(app.clone(), address);
                supervisor.supervise(tasks::listen("admin", listener, connections, &router));
            }
            AdminListener::Unix(listener, path) => {
                supervisor.supervise(tasks::listen_unix(listener, connections, unix));
                sockets.push(path);
            }
        }
    }
    Ok(sockets)
}

/// Reports that the relay is ready: in its health, to systemd and in the log.
fn announce(config: &Config, app: &App) {
    if config.auth.mode != AuthMode::Unset && config.auth.lets_all_write() {
        warn!(
            "the relay is open: everybody who can reach this port can read and write every \
             document whose id they know"
        );
    }
    show_sign_in(config, &app.health);
    app.health.enter_phase(Phase::Running);
    app.metrics.process.ready.set(1);
    systemd::ready(&status_line(&app.health.report()));
    info!(version = env!("CARGO_PKG_VERSION"), peer_id = %app.sync.sessions.names.peer_id, "ready");
}

/// Builds the relay's test of itself, whose connections and sessions have no limits and do not
/// count as clients.
fn watchdog(app: &App, metrics: ProcessMetrics) -> Arc<Watchdog> {
    let config = watch::channel(Arc::new(watchdog::unlimited(&app.config.borrow()))).1;
    let auth = Arc::new(Auth::open());
    let connections = Connections {
        config: config.clone(),
        tls: None,
        open: None,
        addresses: None,
        refused: app.metrics.sessions.refused.clone(),
        sockets: Arc::default(),
        polls: app.metrics.process.poll_seconds.with_label_values(&["http"]),
        tasks: TaskTracker::new(),
        stopping: app.sync.draining.clone(),
    };
    let document = app.sync.probe;
    let app = App::from(Services {
        sync: app.sync.for_probe(config.clone(), auth.clone()),
        config,
        auth,
        connections: Arc::default(),
        ..Services::clone(app)
    });
    let router = http::router(app, Router::new(), false);
    Arc::new(Watchdog { connections, router, document, metrics })
}

fn warn_of_few_files(config: &Config) {
    let needed = config.limits.connections as u64 + OTHER_FILES;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if limit.is_some_and(|limit| limit < needed) {
        warn!(
            open_files = limit.unwrap_or_default(),
            needed,
            "limits.connections needs more open files than this process may have; raise \
             LimitNOFILE, or lower limits.connections"
        );
    }
}
