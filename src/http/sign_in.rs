//! Sign-in of requests: where a token may be, and the middleware that checks rights.

use std::borrow::Cow;

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderMap, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{
    client,
    error::HttpError,
    grant::{Grant, Need},
    listener::ClientAddress,
    state::App,
};
use crate::auth::{Access, Client, Refusal};

/// The prefix of a WebSocket subprotocol with a token. Browsers cannot set headers of a WebSocket.
const BEARER_PROTOCOL: &str = "bearer.";
/// The subprotocol that the relay selects. Clients offer it together with the one that has the
/// token.
pub const PROTOCOL: &str = "tonk-relay";

/// The client of a request, which is determined once, for limits and sign-in.
#[derive(Clone, Copy, Debug)]
pub struct RequestClient(pub Client);

#[derive(Deserialize)]
struct Query {
    token: Option<String>,
}

/// Returns the token of a request: from `Authorization`, a WebSocket subprotocol, or `?token=` if
/// `query_token` is set.
pub fn token<'a>(headers: &'a HeaderMap, uri: &Uri, query_token: bool) -> Option<Cow<'a, str>> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = authorization.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    if let Some(token) = bearer {
        return Some(Cow::Borrowed(token));
    }
    if let Some(token) = protocols(headers).find_map(|name| name.strip_prefix(BEARER_PROTOCOL)) {
        return Some(Cow::Borrowed(token));
    }
    if !query_token {
        return None;
    }
    axum::extract::Query::<Query>::try_from_uri(uri)
        .ok()?
        .0
        .token
        .filter(|token| !token.is_empty())
        .map(Cow::Owned)
}

/// Returns the WebSocket subprotocols that a request offers.
pub(super) fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Records the client of a request in its extensions.
pub(super) fn record_client(app: &App, request: &mut Request) {
    let peer = request.extensions().get::<ClientAddress>().map(|address| address.0.ip());
    let config = app.config.borrow().clone();
    let client = client::client(peer, request.headers(), &config.http.trusted_proxies);
    request.extensions_mut().insert(RequestClient(client));
}

/// Admits a request.
///
/// # Errors
/// The request has no token, or an invalid one.
pub fn admit(app: &App, client: Client, headers: &HeaderMap, uri: &Uri) -> Result<Access, Refusal> {
    let query_token = app.config.borrow().auth.query_token;
    let token = token(headers, uri, query_token);
    let admitted = app.auth.admit(token.as_deref(), client);
    let outcome = admitted.as_ref().map_or_else(Refusal::label, |_| "admitted");
    app.sync.sessions.observed.counts.sign_in(outcome);
    admitted
}

/// Admits requests that have the right that a route requires.
pub async fn require(
    need: Need,
    State(app): State<App>,
    Extension(RequestClient(client)): Extension<RequestClient>,
    mut request: Request,
    next: Next,
) -> Response {
    let access = match admit(&app, client, request.headers(), request.uri()) {
        Ok(access) => access,
        Err(refusal) => return HttpError::SignIn(refusal).into_response(),
    };
    let grant = match Grant::new(&app, client, need, access) {
        Ok(grant) => grant,
        Err(error) => return error.into_response(),
    };
    request.extensions_mut().insert(grant.clone());
    let mut response = next.run(request).await;
    // The response to an upload, or an error, needs no protection, and the client has to read it.
    if need != Need::Upload && response.status().is_success() {
        response = response.map(|body| grant.guard(body));
    }
    if app.auth.requires_sign_in() {
        keep_private(response.headers_mut());
    }
    response
}

/// Forbids shared caches to store a response that needs a token.
fn keep_private(headers: &mut HeaderMap) {
    let cache = headers.get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let value = cache.unwrap_or("public, no-cache").replace("public", "private");
    if let Ok(value) = value.parse() {
        headers.insert(header::CACHE_CONTROL, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &str)], uri: &str, query_token: bool) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: header::HeaderName = name.parse().expect("a name");
            map.append(name, value.parse().expect("a value"));
        }
        token(&map, &uri.parse().expect("a URI"), query_token).map(Cow::into_owned)
    }

    #[test]
    fn a_token_is_found_in_every_place_that_clients_use() {
        let found = Some("abc".to_owned());
        assert_eq!(of(&[("authorization", "Bearer abc")], "/", true), found);
        assert_eq!(of(&[("authorization", "bearer  abc ")], "/", true), found);
        assert_eq!(of(&[("sec-websocket-protocol", "tonk-relay, bearer.abc")], "/", true), found);
        assert_eq!(of(&[], "/sync?x=1&token=abc", true), found);
        assert_eq!(of(&[], "/?token=a%62c", true), found);
        assert_eq!(of(&[], "/?token=abc", false), None);
        assert_eq!(of(&[("authorization", "Basic abc")], "/", true), None);
        assert_eq!(of(&[], "/?token=", true), None);
        assert_eq!(
            of(&[("authorization", "Bearer abc")], "/?token=other", true),
            found,
            "the header has precedence"
        );
    }
}
