//! The config file: its keys, defaults and units.
//!
//! [`Config`] is the whole of `/etc/tonk-relay.toml`; what its keys mean to an operator is said in
//! the shipped file, `etc/tonk-relay.toml`, and nowhere else. [`load`] reads a file and names every
//! fault in it, [`check`] finds the faults that show in the values alone, and [`reload`] tells what
//! a running relay can take over. Values with a syntax of their own are in [`levels`], [`scopes`]
//! and `units`; [`credentials`] are files that systemd passes on.

mod admin_address;
pub mod check;
pub mod credentials;
mod defaults;
pub mod levels;
pub mod load;
pub mod reload;
pub mod scopes;
mod units;

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
pub use self::{
    admin_address::AdminAddress,
    units::{MemoryLimit, Network, Rate, Share, Size, Time},
};
use self::scopes::Scope;

/// Everything that can be configured.
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
    pub listen: Vec<SocketAddr>,
    pub public_url: String,
    pub trusted_proxies: Vec<Network>,
    pub proxy_protocol: bool,
    pub allowed_origins: Vec<String>,
    pub metrics: bool,
    pub header_timeout: Time,
    pub body_idle_timeout: Time,
    pub body_min_rate: Size,
    pub response_idle_timeout: Time,
}

/// `[tls]`: the public port's certificate; both empty for plain HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// `[admin]`: metrics, health and the live commands.
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
    /// Amazon S3, or what speaks it.
    S3,
}

impl StoreKind {
    /// Its name in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::S3 => "s3",
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

/// What a change that was told as saved survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power loss.
    Fsync,
    /// The end of the process, however it comes.
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
    /// A samod repository for each document: the reference that the native one is compared with.
    Samod,
}

/// When requests for unknown documents are passed on to other peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// In open mode only.
    Open,
    /// In every mode.
    Always,
    /// In none.
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
    /// Nothing was chosen: open to clients of this machine, and to nobody else.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// Anybody who reaches the port may read and write every document whose id they know.
    #[serde(rename = "open")]
    Open,
    /// By a token of the relay's own.
    #[serde(rename = "token")]
    Token,
    /// By a JWT that somebody else has signed.
    #[serde(rename = "jwt")]
    Jwt,
}

impl Auth {
    /// Whether anybody who reaches the relay may change every document.
    pub fn lets_all_write(&self) -> bool {
        self.mode.is_open() || self.anonymous.contains(&Scope::Write(None))
    }
}

impl AuthMode {
    /// Whether somebody without a token is let in.
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

/// `[reload]`: what happens without being asked.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/tonk-relay.toml describes the keys")]
pub struct Reload {
    pub watch_config: bool,
}

/// `[log]`: what is logged, and how.
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
    /// The journal when systemd started the relay, else text.
    Auto,
    /// journald's own protocol, with fields.
    Journal,
    /// A line on stderr for a person to read.
    Text,
    /// A JSON object a line on stderr.
    Json,
}

impl Http {
    /// Whether an address is a trusted proxy's.
    pub fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.has(address))
    }
}

impl Sync {
    /// `receive_queue` in KiB, as places of a semaphore.
    pub fn receive_places(&self) -> u32 {
        u32::try_from(self.receive_queue.0 / 1024).unwrap_or(u32::MAX).clamp(1, 1 << 28)
    }
}

impl Sync {
    /// The peer id that clients see: the configured one, or `tonk-relay-<hostname>`.
    pub fn peer_id(&self) -> String {
        if self.peer_id.is_empty() {
            let host = rustix::system::uname();
            format!("tonk-relay-{}", host.nodename().to_string_lossy())
        } else {
            self.peer_id.clone()
        }
    }
}

impl Config {
    /// Whether requests for unknown documents are passed on to other peers.
    pub fn forwards_requests(&self) -> bool {
        match self.sync.forward_requests {
            Forward::Open => self.auth.mode.is_open(),
            Forward::Always => true,
            Forward::Never => false,
        }
    }
}
