//! Arguments, and what each form of the command does.

use std::{
    env,
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use hyper::Method;

use crate::{
    admin::{self, CheckpointAnswer, DocumentAnswer, ReloadAnswer, Status, client::AdminError},
    app::{AppError, Loaded},
    config::{
        AdminAddress, AuthMode, Config, check,
        load::{self, Fault, LoadedConfig, Origins},
    },
    document_id::{BadDocumentId, DocumentId},
    log::{self, LogError},
    metrics::Metrics,
    storage::{StorageError, journal::Journal},
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
        relay: RunningRelay,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let the running relay take over its changed config file
    Reload {
        #[command(flatten)]
        relay: RunningRelay,
    },
    /// Move all that is stored into the documents' folders, whether or not the relay runs
    Checkpoint {
        #[command(flatten)]
        relay: RunningRelay,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The relay was found not to run
        #[arg(long, hide = true)]
        stopped: bool,
    },
    /// Say what is stored of a document, whether or not the relay runs
    Doc {
        /// Its id, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        #[command(flatten)]
        relay: RunningRelay,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The relay was found not to run
        #[arg(long, hide = true)]
        stopped: bool,
    },
}

fn document_id(text: &str) -> Result<DocumentId, BadDocumentId> {
    text.strip_prefix("automerge:").unwrap_or(text).parse()
}

#[derive(Debug, Args)]
struct RunningRelay {
    /// The config file of the relay, which names its admin socket
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// The admin socket itself
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
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
    #[error("not all is in the folders: {0}")]
    NotMoved(String),
    #[error("{0}: nothing is stored of this document")]
    NoDocument(DocumentId),
    #[error("what is stored of the document cannot be read: {0}")]
    NotRead(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error("not reloaded:\n{}", .0.join("\n"))]
    NotReloaded(Vec<String>),
    #[error("{}: not found", .0.display())]
    NoBundle(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("HOST={0}: {1}")]
    Host(String, String),
    #[error(
        "S3_BUCKET_NAME is set, but this version keeps uploaded bundles in a folder only; unset it to go on"
    )]
    S3,
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
            Self::Config(_) | Self::S3 | Self::Log(LogError::Level(_)) => EX_CONFIG,
            _ => 1,
        }
    }
}

/// Run the command that the arguments name.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Demo { bundle, folder, listen }) => {
            demo(bundle, &folder, listen).and_then(daemon)
        }
        Some(Command::Status { relay, json }) => status(&relay, json),
        Some(Command::Reload { relay }) => reload(&relay),
        Some(Command::Checkpoint { relay, json, stopped }) => checkpoint(&relay, json, stopped),
        Some(Command::Doc { id, relay, json, stopped }) => doc(id, &relay, json, stopped),
        None => configured(arguments.daemon),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
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
        faults.extend(check::open(&loaded));
    }
    if !faults.is_empty() {
        return Err(CliError::Config(faults));
    }
    if arguments.check_config {
        let place = loaded.file.as_ref().map(|file| format!("{}: ", file.display()));
        print(&format!("{}no fault\n", place.unwrap_or_default()));
        return Ok(());
    }
    daemon(loaded)
}

#[expect(clippy::print_stdout, reason = "what a command was asked for goes to stdout")]
fn print(text: &str) {
    print!("{text}");
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

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)
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
    if env::var_os("S3_BUCKET_NAME").is_some_and(|name| !name.is_empty()) {
        return Err(CliError::S3);
    }
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
        config.storage.path = storage;
        config.auth.mode = AuthMode::Open;
        if let Ok(level) = env::var("RUST_LOG") {
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
    std::fs::create_dir_all(&folder).map_err(io)?;
    let bundle = match bundle {
        Some(bundle) => absolute(&bundle)?,
        None => {
            let path = folder.join("demo.tonk");
            if !path.exists() {
                std::fs::write(&path, DEMO_BUNDLE).map_err(io)?;
            }
            path
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

impl RunningRelay {
    fn socket(&self) -> Result<PathBuf, CliError> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let loaded = load::read_file(&self.config).map_err(CliError::Config)?;
        let unix = loaded.config.admin.listen.into_iter().find_map(|address| match address {
            AdminAddress::Unix(path) => Some(path),
            AdminAddress::Tcp(_) => None,
        });
        unix.ok_or_else(|| CliError::NoSocket(self.config.display().to_string()))
    }

    fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, CliError> {
        let socket = self.socket()?;
        Ok(runtime()?.block_on(admin::client::ask(&socket, method, path))?)
    }

    /// The answer of the relay, or nothing where none runs. A socket that was named must answer.
    fn ask_if_running<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<Option<T>, CliError> {
        match self.ask(method, path) {
            Err(CliError::Admin(AdminError::NotRunning { .. })) if self.socket.is_none() => {
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }
}

fn reload(relay: &RunningRelay) -> Result<(), CliError> {
    let answer: ReloadAnswer = relay.ask(Method::POST, "/reload")?;
    if !answer.applied {
        return Err(CliError::NotReloaded(answer.problems));
    }
    print(&match answer.changed.as_slice() {
        [] => "reloaded: nothing has changed\n".to_owned(),
        keys => format!("reloaded: {}\n", keys.join(" ")),
    });
    Ok(())
}

/// Ask the running relay, or where none runs do it here with the storage of its config.
fn ask_or_open<T: serde::de::DeserializeOwned>(
    relay: &RunningRelay,
    stopped: bool,
    (method, path): (Method, &str),
    here: impl AsyncFnOnce(&Journal) -> T,
) -> Result<T, CliError> {
    if !stopped && let Some(answer) = relay.ask_if_running(method, path)? {
        return Ok(answer);
    }
    let config = load::read_file(&relay.config).map_err(CliError::Config)?.config;
    if let Some(ended) = as_owner_of(&config.storage.path)? {
        std::process::exit(ended);
    }
    runtime()?.block_on(async {
        let journal = Journal::open(&config.storage, Metrics::new()?.storage)?;
        Ok(here(&journal).await)
    })
}

fn doc(id: DocumentId, relay: &RunningRelay, json: bool, stopped: bool) -> Result<(), CliError> {
    let path = format!("/documents/{id}");
    let here = async |journal: &Journal| DocumentAnswer::of(journal, id).await;
    let answer = ask_or_open(relay, stopped, (Method::GET, &path), here)?;
    if let Some(problem) = answer.problem {
        return Err(CliError::NotRead(problem));
    }
    let document = answer.document.ok_or(CliError::NoDocument(id))?;
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(&document).unwrap_or_default()));
        return Ok(());
    }
    let mut text = format!(
        "document     {}\nheads        {}\nchanges      {} by {} actors, the last {}\nstored       {} bytes in {} chunks\n",
        document.document,
        document.heads.join(" "),
        document.changes,
        document.actors,
        document.last_change.as_deref().unwrap_or("at a time that nobody noted"),
        document.bytes,
        document.chunks.len(),
    );
    for chunk in document.chunks {
        text.push_str(&format!("  {:>9}  {}", chunk.bytes, chunk.key));
        text.push_str(&chunk.fault.map_or_else(String::new, |fault| format!("  broken: {fault}")));
        text.push('\n');
    }
    print(&text);
    Ok(())
}

fn checkpoint(relay: &RunningRelay, json: bool, stopped: bool) -> Result<(), CliError> {
    let here = async |journal: &Journal| CheckpointAnswer::of(journal).await;
    let answer = ask_or_open(relay, stopped, (Method::POST, "/checkpoint"), here)?;
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(&answer).unwrap_or_default()));
    }
    match answer.problem {
        Some(problem) => Err(CliError::NotMoved(problem)),
        None if json => Ok(()),
        None => {
            print(&format!("{} chunks moved; the folders hold everything\n", answer.moved));
            Ok(())
        }
    }
}

/// Root's files would be closed to the relay, which does not run: run this command again as the owner of `folder`. Returns its exit
/// code, or nothing where we are the owner already.
fn as_owner_of(folder: &Path) -> Result<Option<i32>, CliError> {
    let failed = |source| CliError::Io { path: folder.to_owned(), source };
    let owner = std::fs::metadata(folder).map_err(failed)?;
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(None);
    }
    // Not by its path, which may lead through folders that are root's alone.
    let mut again = std::process::Command::new("/proc/self/exe");
    again.args(env::args_os().skip(1)).arg("--stopped").uid(owner.uid()).gid(owner.gid());
    Ok(Some(again.status().map_err(failed)?.code().unwrap_or(1)))
}

fn status(relay: &RunningRelay, json: bool) -> Result<(), CliError> {
    let status: Status = relay.ask(Method::GET, "/status")?;
    if json {
        let text = serde_json::to_string_pretty(&status).unwrap_or_default();
        print(&format!("{text}\n"));
        return Ok(());
    }
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
        status.phase,
        humantime::format_duration(std::time::Duration::from_secs(status.uptime_seconds)),
        if status.ready { "yes" } else { "no" },
        status.connections,
        status.peers,
        status.documents_live,
        status.documents_waited_for,
        status.unsaved_bytes,
    );
    for line in &status.failed {
        text.push_str(&format!("failed       {line}\n"));
    }
    for line in &status.degraded {
        text.push_str(&format!("degraded     {line}\n"));
    }
    print(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Arguments::command().debug_assert();
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
