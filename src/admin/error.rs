//! How the handlers of the admin socket answer requests that are refused or failed.

use std::io;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::{base::document_id::BadDocumentId, bundle::BundleError, storage::StorageError};

/// The body of an answer that refuses a request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    /// Why it is refused.
    pub problem: String,
}

/// The status and text of an answer to a request that is refused or failed.
pub(super) struct HandlerError(pub(super) StatusCode, pub(super) String);

impl IntoResponse for HandlerError {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { problem: self.1 })).into_response()
    }
}

impl From<StorageError> for HandlerError {
    fn from(error: StorageError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<io::Error> for HandlerError {
    fn from(error: io::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<BundleError> for HandlerError {
    fn from(error: BundleError) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl From<BadDocumentId> for HandlerError {
    fn from(error: BadDocumentId) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<tokio::task::JoinError> for HandlerError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}
