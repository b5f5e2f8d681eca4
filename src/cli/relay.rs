//! The way from a command to what is stored: the running relay's admin socket, or where none runs a process of
//! our own, as the owner of the files, which serves the same router over a socket pair.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use hyper::{Method, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{runtime::Runtime, sync::watch};

use super::{CONFIG_FILE, CliError, runtime};
use crate::{
    admin::{
        client::{self, AdminError, Connection},
        storage::{Stored, router},
    },
    base::{folder, regular_file},
    bundle::{MaxInflated, served::ServedBundle, store},
    config::{AdminAddress, Config, Time, load},
    observe::{health::Health, metrics::Metrics},
    storage::{
        StorageError,
        documents::Documents,
        local::{journal::Journal, space::Space},
    },
};

/// Which relay a command is for.
#[derive(Debug, Args)]
pub(super) struct RelayArguments {
    /// The config file of the relay, which names its admin socket
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// The admin socket itself
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// A relay, or what stands for one that does not run.
pub(super) struct Relay {
    runtime: Runtime,
    connection: Connection,
    helper: Option<Child>,
}

fn socket_of(config: &Config) -> Option<PathBuf> {
    config.admin.listen.iter().find_map(|address| match address {
        AdminAddress::Unix(path) => Some(path.clone()),
        AdminAddress::Tcp(_) => None,
    })
}

impl RelayArguments {
    fn read_config(&self) -> Result<Config, CliError> {
        Ok(load::read_file(&self.config).map_err(CliError::Config)?.config)
    }

    /// The folder of documents, where the config says it.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let config = if self.socket.is_some() { None } else { self.read_config().ok() };
        config.map_or_else(Vec::new, |config| vec![config.storage.path, config.bundles.path])
    }

    /// The socket of a relay that runs although its config has a fault by now.
    fn despite_faults(&self, fault: CliError) -> Result<Relay, CliError> {
        let text = regular_file::read_text(&self.config, load::MAX_FILE).ok();
        let Some(socket) = text.as_deref().and_then(load::admin_socket) else { return Err(fault) };
        let mut relay = Relay::at(socket)?;
        if relay.fetch(Method::GET, "/livez", Bytes::new()).is_err() {
            return Err(fault);
        }
        eprintln!("the config has a fault, and the relay goes on with what it has:\n{fault}");
        Ok(relay)
    }

    /// The running relay.
    pub(super) fn running(&self) -> Result<Relay, CliError> {
        if let Some(socket) = &self.socket {
            return Relay::at(socket.clone());
        }
        match self.read_config() {
            Ok(config) => Relay::at(
                socket_of(&config)
                    .ok_or_else(|| CliError::NoSocket(self.config.display().to_string()))?,
            ),
            Err(fault) => self.despite_faults(fault),
        }
    }

    /// What is stored, whether or not the relay runs. A socket that was named must answer.
    pub(super) fn stored(&self) -> Result<Relay, CliError> {
        self.find(false)
    }

    /// The same for a command that may make the folder, and put a broken journal aside.
    pub(super) fn stored_or_new(&self) -> Result<Relay, CliError> {
        self.find(true)
    }

    fn find(&self, repairs: bool) -> Result<Relay, CliError> {
        if self.socket.is_some() {
            return self.running();
        }
        let config = match self.read_config() {
            Ok(config) => config,
            Err(fault) => return self.despite_faults(fault),
        };
        if let Some(socket) = socket_of(&config) {
            let mut relay = Relay::at(socket)?;
            match relay.fetch(Method::GET, "/livez", Bytes::new()) {
                Err(CliError::Admin(AdminError::NotRunning { .. })) => {}
                Err(CliError::Admin(AdminError::Refused(_))) | Ok(_) => return Ok(relay),
                Err(error) => return Err(error),
            }
        }
        self.help(&config.storage.path, repairs)
    }

    /// Start a process that serves what is stored, as the owner of `folder`: what root wrote there would be closed
    /// to the relay.
    fn help(&self, folder: &Path, repairs: bool) -> Result<Relay, CliError> {
        let io = |source| CliError::Io { path: folder.to_owned(), source };
        let runtime = runtime()?;
        let (ours, theirs) = UnixStream::pair().map_err(io)?;
        // Not by its path, which may lead through folders that are root's alone.
        let mut command = Command::new("/proc/self/exe");
        command.args(["serve-storage".as_ref(), "--config".as_ref(), self.config.as_os_str()]);
        if repairs {
            command.arg("--repairs");
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // A folder that is not there yet belongs to whoever has the one it will be in.
        if rustix::process::geteuid().is_root() {
            let (user, group) = folder::owner(folder).map_err(io)?;
            if user != 0 {
                command.uid(user).gid(group);
            }
        }
        let helper = command.spawn().map_err(io)?;
        drop(command);
        ours.set_nonblocking(true).map_err(io)?;
        let connection = runtime.block_on(async {
            let ours = tokio::net::UnixStream::from_std(ours).map_err(io)?;
            Ok::<_, CliError>(Connection::over(ours).await?)
        })?;
        Ok(Relay { runtime, connection, helper: Some(helper) })
    }
}

impl Relay {
    fn at(socket: PathBuf) -> Result<Self, CliError> {
        Ok(Self { runtime: runtime()?, connection: Connection::Socket(socket), helper: None })
    }

    /// What an error of the connection means: the process that serves us may have said why it ended.
    fn explain<T>(&mut self, result: Result<T, AdminError>) -> Result<T, CliError> {
        match (result, &mut self.helper) {
            (Err(AdminError::Http(error)), Some(helper)) => match helper.wait() {
                Ok(status) if !status.success() => {
                    let code = status.code().and_then(|code| u8::try_from(code).ok());
                    Err(CliError::Said(code.unwrap_or(1)))
                }
                _ => Err(AdminError::Http(error).into()),
            },
            (result, _) => Ok(result?),
        }
    }

    /// Send a request and take the whole answer.
    pub(super) fn fetch(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, CliError> {
        let answer = self.runtime.block_on(self.connection.fetch(method, path, body));
        self.explain(answer)
    }

    /// Ask for something in JSON.
    pub(super) fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
    ) -> Result<T, CliError> {
        Ok(client::parse(&self.fetch(method, path, Bytes::new())?)?)
    }

    /// Send JSON, and take JSON.
    pub(super) fn tell<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(body).unwrap_or_default();
        Ok(client::parse(&self.fetch(method, path, body.into())?)?)
    }

    /// The answer whatever its status is.
    pub(super) fn answer<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
    ) -> Result<T, CliError> {
        let answer = self.runtime.block_on(async {
            let answer = self.connection.send(method, path, Bytes::new()).await?;
            let body = http_body_util::BodyExt::collect(answer.into_body()).await?;
            client::parse(&body.to_bytes())
        });
        self.explain(answer)
    }

    /// Call `each` for every line of an answer.
    pub(super) fn lines<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        each: impl FnMut(T),
    ) -> Result<(), CliError> {
        let answer = self.runtime.block_on(self.connection.lines(method, path, each));
        self.explain(answer)
    }
}

impl Drop for Relay {
    /// The process that serves us ends with the connection; it is done when it has ended.
    fn drop(&mut self) {
        self.connection = Connection::Socket(PathBuf::new());
        // The connection's task drops the socket when it is polled.
        self.runtime.block_on(async { tokio::task::yield_now().await });
        if let Some(mut helper) = self.helper.take() {
            let _ = helper.wait();
        }
    }
}

/// Serve what is stored to the process at the other end of standard input, and end with it.
pub(super) fn serve_storage(config_file: &Path, repairs: bool) -> Result<(), CliError> {
    let config = load::read_file(config_file).map_err(CliError::Config)?.config;
    let io = |source| CliError::Io { path: "standard input".into(), source };
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(io)?);
    stream.set_nonblocking(true).map_err(io)?;
    runtime()?.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream).map_err(io)?;
        let stored = open(config, repairs).await?;
        let journal = stored.journal.clone();
        let service = TowerToHyperService::new(router(stored));
        let ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        // Who asks has gone, in the midst of it or not: what was done is left as a clean stop leaves it.
        drop(ended);
        journal.checkpoint().await?;
        Ok(())
    })
}

/// Open all that is stored, as a relay does.
async fn open(mut config: Config, repairs: bool) -> Result<Stored, CliError> {
    let metrics = Metrics::new()?.storage;
    // Nobody else writes: there is nothing to wait for.
    config.storage.commit_interval = Time(Duration::ZERO);
    let opened = match repairs {
        true => Journal::open(&config.storage, metrics.clone()),
        false => Journal::open_as_it_is(&config.storage, metrics.clone()),
    };
    let journal = Arc::new(opened.map_err(|error| match error {
        StorageError::Corrupt(_) => CliError::BrokenJournal(error),
        _ => CliError::Storage(error),
    })?);
    let path = config.bundles.path.clone();
    let health = Arc::new(Health::default());
    let uploads = store::open(&config.bundles, health.clone()).await;
    let uploads = uploads.map_err(|source| CliError::Io { path: path.clone(), source })?.store;
    let mut served = None;
    if !config.bundle.path.as_os_str().is_empty() {
        match ServedBundle::load(&config.bundle.path, MaxInflated::of(&config)) {
            Ok(bundle) => served = Some(Arc::new(bundle)),
            Err(error) => eprintln!("the served bundle is left out: {error}"),
        }
    }
    let served = watch::channel(served).1;
    let config = watch::channel(Arc::new(config)).1;
    let space = Arc::new(Space::new(config.clone(), health.clone(), metrics.clone()));
    let looking = space.clone();
    tokio::spawn(async move { looking.run().await });
    let documents =
        Documents::new(journal.clone(), served.clone(), health, space, config.clone(), metrics);
    let documents = Arc::new(documents);
    Ok(Stored { journal, documents, uploads, served, rooms: None, config })
}
