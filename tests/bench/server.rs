//! The servers that are compared, as separate processes, and their resource usage.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// Each server uses another port, because connections of the previous one may still be open.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// The kind of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// This relay.
    Relay,
    /// automerge-repo's own sync server, as `server.mjs` sets it up.
    JavaScript,
    /// y-websocket's server of Yjs.
    YWebsocket,
    /// Another server of Yjs.
    Hocuspocus,
}

/// A running server, with a folder that is deleted with it.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    _folder: tempfile::TempDir,
}

/// Processor time and memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// The process that started it.
    pub(crate) parent: u32,
    pub(crate) cpu_seconds: f64,
    /// Processor time of processes that it has started and that have ended.
    pub(crate) ended_children_seconds: f64,
    pub(crate) resident_kib: f64,
}

impl Server {
    /// Starts a server, and waits until it listens.
    pub(crate) fn start(kind: Kind) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Outside the kernel's range of ephemeral ports: a client that connects to one of those may
        // reach itself.
        let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
        let first = NEXT_PORT.fetch_add(10, Ordering::Relaxed);
        let port = (first..30_000).find(is_free).expect("a port");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let of_yjs = |name: &str| {
            let mut command = Command::new("node");
            command
                .arg(manifest.join("tests/bench/yjs/server.mjs"))
                .args([name, &port.to_string()]);
            command
        };
        let mut command = match kind {
            Kind::Relay => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
                command.args(["demo", "--listen", &format!("127.0.0.1:{port}"), "--folder"]);
                command
            }
            Kind::JavaScript => {
                let mut command = Command::new("node");
                command.arg(manifest.join("tests/js/server.mjs")).arg(port.to_string());
                command
            }
            Kind::YWebsocket => of_yjs("y-websocket"),
            Kind::Hocuspocus => of_yjs("hocuspocus"),
        };
        command.arg(folder.path().join("data"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child
            .expect("it starts; other servers need Node.js and the npm install in development.md");
        let start = Instant::now();
        while ureq::get(format!("http://127.0.0.1:{port}/")).call().is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "{kind:?} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, url: format!("ws://127.0.0.1:{port}"), _folder: folder }
    }

    /// The resources that it has used so far.
    pub(crate) fn usage(&self) -> Usage {
        usage(self.child.id())
    }
}

/// The resources that a process has used so far (`proc(5)`; a tick is a hundredth of a second).
pub(crate) fn usage(pid: u32) -> Usage {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok());
    let stat = read("stat");
    // The name may have spaces.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |nth: usize| fields.get(nth).and_then(|field| field.parse::<u32>().ok());
    let ticks = |nth| field(nth).map_or(0.0, f64::from);
    Usage {
        parent: field(1).unwrap_or(0),
        cpu_seconds: (ticks(11) + ticks(12)) / 100.0,
        ended_children_seconds: (ticks(13) + ticks(14)) / 100.0,
        resident_kib: resident.unwrap_or(f64::NAN),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
