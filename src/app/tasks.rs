//! The supervised tasks: what each one runs, and what its end means.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::Router;
use futures::{Stream, StreamExt};
use prometheus::IntGaugeVec;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Mutex, mpsc},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::report::status_line;
use crate::{
    app::{
        reloader::Reloader,
        supervisor::{OnExit, Supervisor},
        watchdog::Watchdog,
    },
    bundle::{store::s3::S3Store, watch::BundleKeeper},
    http::{listener::Connections, tls::TlsKeeper},
    observe::{
        health::Health,
        log::Repeats,
        metrics::{Metrics, StorageMetrics},
        signals::Request,
        systemd,
    },
    storage::{
        documents::Documents,
        local::{backups, journal::Journal, quarantine},
    },
    sync::{rooms::Rooms, sessions::Sessions},
};

/// How often systemd's status line is renewed.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Pass signals on. A relay that hears none could not be stopped in order: its end is fatal.
pub(super) fn catch_signals(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    signals: impl Stream<Item = Request> + Unpin + Send + 'static,
) -> mpsc::Receiver<Request> {
    let (sender, receiver) = mpsc::channel(4);
    let signals = Arc::new(Mutex::new(signals));
    supervisor.keep("signals", OnExit::Fatal, stopping, move || {
        let (sender, signals) = (sender.clone(), signals.clone());
        async move {
            let mut signals = signals.lock().await;
            while let Some(request) = signals.next().await {
                // Nobody listens any more only when the relay ends.
                let _ = sender.send(request).await;
            }
        }
    });
    receiver
}

/// How often sign-ins are looked at whose time may be over, and how often their last use is written.
const REVIEW_EVERY: Duration = Duration::from_secs(1);
const SAVE_LAST_USE_EVERY: u32 = 30;

/// End sessions whose sign-in has ended, and note when tokens were last used.
pub(super) fn review_sessions(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    sessions: &Arc<Sessions>,
) {
    let sessions = sessions.clone();
    supervisor.keep("sign-ins", OnExit::Restart, stopping, move || {
        let sessions = sessions.clone();
        async move {
            for round in 0u32.. {
                tokio::time::sleep(REVIEW_EVERY).await;
                sessions.review(false);
                if round % SAVE_LAST_USE_EVERY == 0 {
                    sessions.note_use();
                    let auth = sessions.auth.clone();
                    let saved = tokio::task::spawn_blocking(move || auth.last_use().save()).await;
                    if let Ok(Err(error)) = saved {
                        warn!("the last use of tokens cannot be written: {error}");
                    }
                }
            }
        }
    });
}

/// Serve the public addresses.
pub(super) fn listen(
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
        keep_listening(supervisor, "http", listener, connections, router);
    }
}

/// Serve an admin address.
pub(super) fn listen_admin(
    supervisor: &mut Supervisor,
    listener: TcpListener,
    connections: &Connections,
    router: &Router,
) {
    keep_listening(supervisor, "admin", listener, connections, router);
}

fn keep_listening(
    supervisor: &mut Supervisor,
    task: &'static str,
    listener: TcpListener,
    connections: &Connections,
    router: &Router,
) {
    let stopping = connections.stopping.clone();
    let (connections, router) = (connections.clone(), router.clone());
    let listener = Arc::new(listener);
    supervisor.keep(task, OnExit::Restart, &stopping, move || {
        let (connections, router) = (connections.clone(), router.clone());
        let listener = listener.clone();
        async move { connections.serve(&listener, router).await }
    });
}

/// Serve the admin socket.
pub(super) fn listen_unix(
    supervisor: &mut Supervisor,
    listener: UnixListener,
    connections: &Connections,
    router: &Router,
) {
    let stopping = connections.stopping.clone();
    let (connections, router) = (connections.clone(), router.clone());
    let listener = Arc::new(listener);
    supervisor.keep("admin", OnExit::Restart, &stopping, move || {
        let (connections, router) = (connections.clone(), router.clone());
        let listener = listener.clone();
        async move { connections.serve_unix(&listener, router).await }
    });
}

/// See that the relay answers, and tell systemd.
pub(super) fn watch(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    watchdog: Arc<Watchdog>,
) {
    let until = stopping.clone();
    supervisor.keep("watchdog", OnExit::Restart, stopping, move || {
        let (watchdog, until) = (watchdog.clone(), until.clone());
        async move {
            tokio::select! {
                () = watchdog.run() => {}
                () = until.cancelled() => {}
            }
        }
    });
}

/// Swap the served bundle when its file changes, and tell the rooms.
pub(super) fn follow_bundle(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    keeper: &Arc<BundleKeeper>,
    rooms: &Arc<Rooms>,
) {
    let served = keeper.served();
    let keeper = keeper.clone();
    supervisor.keep("bundle", OnExit::Restart, stopping, move || {
        let keeper = keeper.clone();
        async move { keeper.run().await }
    });
    let rooms = rooms.clone();
    supervisor.keep("bundle-rooms", OnExit::Restart, stopping, move || {
        // Started again it hears of every swap since the relay's start, and so misses none.
        let (rooms, mut served) = (rooms.clone(), served.clone());
        async move {
            while served.changed().await.is_ok() {
                rooms.bundle_changed();
            }
        }
    });
}

/// Swap the certificate when its files change.
pub(super) fn follow_certificate(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    tls: &Arc<TlsKeeper>,
) {
    let tls = tls.clone();
    supervisor.keep("tls", OnExit::Restart, stopping, move || {
        let tls = tls.clone();
        async move { tls.run().await }
    });
}

/// Notice that the config file has changed.
pub(super) fn follow_config(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    reloader: &Arc<Reloader>,
) {
    let reloader = reloader.clone();
    supervisor.keep("config", OnExit::Restart, stopping, move || {
        let reloader = reloader.clone();
        async move { reloader.watch().await }
    });
}

/// Swap the keys for JWTs when their file changes.
pub(super) fn follow_keys(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    reloader: &Arc<Reloader>,
) {
    let reloader = reloader.clone();
    supervisor.keep("keys", OnExit::Restart, stopping, move || {
        let reloader = reloader.clone();
        async move { reloader.follow_keys().await }
    });
}

/// Write the log lines that were held back.
pub(super) fn flush_log(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    repeats: &Arc<Repeats>,
) {
    let repeats = repeats.clone();
    supervisor.keep("log", OnExit::Restart, stopping, move || {
        let repeats = repeats.clone();
        async move { repeats.run().await }
    });
}

/// Find out what the object store can do, and whether it is there.
pub(super) fn keep_asking(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    store: &Arc<S3Store>,
) {
    let store = store.clone();
    supervisor.keep("bundle-store", OnExit::Restart, stopping, move || {
        let store = store.clone();
        async move { store.run().await }
    });
}

/// Look how much room the disks have.
pub(super) fn watch_space(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    documents: &Arc<Documents>,
) {
    let documents = documents.clone();
    supervisor.keep("space", OnExit::Restart, stopping, move || {
        let documents = documents.clone();
        async move { documents.space().run().await }
    });
}

fn show_checks(gauges: &IntGaugeVec, checks: &BTreeMap<&'static str, String>) {
    for check in Health::CHECKS {
        gauges.with_label_values(&[check]).set(checks.contains_key(check).into());
    }
}

/// Count what lies beside the documents.
pub(super) fn count_stored(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    journal: &Arc<Journal>,
    metrics: &StorageMetrics,
) {
    let (journal, metrics) = (journal.clone(), metrics.clone());
    supervisor.keep("counts", OnExit::Restart, stopping, move || {
        let (journal, metrics) = (journal.clone(), metrics.clone());
        async move {
            loop {
                journal.update_blocked_gauge();
                let (root, metrics) = (journal.root().to_owned(), metrics.clone());
                let counting = tokio::task::spawn_blocking(move || {
                    // What cannot be listed stays as it was.
                    if let Ok(entries) = quarantine::list(&root) {
                        metrics.quarantined.set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
                    }
                    metrics.backed_up_at.set(backups::last_complete(&root).unwrap_or(0.0));
                });
                // A panic there is in the log.
                let _ = counting.await;
                tokio::time::sleep(STATUS_EVERY).await;
            }
        }
    });
}

/// Keep systemd's status line and the readiness metric as they are.
pub(super) fn show_status(
    supervisor: &mut Supervisor,
    stopping: &CancellationToken,
    health: &Arc<Health>,
    metrics: &Metrics,
    rooms: &Arc<Rooms>,
) {
    let (health, metrics, rooms) = (health.clone(), metrics.clone(), rooms.clone());
    supervisor.keep("status", OnExit::Restart, stopping, move || {
        let (health, metrics, rooms) = (health.clone(), metrics.clone(), rooms.clone());
        async move {
            loop {
                let report = health.report();
                metrics.process.ready.set(report.ready.into());
                show_checks(&metrics.process.failed, &report.failed);
                show_checks(&metrics.process.degraded, &report.degraded);
                let (live, _) = rooms.count();
                systemd::status(&format!(
                    "{} ({} connections, {live} documents)",
                    status_line(&report),
                    metrics.sessions.open.get()
                ));
                tokio::time::sleep(STATUS_EVERY).await;
            }
        }
    });
}
