//! The config file: its keys, defaults and units.
//!
//! [`Config`] is the whole of `/etc/tonk-relay.toml`. The shipped file, `etc/tonk-relay.toml`, is
//! the only description of the keys.
//!
//! | to find | look in |
//! |---|---|
//! | the defaults | `defaults` |
//! | reading a file, and its faults | [`load`], `syntax`, `expected` |
//! | the defaults of several relays on one machine | [`instance`] |
//! | faults of the values together | [`check`] |
//! | keys without effect, and values that can never match | [`warnings`] |
//! | which keys a reload can change | [`reload`] |
//! | the syntax of values | `units`, `admin_address`, `allowed_origin`, `database`, [`levels`], [`scopes`] |
//! | files that systemd passes on | [`credentials`] |

mod admin_address;
mod allowed_origin;
pub mod check;
pub mod credentials;
mod database;
mod defaults;
mod expected;
pub mod instance;
pub mod levels;
pub mod load;
pub mod reload;
pub mod scopes;
mod syntax;
mod units;
pub mod warnings;

use std::{net::SocketAddr, path::PathBuf};

use self::scopes::Scope;
pub use self::{
    admin_address::AdminAddress,
    allowed_origin::AllowedOrigin,
    database::{Database, DatabaseHost, DatabaseTls, DatabaseUrl},
    syntax::line_of,
    units::{MemoryLimit, Network, Rate, Share, Size, Time},
};
use serde::{Deserialize, Serialize};

/// The whole config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each section's struct says what it is")]
pub struct Config {
    pub drain_timeout: Time,
    pub http: Http,
    pub tls: Tls,
    pub admin: Admin,
    pub bundle: Bundle,
    pub bundles: Bundles,
    pub storage: Storage,
    pub cluster: Cluster,
    pub sync: Sync,
    pub auth: Auth,
    pub limits: Limits,
    pub reload: Reload,
    pub log: Log,
}

/// `[http]`: the public port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Http {
    #[serde(deserialize_with = "units::listen")]
    pub listen: Vec<SocketAddr>,
    pub public_url: String,
    pub trusted_proxies: Vec<Network>,
    pub proxy_protocol: bool,
    pub allowed_origins: Vec<AllowedOrigin>,
    pub metrics: bool,
    pub header_timeout: Time,
    pub body_idle_timeout: Time,
    pub body_min_rate: Size,
    pub response_idle_timeout: Time,
}

/// `[tls]`: the certificate of the public port. Both are empty for plain HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// `[admin]`: the port for metrics, health and commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Admin {
    pub listen: Vec<AdminAddress>,
}

/// `[bundle]`: the bundle that is served at `/.manifest.tonk`.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Bundle {
    pub path: PathBuf,
    pub wasm: PathBuf,
    pub blank: PathBuf,
}

/// `[bundles]`: uploaded bundles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Bundles {
    pub store: StoreKind,
    pub path: PathBuf,
    pub max_upload: Size,
    pub receiving: Size,
    pub max_inflated: Size,
    pub keep: usize,
    pub bucket: String,
    pub region: String,
    pub prefix: String,
    pub endpoint_url: String,
    pub path_style: bool,
    pub timeout: Time,
}

/// Where uploaded bundles are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A local folder.
    Folder,
    /// Amazon S3, or a compatible store.
    S3,
    /// Nowhere: the relay accepts no uploads.
    None,
}

impl StoreKind {
    /// Returns its name in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::S3 => "s3",
            Self::None => "none",
        }
    }
}

/// `[storage]`: the documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Storage {
    pub path: PathBuf,
    pub durability: Durability,
    pub commit_interval: Time,
    pub journal_size: Size,
    pub quiet: Time,
    pub grace: Time,
    pub min_free: Size,
    pub max_unsaved: Size,
    pub max_document: Size,
    pub max_changes: u64,
}

/// `[cluster]`: a database for the documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Cluster {
    pub database: DatabaseUrl,
    pub password_file: PathBuf,
    pub timeout: Time,
    pub stale: Time,
}

/// What a change survives once the relay has reported it as saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power loss.
    Fsync,
    /// Any end of the process, such as a crash.
    Relaxed,
}

/// `[sync]`: sessions and rooms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Sync {
    pub engine: EngineKind,
    pub peer_id: String,
    pub handshake_timeout: Time,
    pub ping_interval: Time,
    pub idle_unload: Time,
    pub memory: MemoryLimit,
    pub max_message: Size,
    pub arriving: Size,
    pub message_min_rate: Size,
    pub max_inflated: Size,
    pub send_queue: Size,
    pub receive_queue: Size,
    pub forward_requests: Forward,
    pub forward_peers: usize,
    pub forward_timeout: Time,
}

/// What synchronises a live document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// automerge itself.
    Native,
    /// A samod repository for each document, which is the reference for tests of the native engine.
    Samod,
}

/// When the relay forwards requests for unknown documents to other peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// In open mode only.
    Open,
    /// In every mode.
    Always,
    /// In no mode.
    Never,
}

/// `[auth]`: who may use the relay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Auth {
    pub mode: AuthMode,
    pub tokens: PathBuf,
    pub jwt_keys: PathBuf,
    pub jwt_issuer: String,
    pub jwt_audience: String,
    pub query_token: bool,
    pub anonymous: Vec<Scope>,
    pub readonly_presence: bool,
}

/// How a peer proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AuthMode {
    /// Not set: open to clients of this machine only.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// Everyone who reaches the port may read and write every document whose id they know.
    #[serde(rename = "open")]
    Open,
    /// By a token that the relay has issued.
    #[serde(rename = "token")]
    Token,
    /// By a JWT that an identity provider has signed.
    #[serde(rename = "jwt")]
    Jwt,
}

impl Auth {
    /// Whether everyone who reaches the relay may change every document.
    pub fn lets_all_write(&self) -> bool {
        self.mode.is_open() || self.anonymous.contains(&Scope::Write(None))
    }
}

impl AuthMode {
    /// Whether clients are admitted without a token.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Unset | Self::Open)
    }
}

/// `[limits]`: what one relay and one connection may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Limits {
    pub connections: usize,
    pub connections_per_address: usize,
    pub handshakes_per_address: Rate,
    pub messages_per_connection: Rate,
    pub bytes_per_connection: Rate,
    pub processor_per_connection: Share,
    pub documents_per_connection: usize,
    pub unknown_documents: Rate,
    pub new_documents: Rate,
    pub stored_bytes: Size,
}

/// `[reload]`: reloads without a request.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Reload {
    pub watch_config: bool,
}

/// `[log]`: the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
    pub repeat: Time,
}

/// Where log lines go and what they look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The journal if systemd has started the relay, otherwise text.
    Auto,
    /// journald's protocol, with fields.
    Journal,
    /// A line on stderr for a person to read.
    Text,
    /// One JSON object per line on stderr.
    Json,
}

impl Http {
    /// Whether an address belongs to a trusted proxy.
    pub fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }
}

impl Cluster {
    /// Whether documents are in a database, which other relays may share.
    pub fn is_set(&self) -> bool {
        !self.database.is_empty()
    }
}

impl Sync {
    /// Returns `receive_queue` in KiB, as permits of a semaphore.
    pub fn receive_permits(&self) -> u32 {
        u32::try_from(self.receive_queue.0 / 1024).unwrap_or(u32::MAX).clamp(1, 1 << 28)
    }

    /// Returns the peer id that clients see: the configured one, or `tonk-relay-<hostname>`.
    pub fn peer_id(&self) -> String {
        if self.peer_id.is_empty() { peer_id_of_host() } else { self.peer_id.clone() }
    }
}

/// The peer id of the only relay of this machine.
fn peer_id_of_host() -> String {
    format!("tonk-relay-{}", rustix::system::uname().nodename().to_string_lossy())
}

impl Config {
    /// Whether the relay forwards requests for unknown documents to other peers.
    pub fn forwards_requests(&self) -> bool {
        match self.sync.forward_requests {
            Forward::Open => self.auth.mode.is_open(),
            Forward::Always => true,
            Forward::Never => false,
        }
    }
}
