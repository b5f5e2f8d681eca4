//! `GET /api/session`: what a client may do, and until when.

use std::time::SystemTime;

use axum::{
    Extension, Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{grant::Grant, state::App};
use crate::{auth::rights::Documents, config::AuthMode};

/// The answer. Its names are a part of the protocol.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Session<'a> {
    principal: &'a str,
    /// `auth.mode`.
    mode: AuthMode,
    rights: Listed,
    /// When the sign-in ends (RFC 3339), if it does.
    expires: Option<String>,
    /// The same in seconds from now, for clients whose clock is wrong.
    expires_in: Option<u64>,
    peer_id: &'a str,
    storage_id: &'a str,
}

#[derive(Serialize)]
struct Listed {
    read: Documents,
    write: Documents,
    /// The documents for which the client's presence is forwarded.
    presence: Documents,
    upload: bool,
    download: bool,
    admin: bool,
}

/// `GET /api/session`: the principal, rights and expiry of the client that asks, and the names of
/// the relay that it needs to find out what is saved.
pub async fn session(State(app): State<App>, Extension(grant): Extension<Grant>) -> Response {
    let (access, config) = (grant.access(), app.config.borrow().clone());
    let (rights, names) = (&access.rights, &app.sync.sessions.names);
    let (read, write) = (rights.readable(), rights.writable().clone());
    let session = Session {
        principal: &access.principal.0,
        mode: config.auth.mode,
        expires: access.expires.map(|end| humantime::format_rfc3339_seconds(end).to_string()),
        expires_in: access
            .expires
            .map(|end| end.duration_since(SystemTime::now()).unwrap_or_default().as_secs()),
        rights: Listed {
            presence: if config.auth.readonly_presence { read.clone() } else { write.clone() },
            read,
            write,
            upload: rights.upload,
            download: rights.download,
            admin: rights.admin,
        },
        peer_id: &names.peer_id,
        storage_id: &names.storage_id,
    };
    ([(header::CACHE_CONTROL, "no-store")], Json(session)).into_response()
}
