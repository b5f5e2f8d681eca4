//! What a config says without effect, or in a way that cannot mean what was intended.

use super::{
    AdminAddress, AllowedOrigin, AuthMode, Config, StoreKind, levels,
    load::{Fault, LoadedConfig},
};

/// Returns a warning for each key that has no effect, or whose value can never match.
pub fn warnings(loaded: &LoadedConfig) -> Vec<Fault> {
    let mut found = without_effect(loaded);
    let config = &loaded.config;
    let mut warn = |key: &str, problem: String| found.push(loaded.fault(key, problem));
    for problem in origins_that_never_match(config) {
        warn("http.allowed_origins", problem);
    }
    for problem in levels::modules_that_never_match(&config.log.level) {
        warn("log.level", problem);
    }
    for address in &config.admin.listen {
        if let AdminAddress::Tcp(address) = address
            && address.ip().is_unspecified()
        {
            warn(
                "admin.listen",
                format!(
                    "{address} is reachable from other machines, which can read metrics and health \
                     there without a token; expected the address of one interface, such as \
                     127.0.0.1:{}",
                    address.port()
                ),
            );
        }
    }
    found
}

fn origins_that_never_match(config: &Config) -> Vec<String> {
    let origins = &config.http.allowed_origins;
    let has_any = origins.contains(&AllowedOrigin::Any);
    let mut problems = Vec::new();
    for origin in origins.iter().filter(|origin| **origin != AllowedOrigin::Any) {
        if has_any {
            problems.push(format!(r#""{origin}" has no effect: "*" already allows all origins"#));
        } else if let Some(written) = origin.as_browsers_write_it() {
            problems.push(format!(
                "\"{origin}\" never matches: browsers send lower case and no default port; write \
                 \"{written}\""
            ));
        }
    }
    problems
}

/// Returns the keys that are set without effect because of other keys.
fn without_effect(loaded: &LoadedConfig) -> Vec<Fault> {
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
    unless(
        bundles != StoreKind::None,
        &["bundles.path", "bundles.max_upload", "bundles.receiving", "bundles.keep"],
        r#"bundles.store is "none""#,
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

    fn texts(text: &str) -> Vec<String> {
        let (config, origins) = load::parse("x.toml", text).expect("reads");
        let loaded = LoadedConfig { file: None, text: String::new(), config, origins };
        warnings(&loaded).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_defaults_have_no_warning() {
        assert_eq!(texts(""), [""; 0]);
    }

    #[test]
    fn keys_without_effect_are_named_with_the_reason() {
        assert_eq!(
            texts("[bundles]\nbucket = \"b\"\n[auth]\nmode = \"open\"\ntokens = \"/t\"\n"),
            [
                r#"x.toml:2: bundles.bucket: has no effect: bundles.store is not "s3""#,
                r#"x.toml:5: auth.tokens: has no effect: auth.mode is not "token""#,
            ]
        );
    }

    #[test]
    fn origins_that_no_browser_sends_are_named_with_the_right_spelling() {
        let of = |origins: &str| texts(&format!("[http]\nallowed_origins = [{origins}]\n"));
        assert_eq!(of(r#""https://a.example", "https://*.b.example""#), [""; 0]);
        assert_eq!(
            of(r#""https://A.example:443""#),
            ["x.toml:2: http.allowed_origins: \"https://A.example:443\" never matches: browsers \
                 send lower case and no default port; write \"https://a.example\""]
        );
        assert!(
            of(r#""*", "https://a.example""#)[0].contains(r#""https://a.example" has no effect"#)
        );
    }

    #[test]
    fn an_admin_port_on_all_interfaces_is_named() {
        let found =
            texts("[admin]\nlisten = [\"0.0.0.0:9464\", \"[::]:9464\", \"10.0.0.1:9464\"]\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("0.0.0.0:9464 is reachable from other machines"), "{found:?}");
    }
}
