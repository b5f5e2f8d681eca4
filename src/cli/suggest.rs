//! Suggests the right name for a mistyped command.
//!
//! clap does that only where a command has no arguments of its own. `tonk-relay statsu` would be
//! the form `tonk-relay PORT BUNDLE` with a wrong port, and `tonk-relay doc blcok` a wrong document
//! id.

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::arguments::document_id;

/// How similar a suggestion must be, from 0 to 1; clap's own value.
const LEAST_SIMILARITY: f64 = 0.7;

/// Returns the error for arguments that begin with a command that does not exist. `arguments` are
/// those after the program's name.
pub(super) fn unknown_command(mut command: Command, arguments: &[String]) -> Option<clap::Error> {
    command.build();
    let mut command = &mut command;
    let mut arguments = arguments.iter().map(String::as_str);
    let word = loop {
        let word = arguments.next()?;
        if command.find_subcommand(word).is_none() {
            break word;
        }
        command = command.find_subcommand_mut(word)?;
    };
    let similar = similar_command(command, word).map(str::to_owned);
    let is_mistyped = match command.get_name() {
        "tonk-relay" => word.parse::<u16>().is_err(),
        // An id may be mistyped as well.
        "doc" => document_id(word).is_err() && similar.is_some(),
        _ => false,
    };
    if word.starts_with('-') || !is_mistyped {
        return None;
    }
    let mut error = clap::Error::new(ErrorKind::InvalidSubcommand).with_cmd(command);
    error.insert(ContextKind::InvalidSubcommand, ContextValue::String(word.to_owned()));
    if let Some(similar) = similar {
        let names = ContextValue::Strings(vec![similar]);
        error.insert(ContextKind::SuggestedSubcommand, names);
    }
    let usage = ContextValue::StyledStr(command.render_usage());
    error.insert(ContextKind::Usage, usage);
    Some(error)
}

/// Returns the name of the sub-command that is most similar to `word`, if one is similar enough.
fn similar_command<'a>(command: &'a Command, word: &str) -> Option<&'a str> {
    let names = command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name);
    // strsim: what clap suggests with.
    let rated = names.map(|name| (strsim::jaro(word, name), name));
    let best = rated.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(similarity, _)| *similarity > LEAST_SIMILARITY).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(arguments: &[&str]) -> Option<String> {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        unknown_command(crate::cli::command(), &arguments).map(|error| error.to_string())
    }

    #[test]
    fn a_mistyped_command_suggests_the_right_one() {
        for (arguments, suggested) in [
            (&["statsu"][..], "'status'"),
            (&["statsu", "--json"], "'status'"),
            (&["quarantin", "list"], "'quarantine'"),
            (&["doc", "blokced"], "'blocked'"),
        ] {
            let said = said(arguments).unwrap_or_else(|| panic!("{arguments:?} is accepted"));
            assert!(said.contains("unrecognized subcommand"), "{said}");
            assert!(said.contains("a similar subcommand exists"), "{said}");
            assert!(said.contains(suggested), "{said}");
            assert!(said.contains("Usage: tonk-relay"), "{said}");
        }
        let unlike = said(&["xyzzy"]).expect("refused");
        assert!(!unlike.contains("similar"), "{unlike}");
    }

    #[test]
    fn other_arguments_are_left_to_clap() {
        let id = crate::base::document_id::DocumentId::random().to_string();
        for arguments in [
            &["8081", "app.tonk"][..],
            &["--config", "x.toml"],
            &["--statsu"],
            &["status"],
            &["help"],
            &["doc", &id],
            &["doc", "not-an-id"],
            &["ping", "statsu"],
            &[],
        ] {
            assert_eq!(said(arguments), None, "{arguments:?}");
        }
    }
}
