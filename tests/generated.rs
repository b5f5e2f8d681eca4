//! The manual pages and shell completions are generated from the program, and the unit of instances
//! from that of the only relay. They must equal those in the repository:
//! `TONK_RELAY_WRITE=1 cargo test --test generated` writes them.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

#[path = "generated/completions.rs"]
mod completions;
#[path = "generated/config.rs"]
mod config;
#[path = "generated/page.rs"]
mod page;
#[path = "generated/program.rs"]
mod program;
#[path = "generated/units.rs"]
mod units;

use std::{fs, path::PathBuf};

use clap::Command;
use tonk_relay::cli;

fn compare(path: &str, made: &[u8]) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("TONK_RELAY_WRITE").is_some() {
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(&file, made).expect("written");
    }
    let there = fs::read(&file).unwrap_or_default();
    assert!(
        there == made,
        "{path} is not what the program says by now: TONK_RELAY_WRITE=1 cargo test --test \
         generated writes it"
    );
}

/// The command without those sub-commands that are hidden. clap_complete would complete them.
fn command() -> Command {
    let command = cli::command();
    let (hidden, shown): (Vec<Command>, Vec<Command>) =
        command.get_subcommands().cloned().partition(Command::is_hide_set);
    assert_eq!(hidden.iter().map(Command::get_name).collect::<Vec<_>>(), ["serve-storage"]);
    let about = command.get_about().expect("a description").clone();
    Command::new("tonk-relay")
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .subcommands(shown)
        .disable_help_subcommand(true)
}
