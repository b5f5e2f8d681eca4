//! `POST /reload`: puts the changed config into effect.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// The answer to `POST /reload`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// Whether the config is in effect.
    pub applied: bool,
    /// The keys that changed.
    pub changed: Vec<String>,
    /// Why it is not in effect, one line for each problem.
    pub problems: Vec<String>,
}

/// Reloads the config and returns the answer.
pub type Reload = Arc<dyn Fn() -> BoxFuture<'static, ReloadAnswer> + Send + Sync>;

pub(super) fn routes(reload: Reload) -> Router {
    Router::new().route("/reload", post(answer_reload)).with_state(reload)
}

async fn answer_reload(State(reload): State<Reload>) -> Response {
    let answer = reload().await;
    let status = if answer.applied { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    (status, Json(answer)).into_response()
}
