//! The fuzz targets: all code that reads untrusted bytes before sign-in. It must not panic, hang,
//! or use memory beyond its limits, whatever the bytes are.

use std::{
    io::{Cursor, Read},
    panic::{self, AssertUnwindSafe},
};

use automerge::Automerge;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use flate2::read::DeflateDecoder;
use sha2::{Digest, Sha256};
use tonk_relay::{
    bundle::{Bundle, MaxInflated},
    config::{Config, Size, load},
    document::{
        gate::{Document, Rules, loads},
        sync_message::{SyncMessage, heads_in},
        unpacked::{self, Origin},
    },
    http::{client, proxy_protocol, sign_in},
    sync::wire::Message,
};

#[path = "../changes/mod.rs"]
mod changes;

type Target = fn(&[u8]);

/// The names of the targets, and their functions.
pub(crate) const TARGETS: [(&str, Target); 7] = [
    ("wire", wire),
    ("sync", sync),
    ("chunk", chunk),
    ("bundle", bundle),
    ("config", config),
    ("query", query),
    ("gate", gate),
];

/// A WebSocket frame.
pub(crate) fn wire(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let _ = message.body.name();
    }
}

/// The content of a sync message, and what its chunks unpack to.
pub(crate) fn sync(data: &[u8]) {
    let _ = heads_in(data);
    let _ = SyncMessage::read(data.to_vec().into(), Size::mib(64));
    let _ = unpacked::of(data, Origin::Peer, Size::mib(64));
}

/// A chunk's kind and contents. Automerge reads the chunks that pass the checks, and must not use
/// more memory than these predict; the fuzzer enforces that (`-rss_limit_mb`). Automerge may panic,
/// because the relay catches it.
pub(crate) fn chunk(data: &[u8]) {
    let Some(chunk) = whole(data) else { return };
    if unpacked::of(&chunk, Origin::Peer, Size::mib(16)).is_ok() {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let _ = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut doc = Automerge::new();
            doc.load_incremental(&chunk).map(|_| doc.save())
        }));
        panic::set_hook(hook);
    }
}

/// The chunk of a kind and contents, with a valid checksum, without which automerge would not read
/// it.
fn whole(data: &[u8]) -> Option<Vec<u8>> {
    let (kind, contents) = data.split_first()?;
    let kind = kind % 4;
    let mut length = Vec::new();
    leb128(contents.len(), &mut length);
    let mut checked = vec![kind];
    if kind == 2 {
        // The type of the change that is deflated here.
        let mut inflated = Vec::new();
        DeflateDecoder::new(contents).take(1 << 20).read_to_end(&mut inflated).ok()?;
        checked = vec![1];
        leb128(inflated.len(), &mut checked);
        checked.extend(inflated);
    } else {
        checked.extend(&length);
        checked.extend(contents);
    }
    let checksum = Sha256::digest(checked);
    Some([&[0x85, 0x6f, 0x4a, 0x83], checksum.get(..4)?, &[kind], &*length, contents].concat())
}

fn leb128(mut number: usize, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push((number & 0x7f | 0x80) as u8);
        number >>= 7;
    }
    into.push(number as u8);
}

/// Decisions from which a document and altered changes are generated. What the gate admits must
/// load again, and what it refuses must leave the document unchanged. `tests/admission.rs` checks
/// that JavaScript can read it.
pub(crate) fn gate(data: &[u8]) {
    let case = changes::Case::draw(data);
    let Ok(mut doc) = Document::read(&case.base.save(), Rules::Admission) else {
        unreachable!("an honest document is admitted: {}", case.describe());
    };
    for message in &case.messages {
        if unpacked::of(message, Origin::Peer, Size::mib(16)).is_err() {
            return;
        }
        let before = doc.heads().to_vec();
        if doc.admit(message, Rules::Admission).is_err() {
            assert_eq!(doc.heads(), before, "{}", case.describe());
            break;
        }
    }
    if !doc.is_damaged() {
        let heads = doc.heads().to_vec();
        assert!(loads(&doc.automerge().save(), &heads), "{}", case.describe());
    }
}

/// An uploaded bundle, up to where automerge reads it.
pub(crate) fn bundle(data: &[u8]) {
    let max_inflated = MaxInflated { bundle: 4 << 20, document: Size::mib(16) };
    if let Ok(mut bundle) = Bundle::open(Cursor::new(data), max_inflated) {
        let _ = (bundle.documents(), bundle.slim());
    }
}

/// A config file.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = load::admin_socket(std::path::Path::new("/etc/tonk-relay.toml"), text);
    if let Err(faults) = load::parse("fuzzed.toml", text) {
        assert!(!faults.is_empty(), "what is refused is refused for a reason");
    }
}

/// The parts of a request before its sign-in: its URI, its headers, and a PROXY protocol header.
pub(crate) fn query(data: &[u8]) {
    let mut rest = data;
    let _ = futures::executor::block_on(proxy_protocol::read(&mut rest));
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
