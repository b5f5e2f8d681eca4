//! The real relay, for tests in Rust.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::JoinHandle,
};

/// A relay, with a folder that is deleted with it.
pub(crate) struct Relay {
    /// The process.
    pub(crate) child: Child,
    /// The port on which it listens.
    pub(crate) port: u16,
    log: Option<JoinHandle<Vec<String>>>,
    _folder: Option<tempfile::TempDir>,
}

impl Relay {
    /// Starts a relay with these variables in its environment.
    pub(crate) fn start(environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
        command.args(["demo", "--listen", "127.0.0.1:0", "--folder"]);
        command.arg(folder.path().join("data")).envs(environment.iter().copied());
        Self::spawn(command, Some(folder))
    }

    /// Starts a relay with a config file.
    pub(crate) fn start_with(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
        command.arg("--config").arg(config);
        Self::spawn(command, None)
    }

    /// Starts a relay by `command`.
    pub(crate) fn spawn(mut command: Command, folder: Option<tempfile::TempDir>) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        let log = BufReader::new(child.stderr.take().expect("its log"));
        let mut lines = log.lines().map(|line| line.expect("a line"));
        let line = lines.find(|line| line.contains("listening on")).expect("it says where");
        let port = line.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        // The rest of the log must be read, or the relay would block on a full pipe.
        let log = Some(std::thread::spawn(move || lines.collect()));
        Self { child, port, log, _folder: folder }
    }

    /// Waits for the end of the process. Returns its exit status, and its log since it listened.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().expect("has ended");
        let log = self.log.take().expect("its log");
        (status, log.join().expect("lines"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
