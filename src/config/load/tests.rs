use super::*;
use proptest::prelude::*;

fn faults(text: &str) -> Vec<String> {
    parse("x.toml", text).expect_err("has faults").iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_file_shows_every_key_at_its_default() {
    let shipped = include_str!("../../../etc/tonk-relay.toml");
    let uncommented: String = shipped
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .map(|line| line.replace("tonk-relay-<hostname>", "") + "\n")
        .collect();
    let (config, origins) = parse("etc/tonk-relay.toml", &uncommented).expect("no faults");
    assert_eq!(config, Config::default());
    let table = to_table(&config);
    for (key, _) in keys(&table) {
        assert_ne!(origins.of(&key), "default", "{key} is not in the shipped file");
    }
    assert_eq!(parse("shipped", shipped).expect("no faults").0, Config::default());
}

#[test]
fn every_fault_is_reported_with_its_line_and_key() {
    assert_eq!(
        faults(
            "drain_timeout = 5\n[http]\nlisen = 1\nmetrics = \"yes\"\n[sync]\n\
             max_message = \"big\"\n[bundle]\npath = 7\n[nope]\na = 1\n"
        ),
        [
            "x.toml:1: drain_timeout: 5 is an integer; expected a string, such as \"30s\"",
            "x.toml:3: http.lisen: unknown key; expected one of [http]: listen, public_url, \
             trusted_proxies, proxy_protocol, allowed_origins, metrics, header_timeout, \
             body_idle_timeout, body_min_rate, response_idle_timeout",
            "x.toml:4: http.metrics: \"yes\" is a string; expected true or false",
            "x.toml:6: sync.max_message: \"big\" is not a size above zero with a unit; \
             expected one such as \"8MiB\" or \"100MB\"",
            "x.toml:8: bundle.path: 7 is an integer; expected a string, such as \
             \"/srv/app.tonk\"",
            "x.toml:10: nope.a: unknown section [nope]; expected one of [http], [tls], \
             [admin], [bundle], [bundles], [storage], [cluster], [sync], [auth], [limits], [reload], \
             [log]",
        ]
    );
}

#[test]
fn a_key_in_the_wrong_section_is_told_its_own() {
    assert_eq!(
        faults("listen = []\ntimeouts = 1\n[http]\nmode = \"open\"\n"),
        [
            "x.toml:1: listen: unknown key here; it belongs below [http] or [admin]",
            "x.toml:2: timeouts: unknown key; expected drain_timeout, or a section such as \
             [http] before it",
            "x.toml:4: http.mode: unknown key here; it belongs below [auth]",
        ]
    );
}

#[test]
fn a_fault_of_a_value_shows_the_value_and_an_example() {
    for (text, expected) in [
        (
            "[http]\nlisten = \"127.0.0.1:8081\"\n",
            "x.toml:2: http.listen: \"127.0.0.1:8081\" is a string; expected a list, such as \
             [\"127.0.0.1:8081\"]",
        ),
        (
            "[http]\nlisten = [\"localhost:8081\"]\n",
            "x.toml:2: http.listen: \"localhost:8081\" is not an IP address with a port; \
             expected one such as \"127.0.0.1:8081\" or \"[::1]:8081\"",
        ),
        (
            "[http]\nlisten = [8081]\n",
            "x.toml:2: http.listen: 8081 is an integer; expected strings in quotes, such as \
             [\"127.0.0.1:8081\", \"[::1]:8081\"]",
        ),
        (
            "[http]\nallowed_origins = [\"example.org\"]\n",
            "x.toml:2: http.allowed_origins: \"example.org\" is not an origin; expected \"*\", \
             or a scheme and a host without a path, such as \"https://app.example.org\", or \
             \"https://*.example.org\" for all subdomains",
        ),
        (
            "[auth]\nmode = \"password\"\n",
            "x.toml:2: auth.mode: \"password\" is unknown; expected one of \"\", \"open\", \
             \"token\", \"jwt\"",
        ),
        (
            "[limits]\nconnections = -1\n",
            "x.toml:2: limits.connections: -1 is negative; expected an integer of 0 or more, \
             such as 15000",
        ),
        (
            "[limits]\nconnections = 1.5\n",
            "x.toml:2: limits.connections: 1.5 is a float; expected an integer, such as 15000",
        ),
        (
            "drain_timeout = \"99999999999d\"\n",
            "x.toml:1: drain_timeout: \"99999999999d\" is not a duration between \"1ms\" and \
             \"365d\"; expected one such as \"20ms\", \"5s\" or \"10m\"",
        ),
        (
            "[sync]\nmemory = \"70\"\n",
            "x.toml:2: sync.memory: \"70\" is not a share of memory; expected \"1%\" to \
             \"100%\", or a size with a unit, such as \"2GiB\"",
        ),
    ] {
        assert_eq!(faults(text), [expected], "{text}");
    }
}

#[test]
fn an_error_of_the_syntax_is_reported_with_its_key() {
    for (text, expected) in [
        (
            "[http]\nmetrics = true\n[log]\nlevel = info # more\n",
            r#"x.toml:4: log.level: info is not a value; strings need quotes: level = "info""#,
        ),
        (
            "[tls]\nkey = /a.pem\n",
            r#"x.toml:2: tls.key: /a.pem is not a value; strings need quotes: key = "/a.pem""#,
        ),
        (
            "[tls]\nkey = \"/a\"\ncert = \"/b\"\nkey = \"/c\"\n",
            "x.toml:4: tls.key: is set twice, first on line 2; keep one of the two",
        ),
    ] {
        assert_eq!(faults(text), [expected], "{text}");
    }
    let faults = faults("[http]\nlisten = [\n");
    assert_eq!(faults.len(), 1);
    assert!(faults[0].starts_with("x.toml:"), "{faults:?}");
    assert!(faults[0].contains("is not valid TOML"), "{faults:?}");
}

#[test]
fn every_key_has_an_example_that_is_accepted() {
    let table = to_table(&Config::default());
    for (key, default) in keys(&table) {
        let example = expected::example(&key, default);
        assert!(!["\"\"", "[]"].contains(&example.as_str()), "{key} needs an example");
        let parsed = parse("x.toml", &format!("{key} = {example}\n"));
        assert!(parsed.is_ok(), "{key} = {example}: {parsed:?}");
    }
}

#[test]
fn a_printed_config_parses_to_the_same_values() {
    let (config, origins) =
        parse("x.toml", "drain_timeout = \"7s\"\n[sync]\nsend_queue = \"3MiB\"\n").expect("fine");
    let loaded = LoadedConfig { file: None, text: String::new(), config, origins };
    let text = print(&loaded);
    assert_eq!(parse("printed", &text).expect("fine").0, loaded.config);
    assert!(
        text.contains("# x.toml:1\n")
            && text.contains("# x.toml:3\n")
            && text.contains("# default\n"),
        "{text}"
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(\\PC|\n|\\[|\\]|=|\"|http|sync|listen){0,80}") {
        let _ = parse("x.toml", &text);
    }

    #[test]
    fn a_refused_value_is_reported_with_its_key(
        index in 0usize..64,
        value in prop_oneof!["[0-9]{1,5}", "\"[a-z0-9]{0,5}\"", "true", "\\[\\]", "\\{\\}"],
    ) {
        let table = to_table(&Config::default());
        let keys = keys(&table);
        let key = &keys[index % keys.len()].0;
        match parse("x.toml", &format!("{key} = {value}\n")) {
            Ok(_) => {}
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                let is_named = |f: &String| f.contains(key.as_str()) || f.contains("x.toml:1");
                prop_assert!(faults.iter().all(is_named), "{faults:?}");
            }
        }
    }
}

#[test]
fn an_instance_has_folders_and_a_socket_of_its_own() {
    let text = "[bundles]\npath = \"/mnt/bundles\"\n";
    let (mut config, origins) = parse("a.toml", text).expect("reads");
    instance::set_defaults(&mut config, "a", |key| origins.of(key) == "default");
    assert_eq!(config.storage.path, Path::new("/var/lib/tonk-relay-a/documents"));
    assert_eq!(config.bundles.path, Path::new("/mnt/bundles"));
    assert_eq!(config.admin.listen, [AdminAddress::Unix("/run/tonk-relay-a/admin.sock".into())]);
    assert_eq!(config.sync.peer_id(), format!("{}-a", crate::config::peer_id_of_host()));
}

#[test]
fn commands_find_the_socket_of_an_instance_whose_config_has_faults() {
    let socket = |file| admin_socket(Path::new(file), "nonsense = 1");
    assert_eq!(
        socket("/etc/tonk-relay/a.toml").as_deref(),
        Some(Path::new("/run/tonk-relay-a/admin.sock"))
    );
    assert_eq!(
        socket("/etc/tonk-relay.toml").as_deref(),
        Some(Path::new("/run/tonk-relay/admin.sock"))
    );
}
