//! The manual pages and shell completions are generated from the program, and those in the
//! repository must be up to date. `TONK_RELAY_WRITE=1 cargo test --test generated` writes them.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

use std::{fs, path::PathBuf};

use clap::Command;
use clap_complete::Shell;
// clap_complete is clap's own; clap's generator of manual pages writes with roff.
use roff::{Inline, Roff, bold, roman};
use tonk_relay::{cli, observe::metrics};

fn compare(path: &str, made: &[u8]) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("TONK_RELAY_WRITE").is_some() {
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(&file, made).expect("written");
    }
    let there = fs::read(&file).unwrap_or_default();
    assert!(
        there == made,
        "{path} is not what the program says by now: TONK_RELAY_WRITE=1 cargo test --test generated writes it"
    );
}

/// The command without hidden arguments.
fn command() -> Command {
    let command = cli::command();
    let hidden: Vec<String> = command
        .get_subcommands()
        .filter(|sub| sub.is_hide_set())
        .map(|sub| sub.get_name().to_owned())
        .collect();
    assert_eq!(hidden, ["serve-storage"]);
    command.disable_help_subcommand(true)
}

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

fn title(roff: &mut Roff, name: &str, section: &str, manual: &str) {
    let source = concat!("tonk-relay ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [name, section, DATE, source, manual]);
}

/// Text between backquotes is bold.
fn inline(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(n, part)| if n % 2 == 0 { roman(part) } else { bold(part) }).collect()
}

fn section(roff: &mut Roff, name: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [name]);
    for (n, (term, text)) in entries.iter().enumerate() {
        if !term.is_empty() {
            roff.control("TP", []);
            roff.text([bold(*term)]);
        } else if n > 0 {
            roff.control("PP", []);
        }
        roff.text(inline(text));
    }
}

/// A command's arguments, followed by those of its sub-commands.
fn describe(roff: &mut Roff, command: &Command, path: &str) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let mut sub = sub.clone().disable_help_subcommand(true);
        sub.build();
        let name = format!("{path} {}", sub.get_name());
        let arguments: Vec<_> =
            sub.get_arguments().filter(|argument| argument.get_id() != "help").collect();
        if !sub.has_subcommands() || arguments.iter().any(|argument| argument.is_positional()) {
            let usage = sub.clone().bin_name(&name).render_usage().to_string();
            roff.control("SS", [usage.trim_start_matches("Usage: ").trim()]);
            roff.text([roman(sub.get_about().map(ToString::to_string).unwrap_or_default() + ".")]);
            for argument in arguments {
                let value = argument.get_value_names().map_or_else(String::new, |names| {
                    if argument.get_action().takes_values() {
                        names.join(" ")
                    } else {
                        String::new()
                    }
                });
                let term = match argument.get_long() {
                    Some(long) => format!("--{long} {value}"),
                    None => value,
                };
                roff.control("TP", []);
                roff.text([bold(term.trim())]);
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                roff.text([roman(format!("{help}."))]);
            }
        }
        describe(roff, &sub, &name);
    }
}

#[test]
fn manual_of_the_program() {
    let command = command();
    let mut roff = Roff::new();
    title(&mut roff, "tonk-relay", "8", "System Administration");
    section(&mut roff, "NAME", &[("", "tonk-relay - sync relay for Tonk and automerge-repo apps")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text(inline("`tonk-relay` [`--config` FILE] [`--check-config` | `--print-config`]"));
    roff.control("br", []);
    roff.text(inline("`tonk-relay` COMMAND ..."));
    roff.control("br", []);
    roff.text(inline("`tonk-relay` PORT BUNDLE [STORAGE]"));
    section(&mut roff, "DESCRIPTION", DESCRIPTION);
    roff.control("SH", ["OPTIONS"]);
    for argument in command.get_arguments().filter(|a| !a.is_positional()) {
        let Some(long) = argument.get_long() else { continue };
        let value = match argument.get_value_names() {
            Some(names) if argument.get_action().takes_values() => names.join(" "),
            _ => String::new(),
        };
        roff.control("TP", []);
        roff.text([bold(format!("--{long} {value}").trim())]);
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        roff.text([roman(format!("{help}."))]);
    }
    roff.control("SH", ["COMMANDS"]);
    describe(&mut roff, &command, "tonk-relay");
    section(&mut roff, "EXIT STATUS", EXIT_STATUS);
    section(&mut roff, "SIGNALS", SIGNALS);
    section(&mut roff, "SIGN\\-IN", SIGN_IN);
    section(&mut roff, "FILES", FILES);
    roff.control("SH", ["METRICS"]);
    roff.text([roman("Those of the process itself (process_...) are beside them.")]);
    for metric in metrics::described() {
        roff.control("TP", []);
        let labels = match metric.labels {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        roff.text([bold(metric.name), roman(labels)]);
        roff.text([roman(metric.help)]);
    }
    section(
        &mut roff,
        "SEE ALSO",
        &[("", "`tonk-relay.toml`(5), `systemctl`(1), `journalctl`(1)")],
    );
    compare("man/tonk-relay.8", roff.to_roff().as_bytes());
}

/// The date of the manual pages changes with their content, not with the day of a build.
const DATE: &str = "2026-11-24";

const DESCRIPTION: &[(&str, &str)] = &[
    (
        "",
        "A daemon that lets browsers and other peers synchronise automerge documents over WebSocket (automerge-repo \
         protocol version 1), serves one `.tonk` bundle and swaps it when its file changes, takes and hands out \
         uploaded bundles, and exports Prometheus metrics.",
    ),
    (
        "",
        "Without a command it runs in the foreground, as `systemd`(1) wants it. The commands about what is stored \
         do the same whether or not it runs: they ask the running relay over its admin socket, or work as the owner \
         of the folder.",
    ),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "All is done. After a SIGTERM: all was durable."),
    (
        "1",
        "It failed, or not all of it could be done: the reason is on standard error. `fsck`: all damages were repaired.",
    ),
    ("2", "The arguments are wrong."),
    ("4", "`fsck`: there are damages. Others: the journal is broken, and nothing was changed."),
    ("8", "`fsck`: the check was not made, or not to its end."),
    ("78", "The config is wrong: every fault is named, and systemd does not start it again."),
];

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "Drain: take nothing new, let clients go, make all durable, and end within drain_timeout. A second signal, a second or more after the first: end at once.",
    ),
    (
        "SIGHUP",
        "Reload the config, as `tonk-relay reload` does; whether it was applied is in the log and in `systemctl status`.",
    ),
];

const SIGN_IN: &[(&str, &str)] = &[
    (
        "",
        "`auth.mode` says who is let in. Where it is not set or `open`, every page below is public, to clients of this machine or to all. \
         Where it is `token` or `jwt`, each asks for a scope, which a token or `auth.anonymous` gives:",
    ),
    ("`GET /`, `/livez`, `/readyz`, `/tonk_core_bg.wasm`", "public in every mode"),
    ("`GET /.manifest.tonk`, `/api/blank-tonk`", "`download`"),
    ("`GET /api/bundles/{id}`, `/api/bundles/{id}/manifest`", "`download`"),
    (
        "`POST /api/bundles`",
        "`upload`, and `sync:write` for the bundle's root and each document in it",
    ),
    ("`GET /metrics` on the public port", "`admin`; the admin listener asks for nothing"),
    (
        "a WebSocket",
        "`sync:read` or `sync:write`, for all documents or, as `sync:read:ID`, for one. A document without the right to it is answered as one that \
         does not exist, and counts in `limits` as one; of who may only read, changes are not taken",
    ),
    (
        "",
        "A token comes in `Authorization: Bearer`, in a WebSocket's subprotocols as `tonk-relay, bearer.TOKEN`, or where `auth.query_token` lets it in the URL as \
         `?token=`; the first of these counts. Without a good one pages answer 401, without the scope 403; a WebSocket is closed with 4401 or 4403, also when \
         its token ends, is removed, or has other scopes by a reload.",
    ),
];

const FILES: &[(&str, &str)] = &[
    (
        "`/etc/tonk-relay.tokens`",
        "The tokens of `auth.mode = \"token\"`, hashed; `auth.tokens` names another file, and the systemd credential `tokens` takes its place.",
    ),
    ("/etc/tonk-relay.toml", "The config: `tonk-relay.toml`(5)."),
    (
        "/var/lib/tonk-relay/documents",
        "The documents, in the layout of automerge-repo's nodefs adapter; beside them what is the relay's own: `.journal`, `quarantine`, `.deleted`, `.blocked`, `.imported`, `.replaced-...`, and a few more that begin with a dot.",
    ),
    ("/var/lib/tonk-relay/bundles", "Uploaded bundles."),
    ("/run/tonk-relay/admin.sock", "The admin socket, for root and the group tonk-relay."),
    (
        "http://127.0.0.1:9464/status",
        "A page with what goes on; `/metrics` there is for Prometheus, `/readyz?verbose` says what is amiss.",
    ),
    (
        "/usr/share/tonk-relay",
        "Dashboards for Grafana, rules for Prometheus, examples for nginx and Caddy.",
    ),
    (
        "/usr/share/doc/tonk-relay",
        "`troubleshooting.md` starts from what is seen, `runbooks.md` from an alert, `from-typescript.md` from the relay before.",
    ),
];

#[test]
fn manual_of_the_config() {
    let text = include_str!("../etc/tonk-relay.toml");
    let mut roff = Roff::new();
    title(&mut roff, "tonk-relay.toml", "5", "File Formats");
    section(&mut roff, "NAME", &[("", "tonk-relay.toml - configuration of tonk-relay")]);
    section(&mut roff, "DESCRIPTION", CONFIG);
    // Comments are collected until the key that they describe.
    let (mut about, mut keys) = (Vec::<&str>::new(), 0);
    for line in text.lines().skip_while(|line| !line.trim().is_empty()) {
        if let Some(name) = line.strip_prefix('[') {
            roff.control("SH", [format!("[{}]", name.trim_end_matches(']')).as_str()]);
            about.clear();
        } else if let Some(comment) = line.strip_prefix("# ") {
            about.push(comment);
        } else if let Some(key) = line.strip_prefix('#').filter(|key| key.contains(" = ")) {
            if keys == 0 {
                roff.control("SH", ["TOP LEVEL"]);
            }
            keys += 1;
            let (key, needs_restart) = match key.split_once("  # (R)") {
                Some((key, _)) => (key, " Needs a restart."),
                None => (key, ""),
            };
            roff.control("TP", []);
            roff.text([bold(key.trim())]);
            roff.text([roman(format!("{}{needs_restart}", about.join(" ")))]);
            about.clear();
        }
    }
    assert!(keys > 30, "the file is understood");
    section(&mut roff, "SEE ALSO", &[("", "`tonk-relay`(8)")]);
    compare("man/tonk-relay.toml.5", roff.to_roff().as_bytes());
}

const CONFIG: &[(&str, &str)] = &[
    (
        "",
        "TOML. A key that is not there has its default, which is shown here. An unknown key, a wrong type or a wrong value \
         is an error that names file, line and key: `tonk-relay --check-config` prints all of them, and \
         `tonk-relay --print-config` what is in effect.",
    ),
    (
        "",
        "A changed file is taken over by `systemctl reload tonk-relay`, as a whole or not at all; keys that need a restart \
         are then refused by name. Durations are \"20ms\", \"5s\", \"10m\" or \"30d\", sizes \"8MiB\" (powers of 1,024) or \
         \"100MB\" (powers of 1,000).",
    ),
];
