//! Pages without a body to read: the served bundle, health and metrics.

use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio_util::io::ReaderStream;

use super::{App, error::HttpError};
use crate::metrics::Metrics;

/// For files that change with a release at most.
const FOR_EVER: &str = "public, max-age=31536000, immutable";

/// `GET /`
pub async fn home() -> &'static str {
    "👍 Tonk relay server is running"
}

/// `GET /.manifest.tonk`: the slim form of the served bundle.
///
/// # Errors
/// No bundle is served.
pub async fn manifest(State(app): State<App>, headers: HeaderMap) -> Result<Response, HttpError> {
    let bundle = app.served.borrow().clone().ok_or(HttpError::NoBundle)?;
    let etag = (header::ETAG, bundle.slim_etag.clone());
    if is_known(&headers, &bundle.slim_etag) {
        return Ok((StatusCode::NOT_MODIFIED, [etag]).into_response());
    }
    let headers = [
        etag,
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"manifest.tonk\"".to_owned()),
    ];
    Ok((headers, bundle.slim.clone()).into_response())
}

/// Whether the client has the content of that ETag already (RFC 9110, 13.1.2).
pub(super) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim())
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// `GET /tonk_core_bg.wasm`
///
/// # Errors
/// There is no such file.
pub async fn wasm(State(app): State<App>) -> Result<Response, HttpError> {
    let path = app.config.borrow().bundle.wasm.clone();
    let body = open(path).await.ok_or(HttpError::NoWasm)?;
    let headers = [(header::CONTENT_TYPE, "application/wasm"), (header::CACHE_CONTROL, FOR_EVER)];
    Ok((headers, body).into_response())
}

/// `GET /api/blank-tonk`
///
/// # Errors
/// There is no such file, and no bundle is served.
pub async fn blank(State(app): State<App>) -> Result<Response, HttpError> {
    let path = app.config.borrow().bundle.blank.clone();
    let body = if path.as_os_str().is_empty() {
        let bundle = app.served.borrow().clone();
        bundle.map(|bundle| bundle.file.clone().into_response())
    } else {
        open(path).await.map(IntoResponse::into_response)
    };
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"latergram.tonk\""),
        (header::CACHE_CONTROL, "public, max-age=31536000"),
    ];
    Ok((headers, body.ok_or(HttpError::NoBlank)?).into_response())
}

/// A regular file as a body with its length; none if it cannot be had, which is logged.
async fn open(path: PathBuf) -> Option<Response> {
    if path.as_os_str().is_empty() {
        return None;
    }
    let opened = async |path: &Path| -> io::Result<(tokio::fs::File, u64)> {
        let found = tokio::fs::metadata(path).await?;
        if !found.is_file() {
            return Err(io::Error::other("is no regular file"));
        }
        Ok((tokio::fs::File::open(path).await?, found.len()))
    };
    match opened(&path).await {
        Ok((file, size)) => {
            let body =
                Body::from_stream(ReaderStream::new(tokio::io::AsyncReadExt::take(file, size)));
            Some(([(header::CONTENT_LENGTH, size)], body).into_response())
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), "a configured file cannot be served: {error}");
            None
        }
    }
}

/// `GET /livez`: the process answers.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: whether sync can be promised. Which checks are not met is named, not why.
///
/// # Errors
/// It cannot.
pub async fn readyz(State(app): State<App>) -> Result<String, HttpError> {
    let report = app.health.report();
    let names = |checks: std::collections::BTreeMap<&'static str, String>| {
        checks.into_keys().collect::<Vec<_>>().join(", ")
    };
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
    if !query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose"))) {
        return readyz(state).await.into_response();
    }
    let report = state.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!(report))).into_response()
}

/// `GET /metrics` on the public port, where the config leaves it there.
///
/// # Errors
/// The figures cannot be collected.
pub async fn public_metrics(state: State<App>, headers: HeaderMap) -> Result<Response, HttpError> {
    if !state.config.borrow().http.metrics {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    metrics(state, headers).await
}

/// `GET /metrics`: Prometheus' text form, or with `Accept: application/json` what the TypeScript relay says.
///
/// # Errors
/// The figures cannot be collected.
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
    text(&app.metrics)
}

fn text(metrics: &Metrics) -> Result<Response, HttpError> {
    let text = metrics.text().map_err(|error| HttpError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// Resident memory of this process (`proc_pid_statm(5)`); 0 where there is no /proc.
#[expect(clippy::disallowed_methods, reason = "/proc is in memory")]
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
