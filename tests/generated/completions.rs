//! The shell completions.

use clap_complete::Shell;

use super::{command, compare};

#[test]
fn completions() {
    for (shell, name) in [
        (Shell::Bash, "tonk-relay.bash"),
        (Shell::Zsh, "_tonk-relay"),
        (Shell::Fish, "tonk-relay.fish"),
    ] {
        let mut made = Vec::new();
        clap_complete::generate(shell, &mut command(), "tonk-relay", &mut made);
        compare(&format!("packaging/completions/{name}"), &made);
    }
}
