//! The admin listener: metrics, health, and the live commands.
//!
//! Every address of `[admin] listen` answers `GET /metrics`, `/livez` and `/readyz?verbose`. The Unix socket,
//! whose file lets root and the service's group in, also answers `GET /status`, `POST /reload`, and what is in
//! [`storage`]; [`client`] is what the commands speak to it with.

pub mod client;
pub mod storage;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use crate::{
    health::{Phase, Report},
    http::{App, pages},
    reloader::{Refused, Reloader},
    storage::quarantine,
    sync::rooms::Rooms,
};

/// What `tonk-relay status` shows.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub phase: String,
    pub ready: bool,
    pub failed: Vec<String>,
    pub degraded: Vec<String>,
    pub connections: i64,
    pub peers: usize,
    pub documents_live: usize,
    pub documents_waited_for: usize,
    pub unsaved_bytes: u64,
    pub quarantined: usize,
    pub bundle_sha256: Option<String>,
    pub bundle_documents: Option<usize>,
}

/// What `POST /reload` answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// Whether the config is in effect.
    pub applied: bool,
    /// The keys that changed.
    pub changed: Vec<String>,
    /// Why it is not in effect, a line each.
    pub problems: Vec<String>,
}

/// The router of the TCP addresses.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/metrics", get(pages::metrics))
        .route("/livez", get(pages::livez))
        .route("/readyz", get(pages::admin_readyz))
        .with_state(app)
}

#[derive(Clone)]
struct Live {
    app: App,
    rooms: Arc<Rooms>,
    reloader: Arc<Reloader>,
}

/// The router of the Unix socket.
pub fn unix_router(
    app: App,
    rooms: Arc<Rooms>,
    reloader: Arc<Reloader>,
    stored: storage::Stored,
) -> Router {
    let live = Router::new()
        .route("/status", get(status))
        .route("/reload", post(reload))
        .with_state(Live { app: app.clone(), rooms, reloader });
    router(app).merge(live).merge(storage::router(stored))
}

async fn status(State(live): State<Live>) -> Json<Status> {
    let root = live.app.config.borrow().storage.path.clone();
    // What cannot be listed is no reason to say nothing.
    let quarantined = tokio::task::spawn_blocking(move || quarantine::list(&root)).await;
    let quarantined = quarantined.map_or(0, |listed| listed.map_or(0, |entries| entries.len()));
    let report = live.app.health.report();
    let (documents_live, documents_waited_for) = live.rooms.count();
    let served = live.app.served.borrow().clone();
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: live.app.started.elapsed().as_secs(),
        phase: phase(&report).to_owned(),
        ready: report.ready,
        failed: lines(&report.failed),
        degraded: lines(&report.degraded),
        connections: live.app.metrics.sessions.open.get(),
        peers: live.app.peers.len(),
        documents_live,
        documents_waited_for,
        unsaved_bytes: u64::try_from(live.app.metrics.storage.unsaved_bytes.get()).unwrap_or(0),
        quarantined,
        bundle_sha256: served.as_ref().map(|bundle| bundle.sha256.clone()),
        bundle_documents: served.as_ref().map(|bundle| bundle.documents.len()),
    })
}

fn phase(report: &Report) -> &'static str {
    match report.phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Draining => "draining",
    }
}

fn lines(checks: &std::collections::BTreeMap<&'static str, String>) -> Vec<String> {
    checks.iter().map(|(check, reason)| format!("{check}: {reason}")).collect()
}

async fn reload(State(live): State<Live>) -> Response {
    let result = live.reloader.start().await.unwrap_or_else(|panic| {
        Err(Refused { problems: vec![format!("the reload failed: {panic}")] })
    });
    match result {
        Ok(changed) => {
            Json(ReloadAnswer { applied: true, changed, problems: Vec::new() }).into_response()
        }
        Err(refused) => {
            let problems = refused.problems;
            let answer = ReloadAnswer { applied: false, changed: Vec::new(), problems };
            (StatusCode::UNPROCESSABLE_ENTITY, Json(answer)).into_response()
        }
    }
}
