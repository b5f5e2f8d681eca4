//! How commands reach a relay: through the admin socket of the running one. If none runs, a helper
//! process that runs as the owner of the files serves the same routes over a socket pair
//! (`serve_storage`).

use std::{
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::Runtime;

use super::{
    arguments::CONFIG_FILE,
    error::{CliError, io_error},
    runtime::runtime,
};
use crate::{
    admin::{
        client::{self, AdminError, Connection},
        storage::documents::DocumentContent,
    },
    base::{document_id::DocumentId, folder, regular_file},
    config::{AdminAddress, Config, load},
};

/// Arguments that name a relay.
#[derive(Debug, Args)]
pub(super) struct RelayArguments {
    /// The config file of the relay, which names its admin socket
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// Connect to this admin socket instead of the one in the config file
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Arguments of the commands about stored data.
#[derive(Debug, Args)]
pub(super) struct StorageArguments {
    #[command(flatten)]
    pub(super) relay: RelayArguments,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A connection to the running relay, or to a helper process that serves its stored data.
pub(super) struct Relay {
    runtime: Runtime,
    connection: Connection,
    helper: Option<Child>,
}

fn admin_socket(config: &Config) -> Option<PathBuf> {
    config.admin.listen.iter().find_map(|address| match address {
        AdminAddress::Unix(path) => Some(path.clone()),
        AdminAddress::Tcp(_) => None,
    })
}

impl RelayArguments {
    /// Those of a command that only takes the config file.
    pub(super) fn of(config: PathBuf) -> Self {
        Self { config, socket: None }
    }

    fn read_config(&self) -> Result<Config, CliError> {
        Ok(load::read_file(&self.config).map_err(CliError::Config)?.config)
    }

    /// The folders of documents and bundles; none if the config is not used or cannot be read.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let config = if self.socket.is_some() { None } else { self.read_config().ok() };
        config.map_or_else(Vec::new, |config| vec![config.storage.path, config.bundles.path])
    }

    /// Connects to a relay whose config file has become invalid since it started. Fails with
    /// `fault` if none runs.
    fn running_despite(&self, fault: CliError) -> Result<Relay, CliError> {
        let text = regular_file::read_text(&self.config, load::MAX_FILE).ok();
        let socket = text.and_then(|text| load::admin_socket(&self.config, &text));
        let Some(socket) = socket else { return Err(fault) };
        let mut relay = Relay::at(socket)?;
        if relay.fetch(Method::GET, "/livez", Bytes::new()).is_err() {
            return Err(fault);
        }
        eprintln!(
            "the config file has a fault; the relay keeps running with its previous config:\n\
             {fault}"
        );
        Ok(relay)
    }

    /// Connects to the running relay.
    pub(super) fn running(&self) -> Result<Relay, CliError> {
        if let Some(socket) = &self.socket {
            return Relay::at(socket.clone());
        }
        match self.read_config() {
            Ok(config) => Relay::at(
                admin_socket(&config)
                    .ok_or_else(|| CliError::NoSocket(self.config.display().to_string()))?,
            ),
            Err(fault) => self.running_despite(fault),
        }
    }

    /// Connects to what is stored, whether or not the relay runs. A relay must run if `--socket`
    /// was given.
    pub(super) fn stored(&self) -> Result<Relay, CliError> {
        self.stored_with(false)
    }

    /// Like `stored`, for commands that may make the storage folder and move a broken journal into
    /// quarantine.
    pub(super) fn stored_or_new(&self) -> Result<Relay, CliError> {
        self.stored_with(true)
    }

    fn stored_with(&self, repairs: bool) -> Result<Relay, CliError> {
        if self.socket.is_some() {
            return self.running();
        }
        let config = match self.read_config() {
            Ok(config) => config,
            Err(fault) => return self.running_despite(fault),
        };
        if let Some(socket) = admin_socket(&config) {
            let mut relay = Relay::at(socket)?;
            match relay.fetch(Method::GET, "/livez", Bytes::new()) {
                Err(CliError::Admin(AdminError::NotRunning { .. })) => {}
                Err(CliError::Admin(AdminError::Refused(_))) | Ok(_) => return Ok(relay),
                Err(error) => return Err(error),
            }
        }
        self.start_helper(&config.storage.path, repairs)
    }

    /// Starts a helper process that serves what is stored. It runs as the owner of `folder`: the
    /// relay could not read files that root wrote there.
    fn start_helper(&self, folder: &Path, repairs: bool) -> Result<Relay, CliError> {
        let runtime = runtime()?;
        let (ours, theirs) = UnixStream::pair().map_err(io_error(folder))?;
        // The path of the executable may contain folders that only root can enter.
        let mut command = Command::new("/proc/self/exe");
        command.args(["serve-storage".as_ref(), "--config".as_ref(), self.config.as_os_str()]);
        if repairs {
            command.arg("--repairs");
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // A folder that does not exist yet will belong to the owner of its parent folder.
        if rustix::process::geteuid().is_root() {
            let (user, group) = folder::owner(folder).map_err(io_error(folder))?;
            if user != 0 {
                command.uid(user).gid(group);
            }
        }
        let helper = command.spawn().map_err(io_error(folder))?;
        drop(command);
        ours.set_nonblocking(true).map_err(io_error(folder))?;
        let connection = runtime.block_on(async {
            let ours = tokio::net::UnixStream::from_std(ours).map_err(io_error(folder))?;
            Ok::<_, CliError>(Connection::over(ours).await?)
        })?;
        Ok(Relay { runtime, connection, helper: Some(helper) })
    }
}

impl Relay {
    fn at(socket: PathBuf) -> Result<Self, CliError> {
        Ok(Self { runtime: runtime()?, connection: Connection::at(socket), helper: None })
    }

    /// Converts an error of the connection. If the helper process failed, it has printed why.
    fn explain<T>(&mut self, result: Result<T, AdminError>) -> Result<T, CliError> {
        match (result, &mut self.helper) {
            (Err(AdminError::Http(error)), Some(helper)) => match helper.wait() {
                Ok(status) if !status.success() => {
                    let code = status.code().and_then(|code| u8::try_from(code).ok());
                    Err(CliError::Reported(code.unwrap_or(1)))
                }
                _ => Err(AdminError::Http(error).into()),
            },
            (result, _) => Ok(result?),
        }
    }

    /// Sends a request and returns the whole answer.
    pub(super) fn fetch(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, CliError> {
        let answer = self.runtime.block_on(self.connection.fetch(method, path, body));
        self.explain(answer)
    }

    /// Sends a request without a body, and returns the JSON answer.
    pub(super) fn request<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
    ) -> Result<T, CliError> {
        Ok(client::parse(&self.fetch(method, path, Bytes::new())?)?)
    }

    /// Sends JSON, and returns the JSON answer.
    pub(super) fn send<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(body).unwrap_or_default();
        Ok(client::parse(&self.fetch(method, path, body.into())?)?)
    }

    /// Like `request`, but also returns the answer of a request that was refused.
    pub(super) fn request_any_status<T: DeserializeOwned>(
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

    /// Calls `each` for every line of an answer.
    pub(super) fn lines<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        each: impl FnMut(T),
    ) -> Result<(), CliError> {
        let answer = self.runtime.block_on(self.connection.lines(method, path, each));
        self.explain(answer)
    }

    /// Reads a document; none if nothing of it is stored. With `with_bundle`, this includes what
    /// the served bundle has of it.
    pub(super) fn content(
        &mut self,
        document: DocumentId,
        with_bundle: bool,
    ) -> Result<Option<DocumentContent>, CliError> {
        let path = format!("/documents/{document}/content?with_bundle={with_bundle}");
        match self.fetch(Method::GET, &path, Bytes::new()) {
            Ok(content) => {
                let content = minicbor::decode(&content);
                Ok(Some(content.map_err(|error| AdminError::Answer(error.to_string()))?))
            }
            Err(CliError::Admin(AdminError::Missing(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Relay {
    /// Closes the connection, which ends the helper process, and waits until its work is durable.
    fn drop(&mut self) {
        self.connection = Connection::at(PathBuf::new());
        // The task of the connection closes the socket when it is polled.
        self.runtime.block_on(async { tokio::task::yield_now().await });
        if let Some(mut helper) = self.helper.take() {
            let _ = helper.wait();
        }
    }
}
