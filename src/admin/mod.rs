//! The admin listener: metrics, health, and the requests of the commands.
//!
//! Every address of `[admin] listen` answers `GET /metrics`, `/livez` and `/readyz?verbose`, and
//! `/` with a list of these; loopback addresses also answer `/status` ([`status`]). The Unix
//! socket, which root and the service's group may connect to, also answers `POST /reload`,
//! `/token-use`, and the requests of [`storage`] and [`live`]. [`client`] is the client that the
//! commands use.

pub mod client;
mod error;
mod handler;
pub mod live;
pub mod reload;
pub mod status;
pub mod storage;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use axum::{Json, Router, extract::State, middleware, routing::get};

use self::{reload::Reload, storage::state::StorageState};
use crate::{
    http::{pages, require_host, state::App},
    sync::rooms::Rooms,
};

/// Returns the router of a TCP address. Only loopback addresses have the status page.
pub fn tcp_router(app: App, address: SocketAddr) -> Router {
    let router = router(app.clone());
    let router = match address.ip().is_loopback() {
        true => {
            router.merge(Router::new().route("/status", get(status::masked_status)).with_state(app))
        }
        false => router,
    };
    router.layer(middleware::from_fn(require_host))
}

/// The page at `/`.
const INDEX: &str = "The admin port of tonk-relay:\n\
    /metrics         metrics for Prometheus\n\
    /livez           whether the process answers\n\
    /readyz?verbose  whether it can sync and store, and every check\n\
    /status          the status page; on loopback addresses only\n";

/// The routes that every address has.
fn router(app: App) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/metrics", get(pages::metrics))
        .route("/livez", get(pages::livez))
        .route("/readyz", get(pages::admin_readyz))
        .with_state(app)
}

/// Returns the router of the Unix socket.
pub fn unix_router(app: App, rooms: Arc<Rooms>, reload: Reload, storage: StorageState) -> Router {
    let status = Router::new()
        .route("/status", get(status::full_status))
        .route("/token-use", get(token_use))
        .with_state(app.clone());
    router(app)
        .merge(status)
        .merge(reload::routes(reload))
        .merge(live::router(rooms))
        .merge(storage::router(storage))
}

/// Returns when each token was last used, in seconds since 1970, by the token's hash.
async fn token_use(State(app): State<App>) -> Json<BTreeMap<String, u64>> {
    Json(app.auth.last_use().seconds())
}
