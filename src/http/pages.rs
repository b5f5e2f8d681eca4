//! Pages: the served bundle, health and metrics.

use super::{
    content::{Content, accepts_gzip},
    error::HttpError,
    state::App,
};
use crate::{base::blocking, observe::health::Phase};
use axum::{
    Json,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

/// For content that may change: caches have to revalidate, so that every client gets a swapped
/// bundle.
const REVALIDATE: &str = "public, no-cache";
/// For content whose URL has a version.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// Returns the `Cache-Control` of a file whose URL may have a version, as `?v=`.
fn cache_control(query: Option<&str>) -> &'static str {
    let mut pairs = query.unwrap_or_default().split('&');
    let has_version = pairs.any(|pair| pair.strip_prefix("v=").is_some_and(|v| !v.is_empty()));
    if has_version { IMMUTABLE } else { REVALIDATE }
}

/// `GET /`
pub async fn home() -> &'static str {
    "👍 Tonk relay server is running"
}

/// `GET /.manifest.tonk`: the slim form of the served bundle.
///
/// # Errors
/// No bundle is served.
pub async fn manifest(State(app): State<App>, headers: HeaderMap) -> Result<Response, HttpError> {
    let bundle = app.bundles.served.borrow().clone().ok_or(HttpError::NoBundle)?;
    let content = Content {
        etag: bundle.slim_etag.clone(),
        kind: "application/zip",
        file_name: Some("manifest.tonk".to_owned()),
        cache_control: REVALIDATE,
        encoding: None,
        size: bundle.slim.len() as u64,
    };
    content.send(&headers, &bundle.slim)
}

/// `GET /tonk_core_bg.wasm`
///
/// # Errors
/// No such file is configured, or it cannot be read.
pub async fn wasm(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let config = app.config.borrow().clone();
    let path = &config.bundle.wasm;
    if path.as_os_str().is_empty() {
        return Err(HttpError::NoWasm);
    }
    let file = app.assets.wasm.get(path, config.bundles.max_inflated.0, true).await;
    let file = file.ok_or(HttpError::NoWasm)?;
    let (data, etag, encoding) = match &file.gzip {
        Some(gzip) if accepts_gzip(&headers) => {
            (gzip, format!("\"{}-gzip\"", file.sha256), Some("gzip"))
        }
        _ => (&file.data, format!("\"{}\"", file.sha256), None),
    };
    let content = Content {
        etag,
        kind: "application/wasm",
        file_name: None,
        cache_control: cache_control(query.as_deref()),
        encoding,
        size: data.len() as u64,
    };
    let mut answer = content.send(&headers, data)?;
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(answer)
}

/// `GET /api/blank-tonk`
///
/// # Errors
/// The file cannot be read, or none is configured and no bundle is served.
pub async fn blank(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let config = app.config.borrow().clone();
    let path = &config.bundle.blank;
    let (data, sha256) = if path.as_os_str().is_empty() {
        let served = app.bundles.served.borrow().clone().ok_or(HttpError::NoBlank)?;
        (served.file.clone(), served.sha256.clone())
    } else {
        let file = app.assets.blank.get(path, config.bundles.max_inflated.0, false).await;
        let file = file.ok_or(HttpError::NoBlank)?;
        (file.data.clone(), file.sha256.clone())
    };
    let content = Content {
        etag: format!("\"{sha256}\""),
        kind: "application/octet-stream",
        file_name: Some("latergram.tonk".to_owned()),
        cache_control: cache_control(query.as_deref()),
        encoding: None,
        size: data.len() as u64,
    };
    content.send(&headers, &data)
}

/// Whether a query has this parameter, with a value or without.
fn has_flag(query: Option<&str>, name: &str) -> bool {
    let mut names = query.unwrap_or_default().split('&').map(|part| part.split('=').next());
    names.any(|part| part == Some(name))
}

/// `GET /livez`: the process answers.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: whether the relay is ready. Names the failed checks without their reasons.
///
/// With `?balancer`, only a relay that is starting or draining fails: for a balancer to which no relay
/// is ready.
///
/// # Errors
/// The relay is not ready.
pub async fn readyz(
    State(app): State<App>,
    RawQuery(query): RawQuery,
) -> Result<String, HttpError> {
    let report = app.health.report();
    let names = |checks: std::collections::BTreeMap<&'static str, String>| {
        checks.into_keys().collect::<Vec<_>>().join(", ")
    };
    let may_serve = has_flag(query.as_deref(), "balancer") && report.phase == Phase::Running;
    if !report.ready && may_serve {
        return Ok(format!("not ready: {}\n", names(report.failed)));
    }
    if !report.ready {
        return Err(HttpError::NotReady(names(report.failed)));
    }
    Ok(if report.degraded.is_empty() {
        "ok\n".to_owned()
    } else {
        format!("degraded: {}\n", names(report.degraded))
    })
}

/// `GET /readyz?verbose` on the admin listener: every check with its reason.
///
/// # Errors
/// As [`readyz`].
pub async fn admin_readyz(state: State<App>, RawQuery(query): RawQuery) -> Response {
    if !has_flag(query.as_deref(), "verbose") {
        return readyz(state, RawQuery(query)).await.into_response();
    }
    let report = state.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!(report))).into_response()
}

/// `GET /metrics` on the public port, unless `http.metrics` is false.
///
/// # Errors
/// The metrics cannot be collected.
pub async fn public_metrics(state: State<App>, headers: HeaderMap) -> Result<Response, HttpError> {
    if !state.config.borrow().http.metrics {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    metrics(state, headers).await
}

/// `GET /metrics`: the text format of Prometheus, or with `Accept: application/json` the answer of
/// the TypeScript relay.
///
/// # Errors
/// The metrics cannot be collected.
pub async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, HttpError> {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/json")) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let object = json!({
            "timestamp": u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            "memory": { "rss": resident_bytes() },
            "connections": app.metrics.sessions.open.get(),
            "uptime": app.started.elapsed().as_secs_f64(),
            "process": { "pid": std::process::id() },
        });
        return Ok(Json(object).into_response());
    }
    // This takes milliseconds, and reads a directory with an entry for each open file.
    let text = blocking::run(move || app.metrics.text()).await;
    let text = text.map_err(|error| HttpError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// Returns the resident memory of this process (`proc_pid_statm(5)`), or 0 without /proc.
#[expect(clippy::disallowed_methods, reason = "/proc is in memory")]
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
