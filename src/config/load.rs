//! Reading a config file: every fault in it, each with its line, key and what was expected.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value, de::DeTable};

use super::{AdminAddress, Config};
use crate::base::regular_file;

/// The largest config file.
pub const MAX_FILE: u64 = 1 << 20;

/// One thing that is wrong with a config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, and the line where there is one.
    pub place: String,
    /// The key, as `section.key`; empty where the fault is no key's.
    pub key: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.place, self.problem)
        } else {
            write!(f, "{}: {}: {}", self.place, self.key, self.problem)
        }
    }
}

/// Where each value that is not the default comes from, by `section.key`: `file:line` or a word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, String>);

impl Origins {
    /// Note that `key` was set by `origin`.
    pub fn set(&mut self, key: &str, origin: impl Into<String>) {
        self.0.insert(key.to_owned(), origin.into());
    }

    /// Where `key` comes from; `default` if nothing set it.
    pub fn of(&self, key: &str) -> &str {
        self.0.get(key).map_or("default", String::as_str)
    }
}

/// A config and where its values come from.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// The file it was read from; a relay started without one has none to reload.
    pub file: Option<PathBuf>,
    /// The file's text.
    pub text: String,
    /// What is in effect.
    pub config: Config,
    /// Where each value comes from.
    pub origins: Origins,
}

impl LoadedConfig {
    /// The place to name in a fault of `key`.
    pub fn fault(&self, key: &str, problem: impl Into<String>) -> Fault {
        let file = || self.file.as_ref().map(|file| file.display().to_string());
        let place = match self.origins.of(key) {
            "default" => file().unwrap_or_else(|| "built-in".to_owned()),
            origin => origin.to_owned(),
        };
        Fault { place, key: key.to_owned(), problem: problem.into() }
    }
}

/// Read the config file `file`.
///
/// # Errors
/// Every fault of the file's syntax, keys and single values. What the values mean together is
/// [`check`](super::check)'s matter.
#[expect(clippy::disallowed_methods, reason = "itself disallowed in async code")]
pub fn read_file(file: &Path) -> Result<LoadedConfig, Vec<Fault>> {
    let text = regular_file::read_text(file, MAX_FILE).map_err(|error| {
        let problem = match error.kind() {
            io::ErrorKind::NotFound => {
                "not found; name the file with --config, or install the package's own".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "may not be read by this user; it belongs to root, readable by all".to_owned()
            }
            _ => format!("cannot be read: {error}"),
        };
        vec![Fault { place: file.display().to_string(), key: String::new(), problem }]
    })?;
    let (config, origins) = parse(&file.display().to_string(), &text)?;
    Ok(LoadedConfig { file: Some(file.to_owned()), text, config, origins })
}

/// The admin socket that a config names, whatever else is wrong with it; the usual one where it names none. Nothing if
/// it is no TOML, or what it says of the socket is wrong: another relay's would be spoken to.
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

/// Parse a config's text; `name` is what faults call it.
///
/// # Errors
/// As [`read_file`].
pub fn parse(name: &str, text: &str) -> Result<(Config, Origins), Vec<Fault>> {
    let whole =
        |problem: String| vec![Fault { place: name.to_owned(), key: String::new(), problem }];
    let spans = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        vec![Fault {
            place: format!("{name}:{line}"),
            key: String::new(),
            problem: format!("is no TOML: {}", error.message().replace('\n', ", ")),
        }]
    })?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| whole(e.message().to_owned()))?;

    let mut faults = Vec::new();
    let mut origins = Origins::default();
    let known = settings(&Config::default());
    // A table where a plain value belongs is that key's fault, not a section.
    let misplaced = table.iter().filter(|(name, value)| {
        value.is_table() && known.get(*name).is_some_and(|v| !v.is_table())
    });
    let misplaced: Vec<(String, &Value)> = misplaced.map(|(n, v)| (n.clone(), v)).collect();
    let found = leaves(&table).into_iter();
    let found = found
        .filter(|(key, _)| !misplaced.iter().any(|(name, _)| key.starts_with(&format!("{name}."))));
    for (key, value) in found.chain(misplaced.iter().cloned()) {
        let place = format!("{name}:{}", line_of(text, key_start(spans.get_ref(), &key)));
        // Each key is read by itself, beside defaults: so one fault does not hide the next.
        match read_key(&known, &key, value) {
            Ok(()) => origins.set(&key, place),
            Err(problem) => faults.push(Fault { place, key, problem }),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let config = Config::deserialize(table).map_err(|e| whole(e.message().to_owned()))?;
    Ok((config, origins))
}

/// The keys of a config with their values, as `section.key`.
pub(super) fn leaves(table: &Table) -> Vec<(String, &Value)> {
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

/// The keys of `config` with their values, in the order of the shipped file.
pub(super) fn settings(config: &Config) -> Table {
    // A `Config` holds nothing that TOML cannot say: an error here would be a type added without
    // a `Serialize` that fits, which the test of the shipped file shows.
    Table::try_from(config).unwrap_or_default()
}

/// The keys whose values differ.
pub fn changed_keys(one: &Config, other: &Config) -> Vec<String> {
    let (one, other) = (settings(one), settings(other));
    let pairs = leaves(&one).into_iter().zip(leaves(&other));
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
    match siblings.get(name) {
        Some(Value::Table(_)) => {
            return Err(format!("is a section: write [{name}] on a line of its own"));
        }
        Some(_) => {}
        None => {
            let keys = siblings.iter().filter(|(_, v)| !v.is_table()).map(|(key, _)| key.clone());
            let at = section.map_or(String::new(), |section| format!(" of [{section}]"));
            return Err(format!("unknown key; expected one{at}: {}", list(keys)));
        }
    }
    let mut alone = Table::new();
    alone.insert(name.to_owned(), value.clone());
    if let Some(section) = section {
        alone = Table::from_iter([(section.to_owned(), Value::Table(alone))]);
    }
    match Config::deserialize(alone) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.message().trim().replace('\n', ", ")),
    }
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

/// The line of a text in which a byte of it stands, from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// What is in effect, as a config file that could be read back, each key with where it comes from.
/// No key of today holds a secret; one that does must be hidden here.
pub fn print(loaded: &LoadedConfig) -> String {
    let line = |key: &str, name: &str, value: &Value| {
        let setting = format!("{name} = {value}");
        format!("{setting:<50} # {}\n", loaded.origins.of(key))
    };
    let mut out = String::new();
    let table = settings(&loaded.config);
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
        let table = settings(&config);
        for (key, _) in leaves(&table) {
            assert_ne!(origins.of(&key), "default", "{key} is not in the shipped file");
        }
        assert_eq!(parse("shipped", shipped).expect("no faults").0, Config::default());
    }

    #[test]
    fn every_fault_is_named_with_its_line_and_key() {
        assert_eq!(
            faults(
                "drain_timeout = 5\n[http]\nlisen = 1\nmetrics = \"yes\"\n[sync]\nmax_message = \"big\"\n[bundle]\npath = 7\n[nope]\na = 1\n"
            ),
            [
                "x.toml:1: drain_timeout: invalid type: integer `5`, expected a duration in quotes, such as \"20ms\", \"5s\" or \"10m\"",
                "x.toml:3: http.lisen: unknown key; expected one of [http]: listen, public_url, trusted_proxies, proxy_protocol, allowed_origins, metrics, header_timeout, body_idle_timeout, body_min_rate, response_idle_timeout",
                "x.toml:4: http.metrics: invalid type: string \"yes\", expected a boolean",
                "x.toml:6: sync.max_message: \"big\" is no size above zero: expected one such as \"8MiB\" or \"100MB\"",
                "x.toml:8: bundle.path: invalid type: integer `7`, expected path string",
                "x.toml:10: nope.a: unknown section [nope]; expected one of [http], [tls], [admin], [bundle], [bundles], [storage], [sync], [auth], [limits], [reload], [log]",
            ]
        );
    }

    #[test]
    fn what_is_no_toml_is_said_with_its_line() {
        let faults = faults("[http]\nlisten = [\n");
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("x.toml:"), "{faults:?}");
        assert!(faults[0].contains("is no TOML"), "{faults:?}");
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
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
        fn any_text_is_a_config_or_faults(text in "(\\PC|\n|\\[|\\]|=|\"|http|sync|listen){0,80}") {
            let _ = parse("x.toml", &text);
        }

        #[test]
        fn any_value_of_any_key_is_taken_or_refused_by_name(
            index in 0usize..64, value in prop_oneof!["[0-9]{1,5}", "\"[a-z0-9]{0,5}\"", "true", "\\[\\]", "\\{\\}"],
        ) {
            let table = settings(&Config::default());
            let keys = leaves(&table);
            let key = &keys[index % keys.len()].0;
            match parse("x.toml", &format!("{key} = {value}\n")) {
                Ok(_) => {}
                Err(faults) => prop_assert!(faults.iter().all(|f| f.to_string().contains(key.as_str()) || f.to_string().contains("x.toml:1")), "{faults:?}"),
            }
        }
    }
}
