//! A PostgreSQL server, for tests of the program and of the store.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

/// The exit code of the script that starts the server, if PostgreSQL is not installed.
const NOT_INSTALLED: i32 = 77;

/// A running server with an empty database. It ends with this.
pub(crate) struct Server {
    /// The folder of its socket.
    pub(crate) folder: String,
    script: Child,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// Starts it, if PostgreSQL is installed.
    pub(crate) fn start() -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres-server");
        let mut script = Command::new(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script runs");
        let answers = BufReader::new(script.stdout.take().expect("it is piped"));
        let mut server = Self { folder: String::new(), script, answers };
        server.folder = server.answer();
        if server.folder.is_empty() {
            let ended = server.script.wait().expect("it ends");
            assert_eq!(ended.code(), Some(NOT_INSTALLED), "the server has not started");
            let is_needed = std::env::var_os("TONK_RELAY_POSTGRES").is_some();
            assert!(!is_needed, "PostgreSQL is not installed, and TONK_RELAY_POSTGRES is set");
            return None;
        }
        Some(server)
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("reads");
        line.trim().to_owned()
    }

    /// Kills it, like a crash, and starts it again.
    pub(crate) fn crash(&mut self) {
        for command in ["kill", "start"] {
            let input = self.script.stdin.as_mut().expect("it is piped");
            writeln!(input, "{command}").expect("is asked");
            assert_eq!(self.answer(), "done", "{command}");
        }
    }

    /// The first value that a statement returns.
    pub(crate) fn query(&self, statement: &str) -> String {
        let output = Command::new("psql")
            .args(["-h", &self.folder, "-U", "postgres", "-AtqXc", statement])
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{statement}: {output:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
