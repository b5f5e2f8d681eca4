//! `tonk-relay`(8).

use clap::{Arg, Command};
use roff::{Roff, bold, roman};
use tonk_relay::observe::metrics;

use super::{
    command, compare,
    page::{examples, inline, section, title, verbatim},
};

/// How an argument is written on the command line.
fn usage(argument: &Arg) -> String {
    let takes_values = argument.get_action().takes_values();
    let names = argument.get_value_names().filter(|_| takes_values);
    let value = names.map_or_else(String::new, |names| names.join(" "));
    match argument.get_long() {
        Some(long) => format!("--{long} {value}").trim().to_owned(),
        None => value,
    }
}

/// What an argument means, and its default.
fn meaning(argument: &Arg) -> String {
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let default = argument.get_default_values().first();
    let default = default.filter(|_| argument.get_action().takes_values());
    let default = default
        .map_or_else(String::new, |default| format!(" Default: `{}`.", default.to_string_lossy()));
    format!("{help}.{default}")
}

fn describe_argument(roff: &mut Roff, argument: &Arg) {
    roff.control("TP", []);
    roff.text([bold(usage(argument))]);
    roff.text(inline(&meaning(argument)));
}

/// The heading of a command: its name and all arguments, those that may be left out in brackets.
fn heading(name: &str, arguments: &[&Arg]) -> String {
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) =
        arguments.iter().partition(|argument| argument.is_positional());
    let mut heading = name.to_owned();
    for argument in options.iter().chain(&positional) {
        let usage = usage(argument);
        let is_required = argument.is_required_set();
        heading.push_str(&if is_required { format!(" {usage}") } else { format!(" [{usage}]") });
        let several = argument.get_num_args().is_some_and(|range| range.max_values() > 1);
        if several && argument.is_positional() {
            heading.push_str(" ...");
        }
    }
    heading.replace('-', "\\-")
}

/// The options that most commands have, with the same meaning.
fn common_options(command: &Command) -> Vec<Arg> {
    let checkpoint = command.find_subcommand("checkpoint").expect("the command");
    checkpoint.get_arguments().filter(|argument| argument.get_id() != "help").cloned().collect()
}

/// A command's arguments, followed by those of its sub-commands. Common options are only named.
fn describe(roff: &mut Roff, command: &Command, path: &str, common: &[Arg]) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let mut sub = sub.clone().disable_help_subcommand(true);
        sub.build();
        let name = format!("{path} {}", sub.get_name());
        let arguments: Vec<_> =
            sub.get_arguments().filter(|argument| argument.get_id() != "help").collect();
        if !sub.has_subcommands() || arguments.iter().any(|argument| argument.is_positional()) {
            roff.control("SS", [heading(&name, &arguments).as_str()]);
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            roff.text(inline(&format!("{about}.")));
            let is_common = |argument: &&Arg| {
                let same = |c: &Arg| usage(c) == usage(argument) && meaning(c) == meaning(argument);
                common.iter().any(same)
            };
            for argument in arguments.into_iter().filter(|argument| !is_common(argument)) {
                describe_argument(roff, argument);
            }
            if let Some(more) = sub.get_after_help() {
                roff.control("PP", []);
                verbatim(roff, &more.to_string());
            }
        }
        describe(roff, &sub, &name, common);
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
    for argument in command.get_arguments().filter(|a| a.get_long().is_some()) {
        describe_argument(&mut roff, argument);
    }
    let common = common_options(&command);
    roff.control("SH", ["COMMANDS"]);
    roff.text([roman("These options mean the same for every command that has them:")]);
    for argument in &common {
        describe_argument(&mut roff, argument);
    }
    describe(&mut roff, &command, "tonk-relay", &common);
    section(&mut roff, "EXIT STATUS", EXIT_STATUS);
    section(&mut roff, "SIGNALS", SIGNALS);
    section(&mut roff, "ENVIRONMENT", ENVIRONMENT);
    section(&mut roff, "FILES", FILES);
    examples(&mut roff, EXAMPLES);
    section(&mut roff, "SECURITY", SECURITY);
    roff.control("SH", ["METRICS"]);
    roff.text([roman("The relay also exports those of its process, which start with process_.")]);
    for metric in metrics::described() {
        roff.control("TP", []);
        let labels = match metric.labels {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        roff.text([bold(metric.name), roman(labels)]);
        roff.text(inline(metric.help));
    }
    section(
        &mut roff,
        "SEE ALSO",
        &[
            ("", "`tonk-relay.toml`(5), `systemctl`(1), `journalctl`(1)"),
            (
                "",
                "In /usr/share/doc/tonk-relay: operation.md, app.md, storage.md, postgresql.md, \
                 several.md, monitoring.md, troubleshooting.md, runbooks.md, security.md, protocol.md, costs.md, glossary.md, \
                 from-typescript.md.",
            ),
        ],
    );
    compare("man/tonk-relay.8", roff.to_roff().as_bytes());
}

const DESCRIPTION: &[(&str, &str)] = &[
    (
        "",
        "`tonk-relay` is a sync server for clients of automerge-repo and Tonk. They connect over \
         WebSocket (automerge-repo protocol version 1) and share automerge documents through it. \
         The relay stores the documents, serves one `.tonk` bundle, stores uploaded bundles, and \
         exports Prometheus metrics.",
    ),
    (
        "",
        "Without a command it runs in the foreground, for `systemd`(1). Commands about stored \
         documents do the same whether or not the relay runs: they ask the running relay over its \
         admin socket, as root or a member of the group tonk-relay, or else work as the owner of \
         the storage folder.",
    ),
    (
        "",
        "The form with PORT and BUNDLE is that of Tonk's TypeScript relay. It is open to everybody \
         who reaches the port.",
    ),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Success. After a SIGTERM: every document was made durable."),
    (
        "1",
        "The command failed, or could not do everything; standard error says why. `status`: the \
         relay is not ready, or does not run. `fsck`: all damage was repaired. After a SIGTERM: \
         not everything was durable within drain_timeout. `client`: also if not everything that \
         was typed was saved, or a line of input that is not a terminal changed nothing.",
    ),
    ("2", "The arguments are wrong."),
    (
        "4",
        "`fsck`: there is damage. Other commands: the journal is broken, and nothing was changed.",
    ),
    ("8", "`fsck`: the check could not be made, or not to its end."),
    (
        "78",
        "The config is wrong. Standard error names every fault. The systemd unit does not restart \
         the relay after this.",
    ),
];

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "Shut down gracefully: accept nothing new, close the connections with 1012, make every \
         document durable, and exit within drain_timeout. The same signal again, at least a second \
         later, ends the relay at once.",
    ),
    (
        "SIGHUP",
        "Reload the config, as `tonk-relay reload` does. The log and `systemctl status` say \
         whether it was applied.",
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "HOST, S3_BUCKET_NAME, AWS_REGION, RUST_LOG",
        "In the form with PORT and BUNDLE only: the address to listen on, the S3 bucket for \
         uploaded bundles and its region, and the log level.",
    ),
    (
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and others of AWS",
        "Access to the S3 bucket of `[bundles]`.",
    ),
    (
        "AWS_REQUEST_CHECKSUM_CALCULATION, AWS_RESPONSE_CHECKSUM_VALIDATION",
        "Whether requests to S3 carry checksums, and whether those of answers are checked; \
         `when_required` if not set.",
    ),
    (
        "CREDENTIALS_DIRECTORY",
        "Set by systemd for `LoadCredential=`. The credentials `tokens`, `jwt-keys` and \
         `aws-credentials` replace the files that the config names.",
    ),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS, JOURNAL_STREAM",
        "Set by systemd: readiness, the watchdog, socket activation, and whether to log to the \
         journal.",
    ),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/tonk-relay.toml", "The config: `tonk-relay.toml`(5)."),
    (
        "/etc/tonk-relay/NAME.toml",
        "The config of the instance tonk-relay@NAME.service. Its folders are \
         /var/lib/tonk-relay-NAME and /run/tonk-relay-NAME.",
    ),
    (
        "/etc/tonk-relay.tokens",
        "The hashes of the tokens of `auth.mode = \"token\"`; `auth.tokens` can name another file.",
    ),
    (
        "/var/lib/tonk-relay/documents",
        "The documents, in the layout of automerge-repo's nodefs adapter, with the relay's own \
         files next to them; storage.md lists these.",
    ),
    ("/var/lib/tonk-relay/bundles", "Uploaded bundles."),
    ("/run/tonk-relay/admin.sock", "The admin socket, for root and the group tonk-relay."),
    (
        "/usr/share/tonk-relay",
        "Dashboards for Grafana, rules for Prometheus, examples for nginx, Caddy and HAProxy, a \
         deploy hook for certbot, the configs of a trial with several relays, and \
         restart-instances, which restarts instances one after another.",
    ),
    (
        "/usr/share/doc/tonk-relay/examples",
        "The two example configs of `tonk-relay.toml`(5), and an app with its backend.",
    ),
];

/// What a person does on the first day, on every day, and on a bad one.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "A first look",
        "tonk-relay demo                                         # prints what to open in a \
         browser\n\
         tonk-relay client new                                   # a document in the terminal; \
         help says what to type\n\
         tonk-relay client open 3xybM3xYKhVUmxiaepeYcZaQkoCL     # the list that the demo shows\n\
         echo 'title = Groceries' | tonk-relay client new --url wss://sync.example.org \
         --token-file phone.token",
    ),
    (
        "First set-up",
        "editor /etc/tonk-relay.toml                  # such as: [auth] mode = \"token\"\n\
         tonk-relay token add phone --scope sync:write,download --expires 90d > phone.token\n\
         tonk-relay --check-config\n\
         systemctl restart tonk-relay\n\
         tonk-relay status\n\
         tonk-relay ping wss://sync.example.org --token-file phone.token\n\
         systemctl enable --now tonk-relay-backup.timer",
    ),
    (
        "Daily work",
        "tonk-relay --check-config && tonk-relay reload          # after a change of the config or \
         the tokens\n\
         tonk-relay token list                                   # which tokens are in use\n\
         tonk-relay token remove phone && tonk-relay reload      # its sessions end\n\
         tonk-relay backup /var/backups/tonk-relay\n\
         tonk-relay fsck /var/backups/tonk-relay\n\
         tonk-relay export 3vYSepnTEEeveV7o2zeHfciMfz49 app.tonk",
    ),
    (
        "An incident",
        "tonk-relay status                                       # ready? what is wrong?\n\
         journalctl -u tonk-relay --since -1h -p warning\n\
         tonk-relay top --once                                   # what costs most\n\
         tonk-relay doc 3vYSepnTEEeveV7o2zeHfciMfz49 --follow    # who sends what, and why it is \
         refused\n\
         tonk-relay doc block 3vYSepnTEEeveV7o2zeHfciMfz49 --reason \"grows without end\"\n\
         tonk-relay quarantine list\n\
         systemctl stop tonk-relay && tonk-relay restore --replace /var/backups/tonk-relay && \
         systemctl start tonk-relay",
    ),
];

const SECURITY: &[(&str, &str)] = &[(
    "",
    "Without an `auth.mode` the relay serves clients of its own machine only. Which pages need \
     which scope, and the codes with which WebSockets are closed, are in \
     /usr/share/doc/tonk-relay/protocol.md; what the relay promises, in \
     /usr/share/doc/tonk-relay/security.md.",
)];
