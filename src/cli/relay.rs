//! The way from a command to what is stored: the running relay's admin socket, or where none runs a process of
//! our own, as the owner of the files, which serves the same router over a socket pair.

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
        storage::documents::Content,
    },
    base::{document_id::DocumentId, folder, regular_file},
    config::{AdminAddress, Config, load},
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

/// Whose storage, and how the answer looks.
#[derive(Debug, Args)]
pub(super) struct StorageArguments {
    #[command(flatten)]
    pub(super) relay: RelayArguments,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
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
        let runtime = runtime()?;
        let (ours, theirs) = UnixStream::pair().map_err(io_error(folder))?;
        // Not by its path, which may lead through folders that are root's alone.
        let mut command = Command::new("/proc/self/exe");
        command.args(["serve-storage".as_ref(), "--config".as_ref(), self.config.as_os_str()]);
        if repairs {
            command.arg("--repairs");
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // A folder that is not there yet belongs to whoever has the one it will be in.
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

    /// All that can be read of a document; nothing if it is not there any more. `with_bundle`: also what the served
    /// bundle has of it.
    pub(super) fn content(
        &mut self,
        document: DocumentId,
        with_bundle: bool,
    ) -> Result<Option<Content>, CliError> {
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
    /// The process that serves us ends with the connection; it is done when it has ended.
    fn drop(&mut self) {
        self.connection = Connection::at(PathBuf::new());
        // The connection's task drops the socket when it is polled.
        self.runtime.block_on(async { tokio::task::yield_now().await });
        if let Some(mut helper) = self.helper.take() {
            let _ = helper.wait();
        }
    }
}
