//! What a running relay takes over from a changed config, and what it refuses, by key.

use super::{Config, load};

/// Keys that a running relay cannot change, as `section.key`; they are marked (R) in the shipped file.
pub const NEED_A_RESTART: [&str; 21] = [
    "http.listen",
    "http.proxy_protocol",
    "admin.listen",
    "bundles.store",
    "bundles.path",
    "bundles.bucket",
    "bundles.region",
    "bundles.prefix",
    "bundles.endpoint_url",
    "bundles.path_style",
    "bundles.timeout",
    "storage.path",
    "storage.durability",
    "storage.commit_interval",
    "storage.journal_size",
    "storage.quiet",
    "storage.grace",
    "sync.engine",
    "sync.peer_id",
    "sync.receive_queue",
    "log.format",
];

/// The keys whose values differ, as `section.key`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that take effect at once.
    pub live: Vec<String>,
    /// Those that need a restart.
    pub restart: Vec<String>,
}

/// Why a running relay does not take over a change of sign-in, if it does not: a reload never opens a relay that asks for
/// tokens, nor a part of it.
pub fn opens(now: &Config, new: &Config) -> Option<&'static str> {
    if now.auth.mode.is_open() {
        return None;
    }
    if new.auth.mode.is_open() {
        return Some("a reload never turns sign-in off; a restart does");
    }
    let adds = new.auth.anonymous.iter().any(|scope| !now.auth.anonymous.contains(scope));
    adds.then_some("a reload never adds to auth.anonymous; a restart does")
}

/// Compare the config in effect with a new one.
pub fn compare(now: &Config, new: &Config) -> Changes {
    let (restart, live) = load::changed_keys(now, new)
        .into_iter()
        .partition(|key| NEED_A_RESTART.contains(&key.as_str()));
    Changes { live, restart }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Time, load::leaves};

    #[test]
    fn changed_keys_are_named_by_what_they_need() {
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
    fn the_list_names_real_keys_and_the_shipped_file_marks_them() {
        let table = load::settings(&Config::default());
        let keys: Vec<String> = leaves(&table).into_iter().map(|(key, _)| key).collect();
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
        for key in NEED_A_RESTART {
            assert!(keys.iter().any(|k| k == key), "{key} is no key");
        }
        assert_eq!(marked, NEED_A_RESTART);
    }
}
