//! Arguments, and what each form of the command does. The commands about what is stored are in `storage` and
//! `copies`, their way to it in `relay`.

#![allow(clippy::disallowed_methods, reason = "commands may block")]

mod copies;
mod live;
mod ping;
mod progress;
mod relay;
mod storage;
mod token;

use std::{
    env,
    ffi::OsString,
    io::{ErrorKind, Write},
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use hyper::Method;
use serde::Serialize;

use self::{
    copies::{
        backup::{self, BackupArguments},
        export::{self, ExportArguments},
        import::{self, ImportArguments},
        restore::{self, RestoreArguments},
    },
    ping::PingArguments,
    relay::RelayArguments,
    storage::{DocArguments, FsckArguments, QuarantineVerb, StorageArguments},
    token::TokenArguments,
};
use crate::{
    admin::{ReloadAnswer, client::AdminError, status::Status},
    app::preflight,
    app::{AppError, Loaded, service::Service},
    base::{
        document_id::{BadDocumentId, DocumentId},
        folder::Folder,
    },
    config::{
        AdminAddress, AuthMode, Config, StoreKind, check,
        load::{self, Fault, LoadedConfig, Origins},
    },
    observe::log::{self, LogError},
    storage::StorageError,
};

/// The config is wrong (`sysexits.h`).
const EX_CONFIG: u8 = 78;
const CONFIG_FILE: &str = "/etc/tonk-relay.toml";
/// What the demo serves: a small bundle of three documents.
const DEMO_BUNDLE: &[u8] = include_bytes!("../etc/demo.tonk");

/// The sync relay for Tonk and automerge-repo apps.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Debug, Args)]
struct Daemon {
    /// The config file
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// Check the config and what it names, print every fault, and exit with 0 or 78
    #[arg(long)]
    check_config: bool,
    /// Print what is in effect, each key with where it comes from
    #[arg(long)]
    print_config: bool,
    /// The TypeScript relay's form: a port to listen on (address in $HOST, default 127.0.0.1)
    #[arg(value_name = "PORT", requires = "bundle", conflicts_with = "config")]
    port: Option<u16>,
    /// ... the bundle to serve
    #[arg(value_name = "BUNDLE")]
    bundle: Option<PathBuf>,
    /// ... and the folder of documents
    #[arg(value_name = "STORAGE", default_value = "automerge-repo-data")]
    storage: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a relay to try, with a small bundle of its own and everything in one folder
    Demo {
        /// Serve this bundle instead
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
        /// Where documents, bundles and the admin socket go
        #[arg(long, value_name = "FOLDER", default_value = "tonk-relay-data")]
        folder: PathBuf,
        /// Where to listen
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8081")]
        listen: SocketAddr,
    },
    /// Ask the running relay how it is
    Status {
        #[command(flatten)]
        relay: RelayArguments,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say which documents and which sessions cost the running relay most in the last minute
    Top {
        #[command(flatten)]
        relay: RelayArguments,
        /// Say it once, also on a terminal
        #[arg(long)]
        once: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Try the way to a relay as a client takes it: address, TLS, proxy, upgrade, round trip, large messages, silence
    Ping(PingArguments),
    /// Let the running relay take over its changed config file
    Reload {
        #[command(flatten)]
        relay: RelayArguments,
    },
    /// Make, list and remove the tokens that clients sign in with
    Token(TokenArguments),
    /// Move all that is stored into the documents' folders, whether or not the relay runs
    Checkpoint {
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Say what is stored of a document, or delete it, whether or not the relay runs
    Doc(DocArguments),
    /// Check all that is stored, whether or not the relay runs: 0 all is well, 1 repaired, 4 damaged, 8 not checked
    Fsck(FsckArguments),
    /// Look after what was put aside because it does not parse
    Quarantine {
        #[command(subcommand)]
        verb: QuarantineVerb,
    },
    /// Copy all that is stored into a folder, whether or not the relay runs; what has not changed is not copied again
    Backup(BackupArguments),
    /// Bring a backup back
    Restore(RestoreArguments),
    /// Take over the documents of another relay's folder, which stays as it is
    Import(ImportArguments),
    /// Write an app's documents as they are now into a .tonk bundle: 0 with all of them, 1 where one that is mentioned
    /// is not stored or not whole
    Export(ExportArguments),
    /// Serve what is stored to another command of ours
    #[command(hide = true)]
    ServeStorage {
        #[arg(long)]
        config: PathBuf,
        /// Make the folder if it is not there, and put a broken journal aside
        #[arg(long)]
        repairs: bool,
    },
}

fn document_id(text: &str) -> Result<DocumentId, BadDocumentId> {
    text.strip_prefix("automerge:").unwrap_or(text).parse()
}

/// Why the program ends with an error.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{}", lines(.0))]
    Config(Vec<Fault>),
    #[error("{0}")]
    Log(#[from] LogError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{}: {problem}", path.display())]
    Copy { path: PathBuf, problem: String },
    #[error("{0} is no automerge document: {1}")]
    Document(DocumentId, Box<automerge::AutomergeError>),
    #[error("not all could be checked: {0}")]
    NotChecked(String),
    #[error(
        "{0}; `tonk-relay fsck --repair`, or a start of the relay, moves the journal into quarantine"
    )]
    BrokenJournal(StorageError),
    #[error("the documents cannot be listed: {0}")]
    NotListed(String),
    #[error("{0}")]
    Problem(String),
    /// The exit code; what there is to say was said.
    #[error("")]
    Said(u8),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Ping(#[from] ping::PingError),
    #[error("not reloaded:\n{}", .0.join("\n"))]
    NotReloaded(Vec<String>),
    #[error("{}: not found", .0.display())]
    NoBundle(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("HOST={0}: {1}")]
    Host(String, String),
    #[error("{0} names no Unix socket under admin.listen; name the relay's socket with --socket")]
    NoSocket(String),
    #[error("the runtime cannot start: {0}")]
    Runtime(std::io::Error),
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Log(LogError::Level(_)) => EX_CONFIG,
            Self::Said(code) => *code,
            Self::App(AppError::OpenSocket { .. } | AppError::Auth { .. }) => EX_CONFIG,
            // As fsck(8) says it: what is broken was left as it is, and: the check could not be made.
            Self::BrokenJournal(_) => 4,
            Self::NotChecked(_) => 8,
            _ => 1,
        }
    }
}

/// What the arguments can be, for the manual and for completions.
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Run the command that the arguments name.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Demo { bundle, folder, listen }) => {
            demo(bundle, &folder, listen).and_then(daemon)
        }
        Some(Command::Status { relay, json }) => status(&relay, json),
        Some(Command::Top { relay, once, json }) => live::top(&relay, once, json),
        Some(Command::Ping(arguments)) => ping::ping(&arguments),
        Some(Command::Reload { relay }) => reload(&relay),
        Some(Command::Token(arguments)) => token::token(arguments),
        Some(Command::Checkpoint { storage }) => storage::checkpoint(&storage),
        Some(Command::Doc(arguments)) => storage::doc(arguments),
        Some(Command::Fsck(arguments)) => storage::fsck(&arguments),
        Some(Command::Quarantine { verb }) => storage::quarantine(verb),
        Some(Command::Backup(arguments)) => backup::backup(&arguments),
        Some(Command::Restore(arguments)) => restore::restore(&arguments),
        Some(Command::Import(arguments)) => import::import(&arguments),
        Some(Command::Export(arguments)) => export::export(&arguments),
        Some(Command::ServeStorage { config, repairs }) => relay::serve_storage(&config, repairs),
        None => configured(arguments.daemon),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CliError::Said(_)) {
                eprintln!("{error}");
            }
            ExitCode::from(error.code())
        }
    }
}

fn configured(arguments: Daemon) -> Result<(), CliError> {
    let loaded = match (arguments.port, arguments.bundle) {
        (Some(port), Some(bundle)) => as_typescript_relay(port, &bundle, &arguments.storage)?,
        _ => load::read_file(&arguments.config).map_err(CliError::Config)?,
    };
    if arguments.print_config {
        print(&load::print(&loaded));
        return Ok(());
    }
    let mut faults = check::check(&loaded);
    if arguments.check_config {
        let service = Service::find().map_err(|fault| CliError::Config(vec![fault]))?;
        faults.extend(preflight::open(&loaded, service.as_ref()));
        for key in check::without_effect(&loaded) {
            eprintln!("warning: {key}");
        }
        if faults.is_empty() {
            let place = loaded.file.as_ref().map(|file| format!("{}: ", file.display()));
            let by = service.map(|service| format!(" (checked as {})", service.describe()));
            print(&format!("{}no fault{}\n", place.unwrap_or_default(), by.unwrap_or_default()));
            return Ok(());
        }
    }
    if !faults.is_empty() {
        return Err(CliError::Config(faults));
    }
    daemon(loaded)
}

/// What a command was asked for goes to stdout. Whoever reads it may have had enough of it.
fn print(text: &str) {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("the answer cannot be written: {error}");
        }
        _ => {}
    }
}

/// Print an answer, as JSON or as a text.
fn show(json: bool, answer: &impl Serialize, text: impl FnOnce() -> String) {
    print(&match json {
        true => format!("{}\n", serde_json::to_string_pretty(answer).unwrap_or_default()),
        false => text(),
    });
}

fn daemon(loaded: LoadedConfig) -> Result<(), CliError> {
    let log_level = Some(log::init(&loaded.config.log)?);
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let bound = Loaded { config: loaded, log_level }.bind().await?;
        bound.run()?.serve().await.finish().await
    });
    // A disk that hangs holds threads that nothing can end: they do not keep the process.
    runtime.shutdown_background();
    Ok(result?)
}

/// Threads for what blocks: disks, and what takes processor time. Each keeps about half a MiB of freed memory for itself:
/// with tokio's 512, twenty large uploads at once took 250 MiB, and with these 110.
const BLOCKING: usize = 96;

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().max_blocking_threads(BLOCKING).build().map_err(CliError::Runtime)
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|source| CliError::Io { path: path.to_owned(), source })
}

/// A config with a few keys set by something else than a file.
fn without_file(origin: &str, set: impl FnOnce(&mut Config)) -> LoadedConfig {
    let mut config = Config::default();
    set(&mut config);
    let mut origins = Origins::default();
    for key in load::changed_keys(&Config::default(), &config) {
        origins.set(&key, origin);
    }
    LoadedConfig { file: None, text: String::new(), config, origins }
}

/// `tonk-relay PORT BUNDLE [STORAGE]`, as the TypeScript relay was started: open by definition, with no
/// admin listener, uploaded bundles beside the documents.
fn as_typescript_relay(port: u16, bundle: &Path, storage: &Path) -> Result<LoadedConfig, CliError> {
    if !bundle.exists() {
        return Err(CliError::NoBundle(bundle.to_owned()));
    }
    let host = env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let listen = (bare, port)
        .to_socket_addrs()
        .map_err(|error| CliError::Host(host.clone(), error.to_string()))?
        .next()
        .ok_or_else(|| CliError::Host(host.clone(), "names no address".to_owned()))?;
    let (bundle, storage) = (absolute(bundle)?, absolute(storage)?);
    let mut uploads = OsString::from(&storage);
    uploads.push("-bundles");
    Ok(without_file("command line", |config| {
        config.http.listen = vec![listen];
        config.admin.listen = Vec::new();
        config.bundle.path = bundle;
        config.bundles.path = uploads.into();
        if let Some(bucket) = env::var("S3_BUCKET_NAME").ok().filter(|name| !name.is_empty()) {
            config.bundles.store = StoreKind::S3;
            config.bundles.bucket = bucket;
            config.bundles.region = env::var("AWS_REGION").unwrap_or_default();
        }
        config.storage.path = storage;
        config.auth.mode = AuthMode::Open;
        if let Some(level) = env::var("RUST_LOG").ok().filter(|level| !level.is_empty()) {
            config.log.level = level;
        }
    }))
}

fn demo(
    bundle: Option<PathBuf>,
    folder: &Path,
    listen: SocketAddr,
) -> Result<LoadedConfig, CliError> {
    let folder = absolute(folder)?;
    let io = |source| CliError::Io { path: folder.clone(), source };
    let opened = Folder::create(&folder).map_err(io)?;
    let bundle = match bundle {
        Some(bundle) => absolute(&bundle)?,
        None => {
            const NAME: &str = "demo.tonk";
            if opened.stat(NAME).map_err(io)?.is_none() {
                opened.write(NAME, DEMO_BUNDLE, 0o666, None).map_err(io)?;
            }
            folder.join(NAME)
        }
    };
    let loaded = without_file("demo", |config| {
        config.http.listen = vec![listen];
        config.admin.listen = vec![AdminAddress::Unix(folder.join("admin.sock"))];
        config.bundle.path = bundle;
        config.bundles.path = folder.join("bundles");
        config.storage.path = folder.join("documents");
    });
    let faults = check::check(&loaded);
    if faults.is_empty() { Ok(loaded) } else { Err(CliError::Config(faults)) }
}

fn reload(relay: &RelayArguments) -> Result<(), CliError> {
    let answer: ReloadAnswer = relay.running()?.answer(Method::POST, "/reload")?;
    if !answer.applied {
        return Err(CliError::NotReloaded(answer.problems));
    }
    print(&match answer.changed.as_slice() {
        [] => "reloaded: no setting has changed; the files of tokens and keys were read anew\n"
            .to_owned(),
        keys => format!("reloaded: {}\n", keys.join(" ")),
    });
    Ok(())
}

fn status(relay: &RelayArguments, json: bool) -> Result<(), CliError> {
    let status: Status = relay.running()?.ask(Method::GET, "/status")?;
    show(json, &status, || describe(&status));
    Ok(())
}

fn describe(status: &Status) -> String {
    let bundle = match (&status.bundle_sha256, status.bundle_documents) {
        (Some(sha256), Some(documents)) => format!("{documents} documents, sha256 {sha256}"),
        _ => "none".to_owned(),
    };
    let mut text = format!(
        "tonk-relay {} (pid {}), {} for {}\n\
         ready        {}\n\
         connections  {} ({} peers)\n\
         documents    {} live, {} waited for\n\
         unsaved      {} bytes\n\
         bundle       {bundle}\n",
        status.version,
        status.pid,
        status.phase.name(),
        humantime::format_duration(std::time::Duration::from_secs(status.uptime_seconds)),
        if status.ready { "yes" } else { "no" },
        status.connections,
        status.peers,
        status.documents_live,
        status.documents_waited_for,
        status.unsaved_bytes,
    );
    if status.quarantined > 0 {
        let quarantined = status.quarantined;
        text.push_str(&format!(
            "quarantine   {quarantined} files that do not parse: `tonk-relay quarantine list`\n"
        ));
    }
    if status.blocked > 0 {
        text.push_str(&format!(
            "blocked      {} documents: `tonk-relay doc blocked`\n",
            status.blocked
        ));
    }
    for line in &status.failed {
        text.push_str(&format!("failed       {line}\n"));
    }
    for line in &status.degraded {
        text.push_str(&format!("degraded     {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        command().debug_assert();
    }

    #[test]
    fn the_typescript_relays_form_is_understood() {
        let arguments =
            Arguments::try_parse_from(["tonk-relay", "8081", "app.tonk"]).expect("parses");
        assert_eq!(arguments.daemon.port, Some(8081));
        assert_eq!(arguments.daemon.storage, Path::new("automerge-repo-data"));
        assert!(Arguments::try_parse_from(["tonk-relay", "8081"]).is_err(), "a bundle is missing");
        let reload = Arguments::try_parse_from(["tonk-relay", "reload"]).expect("parses");
        assert!(matches!(reload.command, Some(Command::Reload { .. })));
    }
}
