//! Reads a config file, and reports every fault with its line, its key and what was expected.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value, de::DeTable};

use super::{
    AdminAddress, Config, expected, instance,
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
    let (mut config, origins) = parse(&file.display().to_string(), &text)?;
    if let Some(instance) = instance::name(file) {
        instance::set_defaults(&mut config, &instance, |key| origins.of(key) == "default");
    }
    Ok(LoadedConfig { file: Some(file.to_owned()), text, config, origins })
}

/// Returns the admin socket that the config `file` with this text names, even if it has faults
/// elsewhere, or the default one if it names none. Returns `None` if the text is not TOML or
/// `admin.listen` has a fault: the default socket may belong to another relay.
pub fn admin_socket(file: &Path, text: &str) -> Option<PathBuf> {
    let table: toml::Table = toml::from_str(text).ok()?;
    let listen = table.get("admin").and_then(|admin| admin.get("listen"));
    let named: Vec<AdminAddress> = match listen {
        Some(listen) => listen.clone().try_into().ok()?,
        None => match instance::name(file) {
            Some(instance) => vec![instance::admin_socket(&instance)],
            None => Config::default().admin.listen,
        },
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
mod tests;
