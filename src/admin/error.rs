//! The errors of the admin socket's handlers.

use std::io;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::{base::document_id::BadDocumentId, bundle::BundleError, storage::StorageError};

/// Why a command cannot be done, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    /// The reason.
    pub problem: String,
}

/// A refusal, or a failure.
pub(super) struct Failed(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { problem: self.1 })).into_response()
    }
}

impl From<StorageError> for Failed {
    fn from(error: StorageError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<BundleError> for Failed {
    fn from(error: BundleError) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl From<BadDocumentId> for Failed {
    fn from(error: BadDocumentId) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<tokio::task::JoinError> for Failed {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}
