//! Log levels: the text of `log.level`, and the filter that it stands for.

use tracing_subscriber::filter::{LevelFilter, Targets};

/// A text that is not a log level.
#[derive(Debug, thiserror::Error)]
#[error(
    "log.level: {0}; expected off, error, warn, info, debug or trace, such as \"info\", and levels of modules, such \
     as \"info,tonk_relay::sync=debug\""
)]
pub struct BadLevel(String);

/// The filter that a level says: one level for everything, and others for modules, separated by
/// commas. Modules that are not named log at "info" where there is no level for everything.
///
/// # Errors
/// A part of it is neither a level nor a module with a level.
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
    // A number would be taken, too.
    let is_one = levels.iter().any(|name| name.eq_ignore_ascii_case(level));
    if is_one { level.parse().ok() } else { None }
}

fn is_module(text: &str) -> bool {
    let is_name = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text.split("::").all(is_name)
}

/// This level, and less for libraries unless they are asked for by name.
pub fn quiet(level: LevelFilter) -> Targets {
    // samod's own lines at info and below are about single messages. automerge 0.12 writes the
    // whole history of a document for the span around each load (`storage::load`, 500 ms at 60,000
    // changes), and what it warns of is what a peer has sent, a line for each odd column: that peer
    // could fill the disk. notify warns of every watched folder that is removed, as it is with each
    // swap of a Kubernetes secret.
    Targets::new()
        .with_default(level)
        .with_target("samod", level.min(LevelFilter::WARN))
        .with_target("samod_core", level.min(LevelFilter::WARN))
        .with_target("automerge", LevelFilter::OFF)
        .with_target("notify", level.min(LevelFilter::ERROR))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn the_libraries_are_heard_when_they_are_asked_for_by_name() {
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
    fn a_level_that_is_none_is_refused_and_silences_nothing() {
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
