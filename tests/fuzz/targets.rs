//! What is fuzzed: everything that reads bytes of somebody else's before it is known whose they are. None of these may
//! panic, hang, or take memory beyond its limits, whatever the bytes.

use std::io::Cursor;

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use tonk_relay::{
    bundle::{Bundle, MaxInflated},
    config::{Config, Size, load},
    http::{client, proxied, sign_in},
    sync::wire::{Message, SyncMessage, heads_in},
    unpacked::{self, Origin},
};

type Target = fn(&[u8]);

/// The names of the targets, and what each does.
pub(crate) const TARGETS: [(&str, Target); 5] =
    [("wire", wire), ("sync", sync), ("bundle", bundle), ("config", config), ("query", query)];

/// A frame of a WebSocket.
pub(crate) fn wire(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let _ = message.body.name();
    }
}

/// What a sync message carries, and what chunks unpack to.
pub(crate) fn sync(data: &[u8]) {
    let _ = heads_in(data);
    let _ = SyncMessage::read(data.to_vec().into(), Size::mib(64));
    let _ = unpacked::of(data, Origin::Peer, Size::mib(64));
}

/// An uploaded bundle, up to where automerge takes over.
pub(crate) fn bundle(data: &[u8]) {
    let max_inflated = MaxInflated { bundle: 4 << 20, document: Size::mib(16) };
    if let Ok(mut bundle) = Bundle::open(Cursor::new(data), max_inflated) {
        let _ = (bundle.documents(), bundle.slim());
    }
}

/// A config file.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = load::admin_socket(text);
    if let Err(faults) = load::parse("fuzzed.toml", text) {
        assert!(!faults.is_empty(), "what is refused is refused for a reason");
    }
}

/// What comes with a request before its sign-in: its URI, its headers, and the PROXY protocol's header before it.
pub(crate) fn query(data: &[u8]) {
    let mut rest = data;
    let _ = futures::executor::block_on(proxied::read(&mut rest));
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(data) {
        for name in [header::AUTHORIZATION, header::SEC_WEBSOCKET_PROTOCOL] {
            headers.insert(name, value.clone());
        }
        headers.insert("x-forwarded-for", value);
    }
    let uri = Uri::try_from(data).unwrap_or_default();
    let _ = sign_in::token(&headers, &uri, true);
    let _ = sign_in::token(&HeaderMap::new(), &uri, true);
    let _ = client::client(
        Some([127, 0, 0, 1].into()),
        &headers,
        &Config::default().http.trusted_proxies,
    );
}
