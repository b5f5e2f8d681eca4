//! What the values of a config mean together.

use std::path::Path;

use super::{AuthMode, Config, StoreKind, levels, load::Fault, load::LoadedConfig};

/// Every fault that shows in the values alone.
pub fn check(loaded: &LoadedConfig) -> Vec<Fault> {
    let config = &loaded.config;
    let mut faults = Vec::new();
    let mut fault = |key: &str, problem: String| faults.push(loaded.fault(key, problem));

    if config.http.listen.is_empty() {
        fault(
            "http.listen",
            r#"expected at least one address with a port, such as "127.0.0.1:8081""#.into(),
        );
    }
    if config.auth.mode == AuthMode::Unset
        && let Some(address) = config.http.listen.iter().find(|address| !address.ip().is_loopback())
    {
        fault(
            "auth.mode",
            format!(
                r#"is not set, and http.listen has {address}, which others can reach; write mode = "open" under [auth] to let anybody read and write every document whose id they know, or listen on 127.0.0.1 and [::1] alone"#
            ),
        );
    }
    if config.auth.mode == AuthMode::Jwt && config.auth.keys_file().as_os_str().is_empty() {
        fault("auth.jwt_keys", r#"is not set, and auth.mode is "jwt""#.into());
    }
    if config.http.proxy_protocol && config.http.trusted_proxies.is_empty() {
        fault(
            "http.trusted_proxies",
            "is empty, and http.proxy_protocol lets nobody else connect".into(),
        );
    }
    match (config.tls.cert.as_os_str().is_empty(), config.tls.key.as_os_str().is_empty()) {
        (true, false) => fault("tls.cert", "is not set, and tls.key is".to_owned()),
        (false, true) => fault("tls.key", "is not set, and tls.cert is".to_owned()),
        _ => {}
    }
    for origin in &config.http.allowed_origins {
        let host = origin.split_once("://").map(|(_, host)| host);
        if origin != "*" && !host.is_some_and(|host| !host.is_empty() && !host.contains('/')) {
            fault(
                "http.allowed_origins",
                format!(
                    r#"{origin:?} is no origin; expected "*" or one such as "https://app.example.org""#
                ),
            );
        }
    }
    let url = &config.http.public_url;
    if !url.is_empty()
        && !["ws://", "wss://", "http://", "https://"].iter().any(|s| url.starts_with(s))
    {
        fault(
            "http.public_url",
            format!(
                r#"{url:?} is no URL of a relay; expected one such as "wss://sync.example.org""#
            ),
        );
    }
    if config.sync.arriving < config.sync.max_message {
        fault(
            "sync.arriving",
            format!("is less than one message of sync.max_message, {}", config.sync.max_message),
        );
    }
    let bundles = &config.bundles;
    if bundles.store == StoreKind::S3 && bundles.bucket.is_empty() {
        fault("bundles.bucket", r#"is not set, and bundles.store is "s3""#.into());
    }
    let endpoint = &bundles.endpoint_url;
    if !endpoint.is_empty() && !["http://", "https://"].iter().any(|s| endpoint.starts_with(s)) {
        fault(
            "bundles.endpoint_url",
            format!(
                r#"{endpoint:?} is no URL of a store; expected one such as "https://s3.example.org""#
            ),
        );
    }
    if endpoint.contains('@') {
        fault(
            "bundles.endpoint_url",
            "names credentials; they come from the usual AWS places, or the systemd credential aws-credentials".into(),
        );
    }
    if let Err(error) = levels::filter(&config.log.level) {
        fault("log.level", error.to_string().replacen("log.level: ", "", 1));
    }
    for (key, limit) in [
        ("limits.connections", config.limits.connections),
        ("limits.documents_per_connection", config.limits.documents_per_connection),
        ("limits.connections_per_address", config.limits.connections_per_address),
    ] {
        if limit == 0 {
            fault(key, "is 0; expected at least 1".into());
        }
    }
    for (key, path) in named_paths(config) {
        if path.is_relative() {
            fault(key, format!("{} is a relative path; expected an absolute one", path.display()));
        }
    }
    faults
}

/// The keys that name a file or folder, with those.
pub fn named_paths(config: &Config) -> Vec<(&'static str, &Path)> {
    let mut paths: Vec<(&'static str, &Path)> = vec![
        ("bundle.path", &config.bundle.path),
        ("bundle.wasm", &config.bundle.wasm),
        ("bundle.blank", &config.bundle.blank),
        ("tls.cert", &config.tls.cert),
        ("tls.key", &config.tls.key),
        ("auth.tokens", &config.auth.tokens),
        ("auth.jwt_keys", &config.auth.jwt_keys),
    ];
    paths.retain(|(_, path)| !path.as_os_str().is_empty());
    paths.push(("bundles.path", &config.bundles.path));
    paths.push(("storage.path", &config.storage.path));
    paths
}

/// What is set and changes nothing, because of what else is set.
pub fn without_effect(loaded: &LoadedConfig) -> Vec<Fault> {
    let config = &loaded.config;
    let (auth, bundles) = (config.auth.mode, config.bundles.store);
    let mut found = Vec::new();
    let mut look = |is_used: bool, keys: &[&str], because: &str| {
        for key in keys.iter().filter(|key| !is_used && loaded.origins.of(key) != "default") {
            found.push(loaded.fault(key, format!("has no effect: {because}")));
        }
    };
    look(
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
    look(auth == AuthMode::Token, &["auth.tokens"], r#"auth.mode is not "token""#);
    look(
        auth == AuthMode::Jwt,
        &["auth.jwt_keys", "auth.jwt_issuer", "auth.jwt_audience"],
        r#"auth.mode is not "jwt""#,
    );
    look(
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
    fn beyond_loopback_the_mode_must_be_chosen() {
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
    fn every_fault_of_the_values_is_named() {
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
