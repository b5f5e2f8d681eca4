//! Checks what the values of a config mean together.

use std::{net::SocketAddr, path::Path, time::Duration};

use super::{
    AdminAddress, AuthMode, Bundle, Config, EngineKind, MemoryLimit, Size, StoreKind, Time, Tls,
    levels,
    load::{Fault, LoadedConfig},
};

/// The least that sizes may be: with less the relay could not do its work.
const LEAST_MEMORY: Size = Size::mib(16);
const LEAST_MESSAGE: Size = Size(16 << 10);
const LEAST_QUEUE: Size = Size(16 << 10);
const LEAST_STALE: Time = Time::secs(2);
const LEAST_STORED: Size = Size(1 << 10);

/// Returns every fault that shows in the values alone.
pub fn check(loaded: &LoadedConfig) -> Vec<Fault> {
    let mut faults = Faults { loaded, found: Vec::new() };
    check_access(&mut faults);
    check_ports(&mut faults);
    check_tls(&mut faults);
    check_public_url(&mut faults);
    check_sizes(&mut faults);
    check_bundle_store(&mut faults);
    check_database(&mut faults);
    check_limits(&mut faults);
    check_paths(&mut faults);
    check_folders(&mut faults);
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
            r#"is empty; expected at least one address with a port, such as "127.0.0.1:8081""#,
        );
    }
    if config.auth.mode == AuthMode::Unset
        && let Some(address) = config.http.listen.iter().find(|address| !address.ip().is_loopback())
    {
        faults.add(
            "auth.mode",
            format!(
                "is not set, and http.listen has {address}, which other machines can reach; write \
                 mode = \"token\" or \"jwt\" under [auth], or mode = \"open\" to let anybody read \
                 and write every document whose id they know, or listen on 127.0.0.1 and [::1] \
                 alone"
            ),
        );
    }
    if config.auth.mode == AuthMode::Jwt && config.auth.keys_file().as_os_str().is_empty() {
        faults.add(
            "auth.jwt_keys",
            "is not set, and auth.mode = \"jwt\" needs it; expected a file of public keys, such as \
             \"/etc/tonk-relay.jwks\"",
        );
    }
    if config.http.proxy_protocol && config.http.trusted_proxies.is_empty() {
        faults.add(
            "http.trusted_proxies",
            "is empty, and with http.proxy_protocol only trusted proxies can connect; expected \
             their addresses or networks, such as [\"10.0.0.0/8\"]",
        );
    }
}

/// Checks that no two listeners need the same port.
fn check_ports(faults: &mut Faults<'_>) {
    let Config { http, admin, .. } = faults.config();
    let admin = admin.listen.iter().filter_map(|address| match address {
        AdminAddress::Tcp(address) => Some(("admin.listen", *address)),
        AdminAddress::Unix(_) => None,
    });
    let public = http.listen.iter().map(|address| ("http.listen", *address));
    let all: Vec<(&str, SocketAddr)> = public.chain(admin).collect();
    for (index, (key, address)) in all.iter().enumerate() {
        let earlier = all.iter().take(index).find(|(_, earlier)| conflicts(*earlier, *address));
        if let Some((of, taken)) = earlier {
            faults.add(
                key,
                format!("{address} conflicts with {taken} of {of}; expected another port"),
            );
        }
    }
}

/// Whether one of two listeners cannot be bound while the other is. Port 0 is any free port, and
/// the relay's IPv6 listeners take no IPv4 connections.
fn conflicts(one: SocketAddr, other: SocketAddr) -> bool {
    let is_same_address =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && is_same_address
}

fn check_tls(faults: &mut Faults<'_>) {
    let Tls { cert, key } = &faults.config().tls;
    match (cert.as_os_str().is_empty(), key.as_os_str().is_empty()) {
        (true, false) => faults.add(
            "tls.cert",
            "is not set, and tls.key is; expected the certificate of that key, such as \
             \"/etc/tonk-relay.tls/fullchain.pem\"",
        ),
        (false, true) => faults.add(
            "tls.key",
            "is not set, and tls.cert is; expected the key of that certificate, such as \
             \"/etc/tonk-relay.tls/privkey.pem\"",
        ),
        _ => {}
    }
}

fn check_public_url(faults: &mut Faults<'_>) {
    let url = &faults.config().http.public_url;
    if !url.is_empty()
        && !["ws://", "wss://", "http://", "https://"].iter().any(|s| url.starts_with(s))
    {
        faults.add(
            "http.public_url",
            format!(
                "{url:?} is not the URL of a relay; expected one such as \"wss://sync.example.org\""
            ),
        );
    }
}

/// Checks sizes that are too small to work with, and those that must not be below another one.
fn check_sizes(faults: &mut Faults<'_>) {
    let Config { sync, storage, bundles, .. } = faults.config();
    let mut sizes = vec![
        ("sync.max_message", sync.max_message, LEAST_MESSAGE),
        ("sync.send_queue", sync.send_queue, LEAST_QUEUE),
        ("sync.receive_queue", sync.receive_queue, LEAST_QUEUE),
        ("storage.journal_size", storage.journal_size, LEAST_QUEUE),
        ("storage.max_unsaved", storage.max_unsaved, LEAST_QUEUE),
        ("storage.max_document", storage.max_document, LEAST_STORED),
        ("bundles.max_upload", bundles.max_upload, LEAST_STORED),
    ];
    if let MemoryLimit::Bytes(memory) = sync.memory {
        sizes.push(("sync.memory", memory, LEAST_MEMORY));
    }
    let pairs = [
        ("sync.arriving", sync.arriving, "sync.max_message", sync.max_message),
        ("bundles.receiving", bundles.receiving, "bundles.max_upload", bundles.max_upload),
    ];
    for (key, size, least) in sizes {
        if size < least {
            faults.add(key, format!("{size} is too small; expected at least {least}"));
        }
    }
    for (key, size, other, least) in pairs {
        if size < least {
            faults.add(key, format!("{size} is less than {other}; expected at least {least}"));
        }
    }
}

fn check_bundle_store(faults: &mut Faults<'_>) {
    let bundles = &faults.config().bundles;
    if bundles.store == StoreKind::S3 && bundles.bucket.is_empty() {
        faults.add(
            "bundles.bucket",
            "is not set, and bundles.store = \"s3\" needs it; expected the name of a bucket, such \
             as \"my-bundles\"",
        );
    }
    let endpoint = &bundles.endpoint_url;
    if !endpoint.is_empty() && !["http://", "https://"].iter().any(|s| endpoint.starts_with(s)) {
        faults.add(
            "bundles.endpoint_url",
            format!(
                "{endpoint:?} is not the URL of a store; expected one such as \
                 \"https://s3.example.org\""
            ),
        );
    }
    if endpoint.contains('@') {
        faults.add(
            "bundles.endpoint_url",
            "has access keys in it; expected a URL without them: they come from the usual places \
             of AWS, or the systemd credential aws-credentials",
        );
    }
}

/// Checks the URL of a database, and what goes with it.
fn check_database(faults: &mut Faults<'_>) {
    let Config { cluster, bundles, sync, .. } = faults.config();
    if cluster.database.is_empty() {
        return;
    }
    let stale = cluster.stale;
    if stale.0 > Duration::ZERO && stale.0 < LEAST_STALE.0 {
        faults.add(
            "cluster.stale",
            format!(
                "{stale} is too short: the relay reads the tokens once a second; expected at least \
                 {LEAST_STALE}, or 0s for never"
            ),
        );
    }
    if let Err(problem) = cluster.database.read() {
        faults.add("cluster.database", problem);
    }
    if bundles.store == StoreKind::Folder {
        faults.add(
            "bundles.store",
            "is \"folder\", and with cluster.database nothing is kept on this machine; expected \
             \"s3\", or \"none\" to accept no bundles",
        );
    }
    if sync.engine == EngineKind::Samod {
        faults.add(
            "sync.engine",
            "is \"samod\", which does not work with cluster.database; expected \"native\"",
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
                format!(
                    "{path:?} is a relative path; expected an absolute one, such as \"/srv/{}\"",
                    path.display()
                ),
            );
        }
    }
}

/// Checks that documents and bundles have folders of their own: each folder's commands take other
/// files for foreign ones.
fn check_folders(faults: &mut Faults<'_>) {
    let Config { storage, bundles, .. } = faults.config();
    let (documents, uploads) = (&storage.path, &bundles.path);
    let problem = |path: &Path, other: &str, outer: &Path| {
        let is_same = if path == outer { "is also" } else { "is inside" };
        format!(
            "{} {is_same} {other}, {}; expected a folder of its own, such as \"{}\"",
            path.display(),
            outer.display(),
            outer.with_file_name("other").display()
        )
    };
    if documents.starts_with(uploads) {
        faults.add("storage.path", problem(documents, "bundles.path", uploads));
    } else if uploads.starts_with(documents) {
        faults.add("bundles.path", problem(uploads, "storage.path", documents));
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
        ("cluster.password_file", &config.cluster.password_file),
    ];
    paths.retain(|(_, path)| !path.as_os_str().is_empty());
    if config.bundles.store != StoreKind::None {
        paths.push(("bundles.path", &config.bundles.path));
    }
    paths.push(("storage.path", &config.storage.path));
    paths
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
        let text = "[http]\nlisten = []\npublic_url = \"example.org\"\n\
                    [bundle]\npath = \"app.tonk\"\n[limits]\nconnections = 0\n[log]\n\
                    level = \"x=loud\"\n";
        let faults = texts(&check(&loaded(text)));
        let keys: Vec<&str> = faults.iter().filter_map(|fault| fault.split(": ").nth(1)).collect();
        assert_eq!(
            keys,
            ["http.listen", "http.public_url", "log.level", "limits.connections", "bundle.path"]
        );
    }

    #[track_caller]
    fn has_fault(text: &str, expected: &str) {
        let faults = texts(&check(&loaded(text)));
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains(expected), "{text}: {faults:?}");
    }

    #[test]
    fn faults_of_single_values_name_the_value_and_an_example() {
        has_fault(
            "[sync]\nmemory = \"70B\"\n",
            "x.toml:2: sync.memory: 70B is too small; expected at least 16MiB",
        );
        has_fault("[sync]\nmax_message = \"1B\"\n", "1B is too small; expected at least 16KiB");
        has_fault(
            "[sync]\narriving = \"1MiB\"\n",
            "1MiB is less than sync.max_message; expected at least 100MiB",
        );
        has_fault("[bundles]\nreceiving = \"1MiB\"\n", "less than bundles.max_upload");
        has_fault(
            "[tls]\ncert = \"/a.pem\"\n",
            "tls.key: is not set, and tls.cert is; expected the key",
        );
        has_fault("[auth]\nmode = \"jwt\"\n", "such as \"/etc/tonk-relay.jwks\"");
        has_fault("[bundles]\nstore = \"s3\"\n", "bundles.bucket: is not set");
        has_fault(
            "[bundle]\npath = \"app.tonk\"\n",
            "expected an absolute one, such as \"/srv/app.tonk\"",
        );
    }

    #[test]
    fn a_database_needs_bundles_in_s3() {
        let url = "[cluster]\ndatabase = \"postgres://me@db/app\"\n";
        let s3 = "[bundles]\nstore = \"s3\"\nbucket = \"b\"\n";
        assert_eq!(check(&loaded(&format!("{url}{s3}"))), []);
        has_fault(url, "bundles.store: is \"folder\", and with cluster.database");
        has_fault(&format!("{url}stale = \"1s\"\n{s3}"), "cluster.stale: 1s is too short");
        let samod = "[sync]\nengine = \"samod\"\n";
        has_fault(&format!("{url}{s3}{samod}"), "sync.engine: is \"samod\", which does not work");
        let bad = "[cluster]\ndatabase = \"postgres://me:secret@db/app?sslmode=prefer\"\n";
        has_fault(
            &format!("{s3}{bad}"),
            "x.toml:5: cluster.database: postgres://me:***@db/app?sslmode=prefer has \
             sslmode=prefer, which does not verify the server",
        );
    }

    #[test]
    fn listeners_must_not_conflict() {
        has_fault(
            "[admin]\nlisten = [\"127.0.0.1:8081\"]\n",
            "admin.listen: 127.0.0.1:8081 conflicts with 127.0.0.1:8081 of http.listen; expected \
             another port",
        );
        has_fault("[admin]\nlisten = [\"0.0.0.0:8081\"]\n", "conflicts with 127.0.0.1:8081");
        has_fault(
            "[http]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]\n",
            "http.listen: 127.0.0.1:1 conflicts",
        );
        let fine = "[http]\nlisten = [\"127.0.0.1:0\"]\n[admin]\n\
                    listen = [\"127.0.0.1:0\", \"[::1]:8081\"]\n";
        assert_eq!(check(&loaded(fine)), []);
    }

    #[test]
    fn documents_and_bundles_need_folders_of_their_own() {
        let folders = |documents: &str, bundles: &str| {
            format!("[storage]\npath = \"{documents}\"\n[bundles]\npath = \"{bundles}\"\n")
        };
        has_fault(
            &folders("/a/b", "/a"),
            "x.toml:2: storage.path: /a/b is inside bundles.path, /a",
        );
        has_fault(
            &folders("/a", "/a/b"),
            "x.toml:4: bundles.path: /a/b is inside storage.path, /a",
        );
        has_fault(&folders("/a", "/a"), "/a is also bundles.path");
        assert_eq!(check(&loaded(&folders("/a/b", "/a/bundles"))), []);
    }
}
