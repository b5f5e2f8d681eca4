//! Which changes of a config a running relay applies, and which it refuses, by key.

use super::{Config, load};

/// Lists for every key whether a running relay can change it. A key of a section that is in neither
/// list does not compile. `drain_timeout`, which has no section, can be changed.
macro_rules! effects {
    ($(
        $section:ident: $kind:ident { live: [$($live:ident),*], restart: [$($restart:ident),*] }
    )*) => {
        /// Keys that a running relay cannot change, as `section.key`, in the order of the shipped
        /// file, which marks them with (R).
        pub const NEEDS_RESTART: &[&str] = &[
            $($(concat!(stringify!($section), ".", stringify!($restart)),)*)*
        ];

        const _: fn(&Config) = |config| {
            let Config {
                drain_timeout: _,
                $($section: super::$kind { $($live: _,)* $($restart: _,)* },)*
            } = config;
        };
    };
}

effects! {
    http: Http {
        live: [
            public_url, trusted_proxies, allowed_origins, metrics, header_timeout,
            body_idle_timeout, body_min_rate, response_idle_timeout
        ],
        restart: [listen, proxy_protocol]
    }
    tls: Tls { live: [cert, key], restart: [] }
    admin: Admin { live: [], restart: [listen] }
    bundle: Bundle { live: [path, wasm, blank], restart: [] }
    bundles: Bundles {
        live: [max_upload, receiving, max_inflated, keep],
        restart: [store, path, bucket, region, prefix, endpoint_url, path_style, timeout]
    }
    storage: Storage {
        live: [min_free, max_unsaved, max_document, max_changes],
        restart: [path, durability, commit_interval, journal_size, quiet, grace]
    }
    cluster: Cluster { live: [stale], restart: [database, password_file, timeout] }
    sync: Sync {
        live: [
            handshake_timeout, ping_interval, idle_unload, memory, max_message, arriving,
            message_min_rate, max_inflated, send_queue, forward_requests, forward_peers,
            forward_timeout
        ],
        restart: [engine, peer_id, receive_queue]
    }
    auth: Auth {
        live: [
            mode, tokens, jwt_keys, jwt_issuer, jwt_audience, query_token, anonymous,
            readonly_presence
        ],
        restart: []
    }
    limits: Limits {
        live: [
            connections, connections_per_address, handshakes_per_address, messages_per_connection,
            bytes_per_connection, processor_per_connection, documents_per_connection,
            unknown_documents, new_documents, stored_bytes
        ],
        restart: []
    }
    reload: Reload { live: [watch_config], restart: [] }
    log: Log { live: [level, repeat], restart: [format] }
}

/// The keys whose values differ, as `section.key`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys that take effect at once.
    pub live: Vec<String>,
    /// Keys that need a restart.
    pub restart: Vec<String>,
}

/// Returns why a running relay refuses a change of sign-in, if it does: a reload never turns
/// sign-in off and never gives anonymous clients more scopes.
pub fn weakens_sign_in(now: &Config, new: &Config) -> Option<&'static str> {
    if now.auth.mode.is_open() {
        return None;
    }
    if new.auth.mode.is_open() {
        return Some("a reload never turns sign-in off; restart the relay to do that");
    }
    let adds = new.auth.anonymous.iter().any(|scope| !now.auth.anonymous.contains(scope));
    adds.then_some("a reload never adds to auth.anonymous; restart the relay to do that")
}

/// Compares the config in effect with a new one.
pub fn compare(now: &Config, new: &Config) -> Changes {
    let (restart, live) = load::changed_keys(now, new)
        .into_iter()
        .partition(|key| NEEDS_RESTART.contains(&key.as_str()));
    Changes { live, restart }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Time, load::keys};

    #[test]
    fn changed_keys_are_listed_by_whether_they_need_a_restart() {
        let now = Config::default();
        let mut new = now.clone();
        assert_eq!(compare(&now, &new), Changes::default());
        new.sync.ping_interval = Time::secs(9);
        new.storage.path = "/elsewhere".into();
        assert_eq!(
            compare(&now, &new),
            Changes {
                live: vec!["sync.ping_interval".into()],
                restart: vec!["storage.path".into()]
            }
        );
    }

    #[test]
    fn the_shipped_file_marks_the_keys_that_need_a_restart() {
        let table = load::to_table(&Config::default());
        let keys: Vec<String> = keys(&table).into_iter().map(|(key, _)| key).collect();
        let shipped = include_str!("../../etc/tonk-relay.toml");
        let mut section = String::new();
        let mut marked = Vec::new();
        for line in shipped.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.split(']').next().unwrap_or_default().to_owned();
            } else if line.contains("(R)") && line.contains(" = ") {
                let key = line.trim_start_matches('#').split(' ').next().unwrap_or_default();
                marked.push(format!("{section}.{key}"));
            }
        }
        for key in NEEDS_RESTART {
            assert!(keys.iter().any(|k| k == key), "{key} is not a key");
        }
        assert_eq!(marked, NEEDS_RESTART);
    }
}
