//! `GET /status`: the state of the relay, as JSON for `tonk-relay status`, or as a page for a
//! browser.

use std::time::{Duration, UNIX_EPOCH};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use prometheus::core::Collector;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    config::AuthMode,
    http::{client, state::App},
    observe::{
        health::{Phase, lines},
        log::{self, RecentLine},
    },
    storage::{local::backups, relay_report::SeenRelay},
    sync::{memory, report::Top},
};

/// How long the quarantine may take to be counted.
const LISTING: Duration = Duration::from_millis(500);
/// The page. It is one file and loads no others.
const PAGE: &str = include_str!("status.html");
/// Characters of a document id that the page shows.
const SHOWN_ID_CHARS: usize = 8;
/// The page may run its own script, and send requests to this address.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The state of the relay.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub phase: Phase,
    pub ready: bool,
    pub failed: Vec<String>,
    pub degraded: Vec<String>,
    pub connections: i64,
    pub peers: usize,
    pub documents_live: usize,
    pub documents_requested: usize,
    /// The database with the documents. `None` if they are in a folder.
    pub database: Option<String>,
    pub unsaved_bytes: u64,
    pub free_bytes: u64,
    /// `storage.min_free`.
    pub min_free_bytes: u64,
    /// `sync.memory`, in bytes.
    pub memory_limit_bytes: u64,
    /// `auth.mode`; "" if it is not set.
    pub sign_in: AuthMode,
    /// When the TLS certificate expires, in RFC 3339. `None` without TLS.
    pub certificate_until: Option<String>,
    /// When the last complete backup was made, in RFC 3339. `None` if there never was one.
    pub backed_up_at: Option<String>,
    pub quarantined: usize,
    pub blocked: u64,
    pub bundle_sha256: Option<String>,
    pub bundle_documents: Option<usize>,
    /// When the bundle was loaded, in seconds since 1970.
    pub bundle_loaded_at: Option<f64>,
    /// `bundles.store`.
    pub bundle_store: String,
    /// All relays of the database, as they were last seen. Empty without a database.
    #[serde(default)]
    pub relays: Vec<SeenRelay>,
    pub figures: Figures,
    pub top: Top,
    /// The last warnings and errors of the log, the newest last.
    pub log: Vec<RecentLine>,
}

/// Counters for the charts of the page, which show the differences between two requests, and the
/// current memory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Changes that were applied to documents.
    pub changes: u64,
    /// Messages, in and out.
    pub messages: u64,
    /// Histogram of the time to apply a sync message: pairs of an upper bound in seconds and the
    /// messages within it.
    pub within: Vec<(f64, u64)>,
    /// All sync messages that were applied.
    pub taken_in: u64,
    /// CPU time of the process.
    pub cpu_seconds: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
}

/// `GET /status` on the Unix socket.
pub async fn full_status(State(app): State<App>) -> Response {
    Json(collect(&app).await).into_response()
}

/// `GET /status` on a loopback address, which every user of this machine can connect to. In open
/// mode anyone who knows a document id can read the document, so only the beginning of each id is
/// shown.
pub async fn masked_status(State(app): State<App>, headers: HeaderMap) -> Response {
    if !is_requested_by_address(&headers) {
        let text = "request this page by IP address or as localhost; other host names are refused, \
                    because any web site can choose them\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("text/html")) {
        return ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response();
    }
    let mut status = collect(&app).await;
    for top in &mut status.top.documents {
        top.document = mask(&top.document);
    }
    for line in &mut status.log {
        line.text = mask(&line.text);
    }
    Json(status).into_response()
}

/// Truncates the words of a text that are long enough to be a document id, or the part of one that
/// is in a folder name.
fn mask(text: &str) -> String {
    let mut masked = String::new();
    for part in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_long = word.len() > 2 * SHOWN_ID_CHARS;
        masked.push_str(word.get(..SHOWN_ID_CHARS).filter(|_| is_long).unwrap_or(word));
        masked.push_str(if is_long { "…" } else { "" });
        masked.push_str(part.get(word.len()..).unwrap_or_default());
    }
    masked
}

/// Whether the Host header is an address or localhost. A web page elsewhere can resolve its own
/// name to this address (DNS rebinding), and could then read the answer.
fn is_requested_by_address(headers: &HeaderMap) -> bool {
    client::asked_host(headers)
        .is_some_and(|host| host == "localhost" || host.parse::<std::net::IpAddr>().is_ok())
}

async fn collect(app: &App) -> Status {
    let report = app.health.report();
    let (documents_live, documents_requested) = app.sync.rooms.count();
    let served = app.bundles.served.borrow().clone();
    let metrics = &app.metrics;
    let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
    let config = app.config.borrow().clone();
    let (root, limit) = (config.storage.path.clone(), config.sync.memory);
    // The metrics are some seconds behind, so list it again, unless that fails or takes too long.
    let counting = timeout(LISTING, app.documents.store().quarantined()).await;
    let quarantined = match counting {
        Ok(Ok(all)) => all.len(),
        _ => usize::try_from(metrics.storage.quarantined.get()).unwrap_or(0),
    };
    let looking =
        tokio::task::spawn_blocking(move || (backups::last_complete(&root), memory::limit(limit)));
    let (backed_up_at, memory_limit_bytes) = looking.await.unwrap_or_default();
    let certificate_until = metrics.http.certificate_until.get();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: app.started.elapsed().as_secs(),
        phase: report.phase,
        ready: report.ready,
        failed: lines(&report.failed),
        degraded: lines(&report.degraded),
        connections: metrics.sessions.open.get(),
        peers: app.sync.sessions.peers.len(),
        documents_live,
        documents_requested,
        database: config.cluster.database.read().ok().flatten().map(|named| named.to_string()),
        unsaved_bytes: count(&metrics.storage.unsaved_bytes),
        free_bytes: count(&metrics.storage.free_bytes),
        min_free_bytes: config.storage.min_free.0,
        memory_limit_bytes,
        sign_in: config.auth.mode,
        certificate_until: Some(certificate_until).filter(|until| *until > 0.0).map(rfc3339),
        backed_up_at: backed_up_at.map(rfc3339),
        quarantined,
        blocked: count(&metrics.storage.blocked),
        bundle_sha256: served.as_ref().map(|bundle| bundle.sha256.clone()),
        bundle_documents: served.as_ref().map(|bundle| bundle.documents.len()),
        bundle_loaded_at: served.as_ref().map(|_| metrics.bundles.loaded_at.get()),
        bundle_store: config.bundles.store.name().to_owned(),
        relays: app.sync.rooms.all_relays(),
        figures: figures(app),
        top: app.sync.rooms.top().await,
        log: log::recent(),
    }
}

/// Formats seconds since 1970.
fn rfc3339(seconds: f64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs_f64(seconds);
    humantime::format_rfc3339_seconds(at).to_string()
}

fn figures(app: &App) -> Figures {
    let metrics = &app.metrics;
    let families = metrics.rooms.message_seconds.collect();
    let histogram = families.first().and_then(|family| family.get_metric().first());
    let (mut within, mut taken_in) = (Vec::new(), 0);
    if let Some(histogram) = histogram.map(|metric| metric.get_histogram()) {
        let buckets = histogram.get_bucket().iter();
        within = buckets.map(|b| (b.upper_bound(), b.cumulative_count())).collect();
        taken_in = histogram.get_sample_count();
    }
    let messages = metrics.sessions.messages.collect();
    let messages = messages.iter().flat_map(|family| family.get_metric());
    Figures {
        changes: metrics.rooms.changes.get(),
        messages: messages.map(|metric| metric.get_counter().get_value() as u64).sum(),
        within,
        taken_in,
        cpu_seconds: cpu_seconds(),
        resident_bytes: crate::http::pages::resident_bytes(),
    }
}

/// CPU time of this process, in seconds.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_ids_are_masked_in_urls_paths_and_text() {
        let id = "2XehcERzGALTcjP7C7VxwFJdWoEW";
        let text =
            format!("cannot read /documents/{}/{}: {id}; the rest stays", &id[..2], &id[2..]);
        assert_eq!(mask(&text), "cannot read /documents/2X/ehcERzGA…: 2XehcERz…; the rest stays");
    }

    #[test]
    fn requests_by_a_host_name_are_refused() {
        let is_accepted = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a value"));
            is_requested_by_address(&headers)
        };
        for host in ["127.0.0.1:9464", "[::1]:9464", "localhost:9464", "localhost", "10.1.2.3"] {
            assert!(is_accepted(host), "{host}");
        }
        for host in ["evil.example:9464", "localhost.evil.example", "127.0.0.1.nip.io:9464", ""] {
            assert!(!is_accepted(host), "{host}");
        }
        assert!(!is_requested_by_address(&HeaderMap::new()));
    }
}
