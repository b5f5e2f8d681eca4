//! Reads a config file, and reports every fault with its line, its key and what was expected.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value, de::DeTable};

use super::{
    AdminAddress, Config, expected,
    syntax::{self, line_of},
};
use crate::base::regular_file;

/// The largest config file, in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// A fault in a config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, and the line if it is known.
    pub location: String,
    /// The key, as `section.key`. Empty if the fault is not about a key.
    pub key: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.location, self.problem)
        } else {
            write!(f, "{}: {}: {}", self.location, self.key, self.problem)
        }
    }
}

/// The origin of each value that is not the default, by `section.key`: `file:line`, or a word such
/// as `command line`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, String>);

impl Origins {
    /// Records that `origin` has set `key`.
    pub fn set(&mut self, key: &str, origin: impl Into<String>) {
        self.0.insert(key.to_owned(), origin.into());
    }

    /// Returns the origin of `key`, or `default` if nothing has set it.
    pub fn of(&self, key: &str) -> &str {
        self.0.get(key).map_or("default", String::as_str)
    }
}

/// A config with the origins of its values.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// The file it was read from. `None` if the relay was started without one; it cannot reload
    /// then.
    pub file: Option<PathBuf>,
    /// The file's text.
    pub text: String,
    /// The values.
    pub config: Config,
    /// The origin of each value.
    pub origins: Origins,
}

impl LoadedConfig {
    /// Returns a fault of `key`, with the origin of its value.
    pub fn fault(&self, key: &str, problem: impl Into<String>) -> Fault {
        let file = || self.file.as_ref().map(|file| file.display().to_string());
        let location = match self.origins.of(key) {
            "default" => file().unwrap_or_else(|| "built-in".to_owned()),
            origin => origin.to_owned(),
        };
        Fault { location, key: key.to_owned(), problem: problem.into() }
    }
}

/// Reads the config file `file`.
///
/// # Errors
/// Every fault of the file's syntax, keys and single values. [`check`](super::check) finds those of
/// the values together.
#[expect(clippy::disallowed_methods, reason = "itself disallowed in async code")]
pub fn read_file(file: &Path) -> Result<LoadedConfig, Vec<Fault>> {
    let text = regular_file::read_text(file, MAX_FILE).map_err(|error| {
        let problem = match error.kind() {
            io::ErrorKind::NotFound => {
                "not found; name the file with --config, or install the package's own".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "permission denied; the config holds no secrets: chmod 0644".to_owned()
            }
            _ => format!("cannot be read: {error}"),
        };
        vec![Fault { location: file.display().to_string(), key: String::new(), problem }]
    })?;
    let (config, origins) = parse(&file.display().to_string(), &text)?;
    Ok(LoadedConfig { file: Some(file.to_owned()), text, config, origins })
}

/// Returns the admin socket that a config names, even if the config has faults elsewhere, or the
/// default one if it names none. Returns `None` if the text is not TOML or `admin.listen` has a
/// fault: the default socket may belong to another relay.
pub fn admin_socket(text: &str) -> Option<PathBuf> {
    let table: toml::Table = toml::from_str(text).ok()?;
    let listen = table.get("admin").and_then(|admin| admin.get("listen"));
    let named: Vec<AdminAddress> = match listen {
        Some(listen) => listen.clone().try_into().ok()?,
        None => Config::default().admin.listen,
    };
    named.into_iter().find_map(|address| match address {
        AdminAddress::Unix(path) => Some(path),
        AdminAddress::Tcp(_) => None,
    })
}

/// Parses the text of a config. Faults call it `name`.
///
/// # Errors
/// As [`read_file`].
pub fn parse(name: &str, text: &str) -> Result<(Config, Origins), Vec<Fault>> {
    let whole =
        |problem: String| vec![Fault { location: name.to_owned(), key: String::new(), problem }];
    let spans = DeTable::parse(text).map_err(|error| {
        let syntax::SyntaxFault { line, key, problem } = syntax::explain(text, &error);
        vec![Fault { location: format!("{name}:{line}"), key, problem }]
    })?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| whole(e.message().to_owned()))?;

    let mut faults = Vec::new();
    let mut origins = Origins::default();
    let known = to_table(&Config::default());
    // A table in the place of a plain value is a fault of that key, not a section.
    let misplaced = table.iter().filter(|(name, value)| {
        value.is_table() && known.get(*name).is_some_and(|v| !v.is_table())
    });
    let misplaced: Vec<(String, &Value)> = misplaced.map(|(n, v)| (n.clone(), v)).collect();
    let found = keys(&table).into_iter();
    let found = found
        .filter(|(key, _)| !misplaced.iter().any(|(name, _)| key.starts_with(&format!("{name}."))));
    for (key, value) in found.chain(misplaced.iter().cloned()) {
        let location = format!("{name}:{}", line_of(text, key_start(spans.get_ref(), &key)));
        // Each key is parsed alone, so that one fault does not hide another.
        match read_key(&known, &key, value) {
            Ok(()) => origins.set(&key, location),
            Err(problem) => faults.push(Fault { location, key, problem }),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let config = Config::deserialize(table).map_err(|e| whole(e.message().to_owned()))?;
    Ok((config, origins))
}

/// Returns the keys of a config, as `section.key`, with their values.
pub(super) fn keys(table: &Table) -> Vec<(String, &Value)> {
    table
        .iter()
        .flat_map(|(name, value)| match value {
            Value::Table(section) => {
                section.iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect()
            }
            value => vec![(name.clone(), value)],
        })
        .collect()
}

/// Returns the sections and keys of `config`, in the order of the shipped file.
pub(super) fn to_table(config: &Config) -> Table {
    // Every value of a `Config` can be written as TOML. If a new type cannot, the test of the
    // shipped file fails.
    Table::try_from(config).unwrap_or_default()
}

/// Returns the keys whose values differ.
pub fn changed_keys(one: &Config, other: &Config) -> Vec<String> {
    let (one, other) = (to_table(one), to_table(other));
    let pairs = keys(&one).into_iter().zip(keys(&other));
    pairs.filter(|((_, a), (_, b))| a != b).map(|((key, _), _)| key).collect()
}

fn read_key(known: &Table, key: &str, value: &Value) -> Result<(), String> {
    let (section, name) = match key.split_once('.') {
        Some((section, name)) => (Some(section), name),
        None => (None, key),
    };
    let siblings = match section {
        None => known,
        Some(section) => match known.get(section) {
            Some(Value::Table(keys)) => keys,
            _ => {
                let sections = known.iter().filter(|(_, v)| v.is_table());
                return Err(format!(
                    "unknown section [{section}]; expected one of {}",
                    list(sections.map(|(name, _)| format!("[{name}]")))
                ));
            }
        },
    };
    let default = match siblings.get(name) {
        Some(Value::Table(_)) => {
            return Err(format!("is a section; write [{name}] on a line of its own"));
        }
        Some(default) => default,
        None => {
            let keys = siblings.iter().filter(|(_, v)| !v.is_table()).map(|(key, _)| key.clone());
            return Err(match (sections_with(known, name), section) {
                (sections, _) if !sections.is_empty() => {
                    format!("unknown key here; it belongs below {}", sections.join(" or "))
                }
                (_, Some(section)) => {
                    format!("unknown key; expected one of [{section}]: {}", list(keys))
                }
                (_, None) => format!(
                    "unknown key; expected {}, or a section such as [http] before it",
                    list(keys)
                ),
            });
        }
    };
    let mut alone = Table::new();
    alone.insert(name.to_owned(), value.clone());
    if let Some(section) = section {
        alone = Table::from_iter([(section.to_owned(), Value::Table(alone))]);
    }
    match Config::deserialize(alone) {
        Ok(_) => Ok(()),
        Err(error) => Err(expected::problem(key, value, default, error.message())),
    }
}

/// The sections that have a key of this name.
fn sections_with(known: &Table, name: &str) -> Vec<String> {
    let has = |value: &Value| value.as_table().is_some_and(|keys| keys.contains_key(name));
    known
        .iter()
        .filter(|(_, value)| has(value))
        .map(|(section, _)| format!("[{section}]"))
        .collect()
}

fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn key_start(table: &DeTable<'_>, key: &str) -> usize {
    let (first, rest) = match key.split_once('.') {
        Some((section, name)) => (section, Some(name)),
        None => (key, None),
    };
    let Some((found, value)) = table.iter().find(|(found, _)| found.get_ref() == first) else {
        return 0;
    };
    match (rest, value.get_ref().as_table()) {
        (Some(name), Some(section)) => key_start(section, name),
        _ => found.span().start,
    }
}

/// Returns the config as a file that can be parsed again, each key with its origin. No key holds a
/// secret today; one that does must be hidden here.
pub fn print(loaded: &LoadedConfig) -> String {
    let line = |key: &str, name: &str, value: &Value| {
        let setting = format!("{name} = {value}");
        format!("{setting:<50} # {}\n", loaded.origins.of(key))
    };
    let mut out = String::new();
    let table = to_table(&loaded.config);
    for (name, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        out.push_str(&line(name, name, value));
    }
    for (section, keys) in table.iter().filter_map(|(n, v)| Some((n, v.as_table()?))) {
        out.push_str(&format!("\n[{section}]\n"));
        for (name, value) in keys {
            out.push_str(&line(&format!("{section}.{name}"), name, value));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn faults(text: &str) -> Vec<String> {
        parse("x.toml", text).expect_err("has faults").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_shipped_file_shows_every_key_at_its_default() {
        let shipped = include_str!("../../etc/tonk-relay.toml");
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
                 [admin], [bundle], [bundles], [storage], [sync], [auth], [limits], [reload], \
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
            parse("x.toml", "drain_timeout = \"7s\"\n[sync]\nsend_queue = \"3MiB\"\n")
                .expect("fine");
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
}
