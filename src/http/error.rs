//! Errors as HTTP responses, whose body is always `{"error": "..."}`.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tracing::error;

use crate::{
    auth::Refusal,
    base::document_id::DocumentId,
    bundle::{
        BundleError,
        disk_budget::{NoRoom, OpenError},
        import::{ImportError, Stopping},
    },
    config::Size,
    storage::StorageError,
};

/// Why an HTTP request fails.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum HttpError {
    #[error("No bundle is served")]
    NoBundle,
    #[error("WASM file not found")]
    NoWasm,
    #[error("Blank tonk template not found")]
    NoBlank,
    #[error("Bundle not found")]
    NoSuchBundle,
    #[error("Invalid bundle id: {0}")]
    BundleId(#[from] crate::base::document_id::BadDocumentId),
    #[error("Invalid bundle data: expected the Content-Type application/octet-stream, found {0}")]
    ContentType(String),
    #[error("Invalid bundle data: the body is empty")]
    EmptyBody,
    #[error("Invalid bundle data: {0}")]
    Body(String),
    #[error("Invalid bundle: {0}")]
    Bundle(#[from] BundleError),
    #[error("Bundle is larger than {0} bytes")]
    TooLarge(u64),
    #[error("No data for {0:?} (http.body_idle_timeout)")]
    Slow(std::time::Duration),
    #[error("Less than {0} a second (http.body_min_rate)")]
    Trickle(Size),
    #[error("The stored bundle is damaged: {0}")]
    BrokenBundle(String),
    #[error("The bundle store is not available")]
    Store(StorageError),
    #[error("This relay accepts no bundles (bundles.store)")]
    NoUploads,
    #[error("No space for this upload: {0}")]
    NoRoom(#[from] NoRoom),
    #[error("Content-Encoding must be gzip or identity")]
    ContentEncoding,
    #[error("This bundle was deleted")]
    Deleted,
    #[error("Too many bundles are being read; try again later")]
    Busy,
    #[error("Range not satisfiable")]
    Range(u64),
    #[error("{0}")]
    SignIn(Refusal),
    #[error("The token has no scope {0}")]
    NoScope(&'static str),
    #[error(
        "The token may not write the document {0}, which is the bundle's root or in the bundle"
    )]
    NoRight(DocumentId),
    #[error("Too many new documents (limits.new_documents)")]
    NewDocuments,
    #[error("Too many bytes stored within 30 days (limits.stored_bytes)")]
    StoredBytes,
    #[error("The relay is stopping")]
    Stopping(#[from] Stopping),
    #[error("Not ready: {0}")]
    NotReady(String),
    #[error("Internal error")]
    Internal(String),
}

impl From<StorageError> for HttpError {
    /// An error of the bundle store or its disk.
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full(_) => Self::NoRoom(NoRoom::Disk),
            error => Self::Store(error),
        }
    }
}

impl From<OpenError> for HttpError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NoRoom(reason) => reason.into(),
            OpenError::Storage(error) => error.into(),
        }
    }
}

impl From<ImportError> for HttpError {
    /// The error of an upload that is checked before it is stored.
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Broken(error) => error.into(),
            ImportError::Storage(error) => error.into(),
            ImportError::Stopping(error) => error.into(),
        }
    }
}

impl HttpError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoWasm | Self::NoBlank | Self::NoSuchBundle => StatusCode::NOT_FOUND,
            Self::BundleId(_)
            | Self::ContentType(_)
            | Self::EmptyBody
            | Self::Body(_)
            | Self::Bundle(_) => StatusCode::BAD_REQUEST,
            Self::SignIn(_) => StatusCode::UNAUTHORIZED,
            Self::NoScope(_) | Self::NoRight(_) | Self::NoUploads => StatusCode::FORBIDDEN,
            Self::NewDocuments | Self::StoredBytes | Self::NoRoom(NoRoom::Share) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::NoRoom(NoRoom::Disk) => StatusCode::INSUFFICIENT_STORAGE,
            Self::ContentEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Deleted => StatusCode::GONE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow(_) | Self::Trickle(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Range(_) => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::NoBundle
            | Self::Busy
            | Self::Store(_)
            | Self::Stopping(_)
            | Self::NoRoom(NoRoom::Budget(_))
            | Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) | Self::BrokenBundle(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        match &self {
            Self::Store(reason) => error!(%reason, "the bundle store failed"),
            Self::BrokenBundle(reason) => error!(reason, "a stored bundle is damaged"),
            Self::Internal(reason) => error!(reason, "a request failed"),
            _ => {}
        }
        let mut response = json_error(self.status(), &self.to_string());
        let headers = response.headers_mut();
        match self {
            Self::SignIn(_) => {
                let bearer = header::HeaderValue::from_static("Bearer");
                headers.insert(header::WWW_AUTHENTICATE, bearer);
            }
            Self::Store(_) | Self::Stopping(_) | Self::Busy => {
                headers.insert(header::RETRY_AFTER, 5.into());
            }
            Self::ContentEncoding => {
                let gzip = header::HeaderValue::from_static("gzip");
                headers.insert(header::ACCEPT_ENCODING, gzip);
            }
            Self::Range(size) => {
                if let Ok(value) = format!("bytes */{size}").parse() {
                    headers.insert(header::CONTENT_RANGE, value);
                }
            }
            // The rest of the body is not read, so the connection cannot be reused.
            Self::TooLarge(_) | Self::Slow(_) | Self::Trickle(_) | Self::NoRoom(_) => {
                headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
                if matches!(self, Self::NoRoom(NoRoom::Budget(_) | NoRoom::Share)) {
                    headers.insert(header::RETRY_AFTER, 5.into());
                }
            }
            _ => {}
        }
        response
    }
}

/// Returns a response with an error text.
pub fn json_error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}
