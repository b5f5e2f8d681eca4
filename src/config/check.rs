//! Checks what the values of a config mean together.

use std::path::Path;

use super::{
    AuthMode, Bundle, Config, StoreKind, Tls, levels,
    load::{Fault, LoadedConfig},
};

/// Returns every fault that shows in the values alone.
pub fn check(loaded: &LoadedConfig) -> Vec<Fault> {
    let mut faults = Faults { loaded, found: Vec::new() };
    check_access(&mut faults);
    check_tls(&mut faults);
    check_urls(&mut faults);
    check_message_memory(&mut faults);
    check_bundle_store(&mut faults);
    check_limits(&mut faults);
    check_paths(&mut faults);
    faults.found
}

/// Faults of a config.
struct Faults<'a> {
    loaded: &'a LoadedConfig,
    found: Vec<Fault>,
}

impl<'a> Faults<'a> {
    fn config(&self) -> &'a Config {
        &self.loaded.config
    }

    fn add(&mut self, key: &str, problem: impl Into<String>) {
        self.found.push(self.loaded.fault(key, problem));
    }
}

/// Checks where the relay listens, and who may use it.
fn check_access(faults: &mut Faults<'_>) {
    let config = faults.config();
    if config.http.listen.is_empty() {
        faults.add(
            "http.listen",
            r#"expected at least one address with a port, such as "127.0.0.1:8081""#,
        );
    }
    if config.auth.mode == AuthMode::Unset
        && let Some(address) = config.http.listen.iter().find(|address| !address.ip().is_loopback())
    {
        faults.add(
            "auth.mode",
            format!(
                r#"is not set, and http.listen has {address}, which others can reach; write mode = "open" under [auth] to let anybody read and write every document whose id they know, or listen on 127.0.0.1 and [::1] alone"#
            ),
        );
    }
    if config.auth.mode == AuthMode::Jwt && config.auth.keys_file().as_os_str().is_empty() {
        faults.add("auth.jwt_keys", r#"is not set, and auth.mode is "jwt""#);
    }
    if config.http.proxy_protocol && config.http.trusted_proxies.is_empty() {
        faults.add(
            "http.trusted_proxies",
            "is empty, and http.proxy_protocol lets nobody else connect",
        );
    }
}

fn check_tls(faults: &mut Faults<'_>) {
    let Tls { cert, key } = &faults.config().tls;
    match (cert.as_os_str().is_empty(), key.as_os_str().is_empty()) {
        (true, false) => faults.add("tls.cert", "is not set, and tls.key is"),
        (false, true) => faults.add("tls.key", "is not set, and tls.cert is"),
        _ => {}
    }
}

/// Checks the origins that may use the relay, and its own URL.
fn check_urls(faults: &mut Faults<'_>) {
    let http = &faults.config().http;
    for origin in &http.allowed_origins {
        let host = origin.split_once("://").map(|(_, host)| host);
        if origin != "*" && !host.is_some_and(|host| !host.is_empty() && !host.contains('/')) {
            faults.add(
                "http.allowed_origins",
                format!(
                    r#"{origin:?} is no origin; expected "*" or one such as "https://app.example.org""#
                ),
            );
        }
    }
    let url = &http.public_url;
    if !url.is_empty()
        && !["ws://", "wss://", "http://", "https://"].iter().any(|s| url.starts_with(s))
    {
        faults.add(
            "http.public_url",
            format!(
                r#"{url:?} is no URL of a relay; expected one such as "wss://sync.example.org""#
            ),
        );
    }
}

fn check_message_memory(faults: &mut Faults<'_>) {
    let sync = &faults.config().sync;
    if sync.arriving < sync.max_message {
        faults.add(
            "sync.arriving",
            format!("is less than one message of sync.max_message, {}", sync.max_message),
        );
    }
}

fn check_bundle_store(faults: &mut Faults<'_>) {
    let bundles = &faults.config().bundles;
    if bundles.store == StoreKind::S3 && bundles.bucket.is_empty() {
        faults.add("bundles.bucket", r#"is not set, and bundles.store is "s3""#);
    }
    let endpoint = &bundles.endpoint_url;
    if !endpoint.is_empty() && !["http://", "https://"].iter().any(|s| endpoint.starts_with(s)) {
        faults.add(
            "bundles.endpoint_url",
            format!(
                r#"{endpoint:?} is no URL of a store; expected one such as "https://s3.example.org""#
            ),
        );
    }
    if endpoint.contains('@') {
        faults.add(
            "bundles.endpoint_url",
            "names credentials; they come from the usual AWS places, or the systemd credential aws-credentials",
        );
    }
}

/// Checks the log level, and limits that must not be 0.
fn check_limits(faults: &mut Faults<'_>) {
    let Config { log, limits, .. } = faults.config();
    if let Err(error) = levels::filter(&log.level) {
        faults.add("log.level", error.to_string().replacen("log.level: ", "", 1));
    }
    for (key, limit) in [
        ("limits.connections", limits.connections),
        ("limits.documents_per_connection", limits.documents_per_connection),
        ("limits.connections_per_address", limits.connections_per_address),
    ] {
        if limit == 0 {
            faults.add(key, "is 0; expected at least 1");
        }
    }
}

fn check_paths(faults: &mut Faults<'_>) {
    for (key, path) in named_paths(faults.config()) {
        if path.is_relative() {
            faults.add(
                key,
                format!("{} is a relative path; expected an absolute one", path.display()),
            );
        }
    }
}

/// Returns the keys that name a file or folder, with their values. A key that is not set is left
/// out.
pub fn named_paths(config: &Config) -> Vec<(&'static str, &Path)> {
    let Bundle { path, wasm, blank } = &config.bundle;
    let Tls { cert, key } = &config.tls;
    let mut paths: Vec<(&'static str, &Path)> = vec![
        ("bundle.path", path),
        ("bundle.wasm", wasm),
        ("bundle.blank", blank),
        ("tls.cert", cert),
        ("tls.key", key),
        ("auth.tokens", &config.auth.tokens),
        ("auth.jwt_keys", &config.auth.jwt_keys),
    ];
    paths.retain(|(_, path)| !path.as_os_str().is_empty());
    paths.push(("bundles.path", &config.bundles.path));
    paths.push(("storage.path", &config.storage.path));
    paths
}

/// Returns the keys that are set without effect because of other keys, each as a fault that says
/// why.
pub fn without_effect(loaded: &LoadedConfig) -> Vec<Fault> {
    let config = &loaded.config;
    let (auth, bundles) = (config.auth.mode, config.bundles.store);
    let mut found = Vec::new();
    let mut unless = |is_used: bool, keys: &[&str], because: &str| {
        for key in keys.iter().filter(|key| !is_used && loaded.origins.of(key) != "default") {
            found.push(loaded.fault(key, format!("has no effect: {because}")));
        }
    };
    unless(
        bundles == StoreKind::S3,
        &[
            "bundles.bucket",
            "bundles.region",
            "bundles.prefix",
            "bundles.endpoint_url",
            "bundles.path_style",
            "bundles.timeout",
        ],
        r#"bundles.store is not "s3""#,
    );
    unless(auth == AuthMode::Token, &["auth.tokens"], r#"auth.mode is not "token""#);
    unless(
        auth == AuthMode::Jwt,
        &["auth.jwt_keys", "auth.jwt_issuer", "auth.jwt_audience"],
        r#"auth.mode is not "jwt""#,
    );
    unless(
        matches!(auth, AuthMode::Token | AuthMode::Jwt),
        &["auth.query_token", "auth.anonymous", "auth.readonly_presence"],
        r#"auth.mode is neither "token" nor "jwt""#,
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn loaded(text: &str) -> LoadedConfig {
        let (config, origins) = load::parse("x.toml", text).expect("reads");
        LoadedConfig { file: Some("x.toml".into()), text: text.to_owned(), config, origins }
    }

    fn texts(faults: &[Fault]) -> Vec<String> {
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_defaults_have_no_fault() {
        assert_eq!(check(&loaded("")), []);
    }

    #[test]
    fn a_relay_that_others_can_reach_needs_auth_mode() {
        let faults =
            texts(&check(&loaded("[http]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:8081\"]\n")));
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0]
                .starts_with("x.toml: auth.mode: is not set, and http.listen has 0.0.0.0:8081"),
            "{faults:?}"
        );
        assert_eq!(
            check(&loaded("[http]\nlisten = [\"0.0.0.0:8081\"]\n[auth]\nmode = \"open\"\n")),
            []
        );
    }

    #[test]
    fn every_fault_of_the_values_is_reported() {
        let text = "[http]\nlisten = []\npublic_url = \"example.org\"\nallowed_origins = [\"example.org\"]\n\
                    [bundle]\npath = \"app.tonk\"\n[limits]\nconnections = 0\n[log]\nlevel = \"x=loud\"\n";
        let faults = texts(&check(&loaded(text)));
        let keys: Vec<&str> = faults.iter().filter_map(|fault| fault.split(": ").nth(1)).collect();
        assert_eq!(
            keys,
            [
                "http.listen",
                "http.allowed_origins",
                "http.public_url",
                "log.level",
                "limits.connections",
                "bundle.path"
            ]
        );
    }
}
