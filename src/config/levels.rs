//! Log levels: parses `log.level` into a filter.

use tracing_subscriber::filter::{LevelFilter, Targets};

/// A text that is not a log level.
#[derive(Debug, thiserror::Error)]
#[error(
    "log.level: {0}; expected off, error, warn, info, debug or trace, such as \"info\", and levels \
     of modules, such as \"info,tonk_relay::sync=debug\""
)]
pub struct BadLevel(String);

/// The modules of this program that a level can name. A test compares them with the sources.
const MODULES: [&str; 13] = [
    "admin", "app", "auth", "base", "bundle", "cli", "config", "document", "http", "limits",
    "observe", "storage", "sync",
];
const CRATE: &str = "tonk_relay";

/// Returns what is wrong with the modules in a filter that can never match.
pub fn modules_that_never_match(level: &str) -> Vec<String> {
    let modules = level.split(',').filter_map(|part| Some(part.trim().split_once('=')?.0));
    modules
        .filter_map(|module| match module.strip_prefix(CRATE) {
            None => {
                let first = module.split("::").next()?;
                let problem = format!("{module} never matches; write {CRATE}::{module}");
                MODULES.contains(&first).then_some(problem)
            }
            Some(path) => {
                let first = path.strip_prefix("::")?.split("::").next()?;
                let problem = format!(
                    "{module} never matches: {CRATE} has no module {first}; expected one of {}",
                    MODULES.join(", ")
                );
                (!MODULES.contains(&first)).then_some(problem)
            }
        })
        .collect()
}

/// Parses a filter: one level for everything, and levels of modules, separated by commas. Without a
/// level for everything, modules that are not named log at "info".
///
/// # Errors
/// A part is neither a level nor a module with a level.
pub fn filter(level: &str) -> Result<Targets, BadLevel> {
    let mut default = None;
    let mut modules = Vec::new();
    for part in level.split(',').map(str::trim) {
        let problem = |what: String| BadLevel(what);
        match part.split_once('=') {
            Some((module, level)) if is_module(module) => {
                let level = named(level)
                    .ok_or_else(|| problem(format!("{level:?} in {part:?} is not a level")))?;
                modules.push((module, level));
            }
            Some((module, _)) => {
                return Err(problem(format!("{module:?} in {part:?} is not a module")));
            }
            None => {
                let level =
                    named(part).ok_or_else(|| problem(format!("{part:?} is not a level")))?;
                if default.replace(level).is_some() {
                    return Err(problem(format!("{part:?} is a second level for everything")));
                }
            }
        }
    }
    let default = default.unwrap_or(LevelFilter::INFO);
    Ok(quiet(default).with_targets(modules))
}

fn named(level: &str) -> Option<LevelFilter> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    // `LevelFilter` parses numbers as well.
    let is_one = levels.iter().any(|name| name.eq_ignore_ascii_case(level));
    if is_one { level.parse().ok() } else { None }
}

fn is_module(text: &str) -> bool {
    let is_name = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text.split("::").all(is_name)
}

/// Returns a filter of this level that shows less of some libraries. A level for the library by
/// name overrides that.
pub fn quiet(level: LevelFilter) -> Targets {
    // samod logs single messages at info and below. automerge 0.12 formats the whole history of a
    // document for the span around each load (`storage::load`, 500 ms at 60,000 changes). It also
    // warns of every unusual column in a peer's changes, so a peer could fill the disk. notify
    // warns of every watched folder that is removed, which happens with each swap of a Kubernetes
    // secret. tokio-postgres formats all parameters of a statement at debug: whole documents.
    Targets::new()
        .with_default(level)
        .with_target("samod", level.min(LevelFilter::WARN))
        .with_target("tokio_postgres", level.min(LevelFilter::INFO))
        .with_target("samod_core", level.min(LevelFilter::WARN))
        .with_target("automerge", LevelFilter::OFF)
        .with_target("notify", level.min(LevelFilter::ERROR))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_log_less_unless_they_are_named() {
        let is_on = |level: &str, target: &str, at: Level| {
            filter(level).expect("a level").would_enable(target, &at)
        };
        assert!(is_on("info", "tonk_relay::sync", Level::INFO));
        assert!(!is_on("trace", "automerge::storage", Level::ERROR));
        assert!(!is_on("trace", "samod", Level::INFO));
        assert!(!is_on("off", "samod", Level::ERROR));
        assert!(is_on("info,automerge=trace", "automerge::storage", Level::TRACE));
        assert!(is_on("tonk_relay::sync=debug", "tonk_relay::sync", Level::DEBUG));
        assert!(is_on("tonk_relay::sync=debug", "tonk_relay::app", Level::INFO), "the default");
        assert!(!is_on("warn,tonk_relay::sync=debug", "tonk_relay::app", Level::INFO));
    }

    #[test]
    fn modules_that_do_not_exist_are_named() {
        assert_eq!(modules_that_never_match("info,tonk_relay::sync::room=debug"), [""; 0]);
        assert_eq!(modules_that_never_match("info,tonk_relay=debug,samod=trace"), [""; 0]);
        assert_eq!(
            modules_that_never_match("sync=debug"),
            ["sync never matches; write tonk_relay::sync"]
        );
        let found = modules_that_never_match("warn, tonk_relay::snc=debug").join("\n");
        assert!(found.contains("tonk_relay has no module snc; expected one of admin, "), "{found}");
    }

    #[test]
    fn every_module_of_the_sources_is_known() {
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let mut found: Vec<String> = std::fs::read_dir(sources)
            .expect("the sources")
            .map(|entry| entry.expect("an entry"))
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        found.sort();
        assert_eq!(found, MODULES);
    }

    #[test]
    fn an_invalid_level_is_refused() {
        for level in
            ["inof", "debug info", "", "3", "debug,info", "tonk_relay", "tonk_relay=loud", "=info"]
        {
            let problem = filter(level).err().unwrap_or_else(|| panic!("{level:?} is taken"));
            let problem = problem.to_string();
            assert!(
                problem.contains("expected off, error, warn, info, debug or trace"),
                "{problem}"
            );
        }
        let problem = filter("info,tonk_relay=loud").expect_err("refused").to_string();
        assert!(problem.contains(r#""loud" in "tonk_relay=loud" is not a level"#), "{problem}");
    }
}
