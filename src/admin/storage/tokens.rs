//! `/tokens`: the tokens that all relays of a database share.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use tracing::info;

use super::state::StorageState;
use crate::{admin::error::HandlerError, auth::tokens::Token, storage::postgres::PostgresStore};

pub(super) fn routes() -> Router<StorageState> {
    Router::new().route("/tokens", get(list).post(add).delete(remove))
}

fn database(state: &StorageState) -> Result<&PostgresStore, HandlerError> {
    state.storage.database.as_deref().ok_or_else(|| {
        let text = "documents are in a folder, and tokens in the file that auth.tokens names";
        HandlerError(StatusCode::CONFLICT, text.to_owned())
    })
}

/// Answers with the tokens, by their names.
async fn list(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    let entries = database(&state)?.read_tokens().await?;
    let read = |entry: &String| serde_json::from_str::<Token>(entry).ok();
    let mut tokens: Vec<Token> = entries.iter().filter_map(read).collect();
    tokens.sort_by(|a, b| (&a.name, a.created).cmp(&(&b.name, b.created)));
    Ok(Json(tokens).into_response())
}

async fn add(
    State(state): State<StorageState>,
    Json(token): Json<Token>,
) -> Result<Response, HandlerError> {
    let entry = serde_json::to_string(&token).unwrap_or_default();
    database(&state)?.add_token(&token.sha256, &entry).await?;
    info!(token = token.id(), name = token.name, "an operator added a token");
    Ok(Json(()).into_response())
}

/// Removes the tokens with these hashes.
async fn remove(
    State(state): State<StorageState>,
    Json(hashes): Json<Vec<String>>,
) -> Result<Response, HandlerError> {
    database(&state)?.remove_tokens(&hashes).await?;
    info!(tokens = hashes.len(), "an operator removed tokens");
    Ok(Json(()).into_response())
}
