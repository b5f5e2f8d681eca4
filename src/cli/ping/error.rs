//! Which step of `tonk-relay ping` failed, and what to do.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use tokio_tungstenite::tungstenite;

use crate::sync::wire::WireError;

/// Which step failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum PingError {
    #[error("{0}: expected a URL such as wss://relay.example.org")]
    Url(String),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("address: {host}: {source}")]
    Lookup { host: String, source: io::Error },
    #[error(
        "address: {address} does not answer: {source}; is the relay or its proxy up, and the port open?"
    )]
    Connect { address: SocketAddr, source: io::Error },
    #[error("tls: {0}; openssl s_client -connect HOST:PORT says more")]
    Tls(io::Error),
    #[error(
        "tls: no certificate to trust is found on this machine; install ca-certificates, or name some with --ca-file"
    )]
    NoRoots,
    #[error(
        "upgrade: the answer is HTTP {0} and no WebSocket; a proxy on the way must pass on `Upgrade` and `Connection`, and \
         speak HTTP/1.1 to the relay"
    )]
    Status(u16),
    #[error(
        "upgrade: the answer is HTTP {0}: the proxy on the way does not reach the relay; is it up, on the port that the proxy asks?"
    )]
    NoRelay(u16),
    #[error(
        "silence: {0}; a proxy's timeout for idle connections must be longer than twice sync.ping_interval"
    )]
    Cut(Box<PingError>),
    #[error("upgrade: {0}")]
    Upgrade(tungstenite::Error),
    #[error("{step}: the connection broke: {source}")]
    Broke { step: &'static str, source: tungstenite::Error },
    #[error("{step}: closed with {code}: {reason}")]
    Closed { step: &'static str, code: u16, reason: String },
    #[error("{step}: refused: {reason}")]
    Refused { step: &'static str, reason: String },
    #[error("{step}: the connection ended; something on the way cuts it")]
    Ended { step: &'static str },
    #[error("{step}: no answer within {limit:?}")]
    Late { step: &'static str, limit: Duration },
    #[error("{step}: the answer is not understood: {source}; is this a sync server?")]
    Wire { step: &'static str, source: WireError },
}
