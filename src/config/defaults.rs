//! The default of every key. A test in [`load`](super::load) checks that the shipped file shows
//! them.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    Admin, AdminAddress, AllowedOrigin, Auth, AuthMode, Bundle, Bundles, Cluster, Config,
    DatabaseUrl, Durability, EngineKind, Forward, Http, Limits, Log, LogFormat, MemoryLimit,
    Network, Rate, Reload, Share, Size, Storage, StoreKind, Sync, Time, Tls,
};

impl Default for Config {
    fn default() -> Self {
        Self {
            drain_timeout: Time::secs(30),
            http: Http::default(),
            tls: Tls::default(),
            admin: Admin::default(),
            bundle: Bundle::default(),
            bundles: Bundles::default(),
            storage: Storage::default(),
            cluster: Cluster::default(),
            sync: Sync::default(),
            auth: Auth::default(),
            limits: Limits::default(),
            reload: Reload::default(),
            log: Log::default(),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            database: DatabaseUrl::default(),
            password_file: PathBuf::new(),
            timeout: Time::secs(5),
            stale: Time::secs(15 * 60),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: vec![
                SocketAddr::from(([127, 0, 0, 1], 8081)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, 8081)),
            ],
            public_url: String::new(),
            trusted_proxies: loopback(),
            proxy_protocol: false,
            allowed_origins: vec![AllowedOrigin::Any],
            metrics: true,
            header_timeout: Time::secs(10),
            body_idle_timeout: Time::secs(30),
            body_min_rate: Size(1 << 10),
            response_idle_timeout: Time::secs(60),
        }
    }
}

/// Returns the networks of this machine itself.
fn loopback() -> Vec<Network> {
    let networks: [(IpAddr, u8); 2] =
        [([127, 0, 0, 0].into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    networks
        .into_iter()
        .filter_map(|(at, bits)| ipnet::IpNet::new(at, bits).ok())
        .map(Network::from)
        .collect()
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: AuthMode::Unset,
            tokens: "/etc/tonk-relay.tokens".into(),
            jwt_keys: PathBuf::new(),
            jwt_issuer: String::new(),
            jwt_audience: String::new(),
            query_token: true,
            anonymous: Vec::new(),
            readonly_presence: true,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: vec![
                AdminAddress::Unix("/run/tonk-relay/admin.sock".into()),
                AdminAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 9464))),
            ],
        }
    }
}

impl Default for Bundles {
    fn default() -> Self {
        Self {
            store: StoreKind::Folder,
            path: "/var/lib/tonk-relay/bundles".into(),
            max_upload: Size(100_000_000),
            receiving: Size::mib(1024),
            max_inflated: Size::mib(1024),
            keep: 3,
            bucket: String::new(),
            region: String::new(),
            prefix: String::new(),
            endpoint_url: String::new(),
            path_style: false,
            timeout: Time::secs(30),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            path: "/var/lib/tonk-relay/documents".into(),
            durability: Durability::Fsync,
            commit_interval: Time(Duration::from_millis(20)),
            journal_size: Size::mib(64),
            quiet: Time::secs(60),
            grace: Time::secs(60),
            min_free: Size::mib(1024),
            max_unsaved: Size::mib(256),
            max_document: Size::mib(256),
            max_changes: 5_000_000,
        }
    }
}

impl Default for Sync {
    fn default() -> Self {
        Self {
            engine: EngineKind::Native,
            peer_id: String::new(),
            handshake_timeout: Time::secs(10),
            ping_interval: Time::secs(5),
            idle_unload: Time::secs(60),
            memory: MemoryLimit::Percent(70),
            max_message: Size::mib(100),
            arriving: Size::mib(400),
            message_min_rate: Size(4 << 10),
            max_inflated: Size::mib(256),
            send_queue: Size::mib(8),
            receive_queue: Size::mib(256),
            forward_requests: Forward::Open,
            forward_peers: 32,
            forward_timeout: Time::secs(5),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 15_000,
            connections_per_address: 500,
            handshakes_per_address: Rate::per_minute(600),
            messages_per_connection: Rate::per_second(500),
            bytes_per_connection: Rate::bytes_per(Size::mib(20), Duration::from_secs(1)),
            processor_per_connection: Share::percent(25),
            documents_per_connection: 2_000,
            unknown_documents: Rate::per_minute(600),
            new_documents: Rate::per_hour(1_000),
            stored_bytes: Size::mib(10 << 10),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto, repeat: Time::secs(10) }
    }
}
