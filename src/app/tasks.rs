//! The supervised tasks: one table of their names, what their ends mean, and what they run.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::Router;
use futures::{Stream, StreamExt};
use prometheus::IntGaugeVec;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Mutex, mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    reloader::Reloader,
    report::status_line,
    shared_tokens,
    supervisor::{
        OnExit::{Fatal, Restart},
        Task,
    },
    watchdog::Watchdog,
};
use crate::{
    base::text::Count,
    bundle::{served::Served, store::s3::S3Store, watch::BundleKeeper},
    config::Config,
    http::{listener::Connections, state::App, tls::TlsKeeper},
    observe::{
        health::Health,
        log::Repeats,
        metrics::{Metrics, StorageMetrics},
        signals::Request,
        systemd,
    },
    storage::{
        local::backups, open::OpenedStorage, postgres::PostgresStore, relay_report::RelayReport,
        store::Store,
    },
    sync::{rooms::Rooms, session::shared::Sessions},
};

/// How often the status line of systemd and the counts of stored things are updated.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// How often sign-ins are checked for their expiry.
const REVALIDATE_EVERY: Duration = Duration::from_secs(1);
/// The last use of tokens is saved once in this many rounds.
const SAVE_LAST_USE_EVERY: u32 = 30;

/// What the tasks of the table run.
pub(super) struct Subjects<'a> {
    pub(super) app: &'a App,
    pub(super) keeper: &'a Arc<BundleKeeper>,
    pub(super) tls: &'a Arc<TlsKeeper>,
    pub(super) storage: &'a OpenedStorage,
    pub(super) s3: Option<&'a Arc<S3Store>>,
    pub(super) reloader: &'a Arc<Reloader>,
    pub(super) repeats: &'a Arc<Repeats>,
    pub(super) watchdog: &'a Arc<Watchdog>,
}

/// Returns every task but the listeners. Most end with the process, at `stopping`; the watchdog
/// ends when a drain begins.
pub(super) fn table(
    subjects: &Subjects<'_>,
    stopping: &CancellationToken,
    signals: &Signals<impl Stream<Item = Request> + Unpin + Send + 'static>,
) -> Vec<Task> {
    let Subjects { app, keeper, tls, storage, s3, reloader, repeats, watchdog } = subjects;
    let (rooms, sessions) = (app.sync.rooms.clone(), app.sync.sessions.clone());
    let draining = &app.sync.draining;
    let told = (keeper.served(), rooms.clone());
    let counted = (storage.store.clone(), app.config.clone(), app.metrics.storage.clone());
    let shown = (app.health.clone(), app.metrics.clone(), rooms);
    let watched = ((*watchdog).clone(), draining.clone());

    let mut tasks = vec![
        // A relay that hears no signal could not be stopped gracefully.
        Task::new("signals", Fatal, stopping, signals, forward_signals),
        Task::new("watchdog", Restart, draining, &watched, run_watchdog),
        Task::new("bundle", Restart, stopping, *keeper, |keeper| async move { keeper.run().await }),
        Task::new("bundle-rooms", Restart, stopping, &told, tell_rooms),
        Task::new("tls", Restart, stopping, *tls, |tls| async move { tls.run().await }),
        Task::new("config", Restart, stopping, *reloader, |reloader| async move {
            reloader.watch().await;
        }),
        Task::new("keys", Restart, stopping, *reloader, |reloader| async move {
            reloader.follow_keys().await;
        }),
        Task::new("log", Restart, stopping, *repeats, |repeats| async move { repeats.run().await }),
    ];
    if let Some(s3) = s3 {
        tasks.push(Task::new("bundle-store", Restart, stopping, *s3, |s3| async move {
            s3.run().await;
        }));
    }
    if let Some(database) = &storage.database {
        let subject = (database.clone(), (*app).clone());
        let task = |(database, app): (Arc<PostgresStore>, App)| async move {
            let rooms = app.sync.rooms.clone();
            database.run(rooms, move || Some(describe(&app))).await;
        };
        tasks.push(Task::new("database", Restart, stopping, &subject, task));
        let subject = (database.tokens(), app.config.clone(), sessions.clone());
        tasks.push(Task::new("tokens", Restart, stopping, &subject, shared_tokens::follow));
    }
    tasks.extend([
        Task::new("space", Restart, stopping, &app.documents, |documents| async move {
            documents.space().run().await;
        }),
        Task::new("counts", Restart, stopping, &counted, count_stored),
        Task::new("status", Restart, stopping, &shown, show_status),
        Task::new("sign-ins", Restart, stopping, &sessions, revalidate_sign_ins),
    ]);
    tasks
}

/// Returns the task that accepts connections of a TCP listener.
pub(super) fn listen(
    name: &'static str,
    listener: TcpListener,
    connections: &Connections,
    router: &Router,
) -> Task {
    let subject = (Arc::new(listener), connections.clone(), router.clone());
    Task::new(
        name,
        Restart,
        &connections.stopping,
        &subject,
        |(listener, connections, router)| async move { connections.serve(&listener, router).await },
    )
}

/// Returns the task that accepts connections of the admin socket.
pub(super) fn listen_unix(
    listener: UnixListener,
    connections: &Connections,
    router: &Router,
) -> Task {
    let subject = (Arc::new(listener), connections.clone(), router.clone());
    Task::new(
        "admin",
        Restart,
        &connections.stopping,
        &subject,
        |(listener, connections, router)| async move {
            connections.serve_unix(&listener, router).await;
        },
    )
}

/// Signals of this process, and where they are forwarded.
pub(super) struct Signals<S> {
    source: Arc<Mutex<S>>,
    sender: mpsc::Sender<Request>,
}

impl<S> Signals<S> {
    /// Returns them with the receiver of what is forwarded.
    pub(super) fn new(source: S) -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(4);
        (Self { source: Arc::new(Mutex::new(source)), sender }, receiver)
    }
}

impl<S> Clone for Signals<S> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone(), sender: self.sender.clone() }
    }
}

async fn forward_signals(signals: Signals<impl Stream<Item = Request> + Unpin>) {
    let mut source = signals.source.lock().await;
    while let Some(request) = source.next().await {
        // The receiver is gone only when the relay ends.
        let _ = signals.sender.send(request).await;
    }
}

async fn run_watchdog((watchdog, draining): (Arc<Watchdog>, CancellationToken)) {
    tokio::select! {
        () = watchdog.run() => {}
        () = draining.cancelled() => {}
    }
}

/// Tells the rooms of each swap of the served bundle. After a restart of the task `served` has
/// every swap since the relay's start, so none is missed.
async fn tell_rooms((mut served, rooms): (Served, Arc<Rooms>)) {
    while served.changed().await.is_ok() {
        rooms.bundle_changed();
    }
}

/// Describes this relay for the others.
fn describe(app: &App) -> RelayReport {
    RelayReport {
        sessions: u64::try_from(app.metrics.sessions.open.get()).unwrap_or(0),
        documents: app.sync.rooms.count().0 as u64,
        bundle: app.bundles.served.borrow().as_ref().map(|bundle| bundle.sha256.clone()),
        news_ms: None,
    }
}

/// Ends sessions whose sign-in has expired, and records when tokens were last used.
async fn revalidate_sign_ins(sessions: Arc<Sessions>) {
    for round in 0u32.. {
        tokio::time::sleep(REVALIDATE_EVERY).await;
        sessions.close_expired();
        if round % SAVE_LAST_USE_EVERY == 0 {
            sessions.record_use();
            let auth = sessions.auth.clone();
            let saved = tokio::task::spawn_blocking(move || auth.last_use().save()).await;
            if let Ok(Err(error)) = saved {
                warn!("cannot save the last use of tokens: {error}");
            }
        }
    }
}

/// Counts quarantined chunks and backups.
async fn count_stored(
    (store, config, metrics): (Arc<dyn Store>, watch::Receiver<Arc<Config>>, StorageMetrics),
) {
    loop {
        // If the store cannot be read, the last count stays.
        if let Ok(entries) = store.quarantined().await {
            metrics.quarantined.set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
        }
        let root = config.borrow().storage.path.clone();
        let backed_up_at = tokio::task::spawn_blocking(move || backups::last_complete(&root));
        // A panic in it is logged by the panic hook.
        if let Ok(at) = backed_up_at.await {
            metrics.backed_up_at.set(at.unwrap_or(0.0));
        }
        tokio::time::sleep(STATUS_EVERY).await;
    }
}

/// Updates the metrics of readiness and systemd's status line.
async fn show_status((health, metrics, rooms): (Arc<Health>, Metrics, Arc<Rooms>)) {
    loop {
        let report = health.report();
        metrics.process.ready.set(report.ready.into());
        show_checks(&metrics.process.failed, &report.failed);
        show_checks(&metrics.process.degraded, &report.degraded);
        let (live, _) = rooms.count();
        systemd::status(&format!(
            "{} ({}, {})",
            status_line(&report),
            Count(metrics.sessions.open.get(), "connection"),
            Count(live, "document")
        ));
        tokio::time::sleep(STATUS_EVERY).await;
    }
}

fn show_checks(gauges: &IntGaugeVec, checks: &BTreeMap<&'static str, String>) {
    for check in Health::CHECKS {
        gauges.with_label_values(&[check]).set(checks.contains_key(check).into());
    }
}
