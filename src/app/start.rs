//! From [`Bound`] to [`Running`]: builds the parts and starts every task.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use axum::Router;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    bind::{AdminListener, Bound},
    drain::{Parts, Running, Step},
    error::AppError,
    reloader::Reloader,
    report::{show_sign_in, status_line},
    supervisor::Supervisor,
    tasks,
    watchdog::{self, Watchdog},
};
use crate::{
    admin::{self, storage::state::Stored},
    auth::Auth,
    bundle::{disk_budget::DiskBudget, import::Importer, services::Bundles},
    config::{AuthMode, Config},
    http::{self, listener::Connections, state::App},
    observe::{
        health::Phase,
        log::Repeats,
        metrics::{Metrics, ProcessMetrics},
        signals, systemd,
    },
    sync::build::{Needs, Sync},
};

/// Open files apart from connections: documents, listeners, the log.
const OTHER_FILES: u64 = 500;

impl Bound {
    /// Starts every task, and tells systemd.
    ///
    /// # Errors
    /// Signals cannot be caught.
    pub fn run(self) -> Result<Running, AppError> {
        let signals = signals::requests().map_err(AppError::Signals)?;
        let config = self.config.subscribe();
        let now = config.borrow().clone();
        warn_of_few_files(&now);
        let repeats = Arc::new(Repeats::new(now.log.repeat.0));
        let sync = Sync::build(Needs {
            config: config.clone(),
            documents: self.documents.clone(),
            auth: self.auth.clone(),
            repeats: repeats.clone(),
            storage_id: self.storage_id.clone(),
            metrics: &self.metrics,
        });
        let app = self.build_http(&config, &sync);
        let (http_running, stopping) = (TaskTracker::new(), CancellationToken::new());
        let public = Connections {
            config,
            tls: Some((self.tls.acceptor(), self.metrics.http.handshakes.clone())),
            open: self.metrics.http.sockets.with_label_values(&["public"]),
            addresses: Some(app.addresses.clone()),
            refused: self.metrics.sessions.refused.clone(),
            sockets: Arc::default(),
            polls: self.metrics.process.poll_seconds.with_label_values(&["http"]),
            tasks: http_running.clone(),
            stopping: sync.draining.clone(),
        };
        let admin = Connections {
            tls: None,
            open: self.metrics.http.sockets.with_label_values(&["admin"]),
            addresses: None,
            sockets: Arc::default(),
            tasks: TaskTracker::new(),
            stopping: stopping.clone(),
            ..public.clone()
        };
        let watchdog = watchdog(&app, self.metrics.process.clone())?;
        let stored = Stored {
            journal: self.journal.clone(),
            documents: self.documents.clone(),
            uploads: app.bundles.store.clone(),
            served: self.keeper.served(),
            rooms: Some(sync.rooms.clone()),
            config: sync.sessions.config.clone(),
        };
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
        });

        let mut supervisor = Supervisor::new(self.metrics.process.clone());
        tasks::listen(&mut supervisor, self.public, &public, &http::router(app.clone()));
        let unix =
            admin::unix_router(app.clone(), sync.rooms.clone(), reloader.admin_handle(), stored);
        let sockets = listen_admin(&mut supervisor, self.admin, &admin, &app, &unix)?;
        let requests = tasks::catch_signals(&mut supervisor, &stopping, signals);
        tasks::watch(&mut supervisor, &sync.draining, watchdog);
        tasks::follow_bundle(&mut supervisor, &stopping, &self.keeper, &sync.rooms);
        tasks::follow_certificate(&mut supervisor, &stopping, &self.tls);
        tasks::follow_config(&mut supervisor, &stopping, &reloader);
        tasks::follow_keys(&mut supervisor, &stopping, &reloader);
        tasks::flush_log(&mut supervisor, &stopping, &repeats);
        if let Some(s3) = &self.store.s3 {
            tasks::keep_asking(&mut supervisor, &stopping, s3);
        }
        tasks::watch_space(&mut supervisor, &stopping, &self.documents);
        tasks::count_stored(&mut supervisor, &stopping, &self.journal, &self.metrics.storage);
        tasks::show_status(&mut supervisor, &stopping, &self.health, &self.metrics, &sync.rooms);
        tasks::review_sessions(&mut supervisor, &stopping, &sync.sessions);
        announce(&now, &app);
        let parts = Parts {
            metrics: self.metrics.process,
            health: self.health,
            config: sync.sessions.config.clone(),
            supervisor,
            reloader,
            journal: self.journal,
            importer: app.bundles.importer,
            sync,
            http_running,
            stopping,
            sockets,
            step: Mutex::new(Step::Connections),
        };
        Ok(Running::new(parts, requests))
    }

    /// Builds what request handlers share.
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
            self.journal.root().to_owned(),
            self.metrics.bundles.clone(),
        ));
        App {
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
            started: Instant::now(),
        }
    }
}

/// Accepts connections of operators. Returns the Unix sockets, which have to be removed at the end.
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
                tasks::listen_admin(supervisor, listener, connections, &router);
            }
            AdminListener::Unix(listener, path) => {
                tasks::listen_unix(supervisor, listener, connections, unix);
                sockets.push(path);
            }
        }
    }
    Ok(sockets)
}

/// Says that the relay serves: to health checks, systemd and the log.
fn announce(config: &Config, app: &App) {
    if config.auth.mode != AuthMode::Unset && config.auth.lets_all_write() {
        warn!(
            "open: anybody who reaches this port may read and write every document whose id they know"
        );
    }
    show_sign_in(config, &app.health);
    app.health.enter(Phase::Running);
    app.metrics.process.ready.set(1);
    systemd::ready(&status_line(&app.health.report()));
    info!(version = env!("CARGO_PKG_VERSION"), peer_id = %app.sync.sessions.us, "ready");
}

/// Builds the relay's test of itself: over connections of its own, without limits, and with metrics
/// that are not exported.
fn watchdog(app: &App, metrics: ProcessMetrics) -> Result<Arc<Watchdog>, AppError> {
    let unseen = Metrics::new()?;
    let config = watch::channel(Arc::new(watchdog::unlimited(&app.config.borrow()))).1;
    let auth = Arc::new(Auth::open());
    let connections = Connections {
        config: config.clone(),
        tls: None,
        open: unseen.http.sockets.with_label_values(&["probe"]),
        addresses: None,
        refused: unseen.sessions.refused.clone(),
        sockets: Arc::default(),
        polls: app.metrics.process.poll_seconds.with_label_values(&["http"]),
        tasks: TaskTracker::new(),
        stopping: app.sync.draining.clone(),
    };
    let document = app.sync.probe;
    let app = App {
        sync: app.sync.for_probe(config.clone(), auth.clone(), &unseen),
        config,
        auth,
        metrics: unseen,
        connections: Arc::default(),
        ..app.clone()
    };
    Ok(Arc::new(Watchdog { connections, router: http::router(app), document, metrics }))
}

fn warn_of_few_files(config: &Config) {
    let needed = config.limits.connections as u64 + OTHER_FILES;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if limit.is_some_and(|limit| limit < needed) {
        warn!(
            open_files = limit.unwrap_or_default(),
            needed,
            "limits.connections is more than the limit of open files allows: raise LimitNOFILE, or lower it"
        );
    }
}
