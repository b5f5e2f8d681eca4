//! Relays that share a database, or one with a local folder, and what they cost.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{postgres, relay::Relay, server::usage};

/// The longest time until relays are ready and know each other.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How many chunks of other documents the database has.
const OTHER_CHUNKS: u32 = 100_000;

/// Relays, and the database that they share. A single relay has a local folder instead.
pub(crate) struct Cluster {
    relays: Vec<Relay>,
    database: Option<postgres::Server>,
    _folder: tempfile::TempDir,
}

/// What all relays together have done with the database.
pub(crate) struct Counts(pub(crate) [f64; Counts::NAMES.len()]);

impl Counts {
    pub(crate) const NAMES: [&str; 6] =
        ["commits", "chunks", "hints", "messages", "looks", "found_rows"];
    const METRICS: [&str; 8] = [
        "tonk_relay_storage_commits_total",
        "tonk_relay_database_chunks_total",
        "tonk_relay_cluster_hints_total{event=\"sent\"}",
        "tonk_relay_cluster_messages_total{event=\"sent\"}",
        "tonk_relay_cluster_looks_total{cause=\"hint\"}",
        "tonk_relay_cluster_rows_total{cause=\"hint\"}",
        "tonk_relay_cluster_looks_total{cause=\"poll\"}",
        "tonk_relay_cluster_rows_total{cause=\"poll\"}",
    ];

    /// What was done since an earlier time.
    pub(crate) fn since(self, earlier: &Self) -> Self {
        let mut done = self.0;
        done.iter_mut().zip(earlier.0).for_each(|(now, then)| *now -= then);
        Self(done)
    }
}

/// Seconds of processor time.
pub(crate) struct Cpu {
    /// Of each relay.
    pub(crate) relays: Vec<f64>,
    /// Of all processes of the database's server.
    pub(crate) database: f64,
}

impl Cpu {
    pub(crate) fn busiest(&self) -> f64 {
        self.relays.iter().copied().fold(0.0, f64::max)
    }

    pub(crate) fn total(&self) -> f64 {
        self.relays.iter().sum::<f64>() + self.database
    }

    /// What was used since an earlier time.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let pairs = self.relays.iter().zip(&earlier.relays);
        Self {
            relays: pairs.map(|(now, then)| now - then).collect(),
            database: self.database - earlier.database,
        }
    }
}

impl Cluster {
    /// Starts a relay with a local folder.
    pub(crate) fn single() -> Self {
        Self::start(1, None)
    }

    /// Starts this many relays with a database.
    pub(crate) fn several(relays: usize) -> Self {
        let cluster = Self::start(relays, postgres::Server::start());
        let database = cluster.database.as_ref().expect("it needs PostgreSQL");
        // What is fast in a small table only would not show otherwise.
        database.query(&format!(
            "insert into tonk_relay.chunk (document, kind, name, data) \
             select decode(md5(n::text), 'hex'), 0, 'old', decode(repeat(md5(n::text), 8), 'hex') \
             from generate_series(1, {OTHER_CHUNKS}) as n"
        ));
        database.query("vacuum analyze");
        cluster
    }

    fn start(relays: usize, database: Option<postgres::Server>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let start = |n| {
            let file = folder.path().join(format!("{n}.toml"));
            let socket = database.as_ref().map(|database| database.folder.as_str());
            fs::write(&file, config(&folder.path().join(format!("{n}")), n, socket))
                .expect("a config");
            Relay::start_with(&file)
        };
        let relays = (0..relays).map(start).collect();
        let cluster = Self { relays, database, _folder: folder };
        cluster.wait_until_ready();
        cluster
    }

    fn wait_until_ready(&self) {
        let start = Instant::now();
        // A relay with a local folder does not count.
        let relays = if self.database.is_some() { self.relays.len() } else { 0 };
        let is_ready = |relay: usize| {
            ureq::get(self.http(relay, "readyz")).call().is_ok()
                && self.metric(relay, "tonk_relay_cluster_relays") >= relays as f64
        };
        for relay in 0..self.relays.len() {
            while !is_ready(relay) {
                assert!(start.elapsed() < READY_WITHIN, "relay {relay} is not ready");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn http(&self, relay: usize, path: &str) -> String {
        let port = self.relays.get(relay).map_or(0, |relay| relay.port);
        format!("http://127.0.0.1:{port}/{path}")
    }

    /// Where clients connect to the `nth` relay, counted around.
    pub(crate) fn url(&self, nth: usize) -> String {
        self.http(nth % self.relays.len(), "").replacen("http", "ws", 1)
    }

    /// The processor time that was used so far.
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu {
            relays: self.relays.iter().map(|relay| usage(relay.child.id()).cpu_seconds).collect(),
            database: self.database.as_ref().map_or(0.0, cpu_of_database),
        }
    }

    /// How many documents are in memory, in all relays together.
    pub(crate) fn live_copies(&self) -> f64 {
        let name = "tonk_relay_rooms{state=\"live\"}";
        (0..self.relays.len()).map(|relay| self.metric(relay, name)).sum()
    }

    /// How many bytes the database has written to its log so far.
    pub(crate) fn log_bytes(&self) -> f64 {
        let written = |database: &postgres::Server| {
            database.query("select pg_current_wal_lsn() - '0/0'::pg_lsn").trim().parse().ok()
        };
        self.database.as_ref().and_then(written).unwrap_or(0.0)
    }

    /// What the relays have done so far.
    pub(crate) fn counts(&self) -> Counts {
        let relays = 0..self.relays.len();
        let sum = |name| relays.clone().map(|relay| self.metric(relay, name)).sum::<f64>();
        let [commits, chunks, hints, messages, looks, found, polls, polled] =
            Counts::METRICS.map(sum);
        Counts([commits, chunks, hints, messages, looks + polls, found + polled])
    }

    /// The value of a metric; 0 if it does not exist yet.
    fn metric(&self, relay: usize, name: &str) -> f64 {
        let mut answer = ureq::get(self.http(relay, "metrics")).call().expect("metrics");
        let text = answer.body_mut().read_to_string().expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }
}

/// The config of the `nth` relay, with its folder below `at`, and with the database whose socket is
/// in a folder, if it has one.
fn config(at: &Path, nth: usize, socket: Option<&str>) -> String {
    let at = at.display();
    let mut text = format!(
        "[http]\nlisten = [\"127.0.0.1:0\"]\n\
         [admin]\nlisten = [\"unix:{at}.sock\"]\n\
         [storage]\npath = \"{at}/documents\"\nmin_free = \"1B\"\n\
         [sync]\npeer_id = \"relay-{nth}\"\n\
         [bundles]\npath = \"{at}/bundles\"\n"
    );
    if let Some(socket) = socket {
        text += "store = \"none\"\n";
        text += &format!("[cluster]\ndatabase = \"postgres://postgres@/postgres?host={socket}\"\n");
    }
    text
}

/// The processor time of a database server: of its first process, of that one's children, and of
/// children that have ended.
fn cpu_of_database(database: &postgres::Server) -> f64 {
    let file = format!("{}/data/postmaster.pid", database.folder);
    let text = fs::read_to_string(file).expect("it has started");
    let first: u32 = text.lines().next().and_then(|pid| pid.parse().ok()).expect("a process id");
    let children = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let usage = usage(pid);
        (usage.parent == first).then_some(usage.cpu_seconds)
    });
    let server = usage(first);
    children.sum::<f64>() + server.cpu_seconds + server.ended_children_seconds
}
