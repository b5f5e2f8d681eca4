//! The same sync work on this relay and on automerge-repo's own server, one after the other: the
//! processor time and memory of each server's process, and their ratio. Ends with a table of what a
//! machine needs.
//!
//! `cargo bench --bench relay` runs everything but `growth`, `several` and `--yjs`; `-- fanout
//! idle` some, `-- --relay-only` without Node.js.
#![expect(clippy::expect_used, clippy::panic, reason = "a failed expectation ends the benchmark")]
#![expect(clippy::print_stdout, reason = "the tables are what it is for")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures for people"
)]

#[path = "../common/client.rs"]
#[allow(dead_code, reason = "a test uses more of it")]
mod client;
mod cluster;
mod floor;
mod growth;
#[path = "../common/postgres.rs"]
#[allow(dead_code, reason = "a test uses more of it")]
mod postgres;
mod quiet;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "a test uses more of it")]
mod relay;
mod server;
mod several;
mod units;
mod yjs;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, mpsc, watch};
use tonk_relay::base::document_id::DocumentId;

use client::{Client, Event, get, now, put, random_id, typed};
use server::{Kind, Server, Usage};

/// Figures by name. For each, smaller is better.
type Figures = BTreeMap<&'static str, f64>;

const EDIT: &str = "us of CPU a delivered edit";
/// What automerge's own functions take for the same.
const FLOOR: &str = "us of CPU a delivered edit, automerge alone";
const P99: &str = "p99 in ms";
const JOIN: &str = "us of CPU a join";
const LINK: &str = "KiB a user's document";
const CONNECTION: &str = "KiB a connection and its document";
const CONNECT: &str = "us of CPU a connection and its document";

/// Which users follow which documents.
struct Crowd {
    documents: usize,
    users: usize,
    /// Whether every user follows every document. Otherwise the nth user follows only the nth
    /// document.
    all: bool,
    /// Edits per second and document.
    rate: f64,
    edits: u64,
    /// Letters that were typed into each document before the start.
    history: usize,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let relay_only = arguments.iter().any(|argument| argument == "--relay-only");
    let wanted = |name: &str| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
        names.peek().is_none() || names.any(|wanted| wanted == name)
    };
    if arguments.iter().any(|argument| argument == "growth") {
        return growth::run().await;
    }
    if arguments.iter().any(|argument| argument == "several") {
        return several::run(&arguments).await;
    }
    if arguments.iter().any(|argument| argument == "--yjs") {
        return yjs::run().await;
    }
    let crowd = |documents, users, all, rate, edits, history| Crowd {
        documents,
        users,
        all,
        rate,
        edits,
        history,
    };
    let crowds = [
        ("fanout", crowd(1, 100, true, 5.0, 25, 0)),
        ("hot", crowd(1, 400, true, 2.0, 10, 0)),
        ("pairs", crowd(300, 300, false, 1.0, 6, 0)),
        ("crowd", crowd(29, 100, true, 0.2, 2, 200)),
        ("history", crowd(1, 1, true, 20.0, 120, 60_000)),
    ];
    let mut relay_figures = HashMap::new();
    println!("{:10} {:44} {:>10} {:>10} {:>8}", "", "", "relay", "JavaScript", "ratio");
    for name in
        ["fanout", "hot", "pairs", "crowd", "history", "idle", "links", "quiet", "presence", "big"]
    {
        if !wanted(name) {
            continue;
        }
        let mut columns = Vec::new();
        // The JavaScript server would take a quarter of an hour for the documents of `quiet`, and most
        // of a minute of processor time for those of `links`.
        let kinds: &[Kind] = if relay_only || matches!(name, "quiet" | "links") {
            &[Kind::Relay]
        } else {
            &[Kind::Relay, Kind::JavaScript]
        };
        for kind in kinds {
            let server = Server::start(*kind);
            let figures = match name {
                "idle" => quiet::idle(&server, 1000).await,
                "links" => quiet::links(&server).await,
                "quiet" => quiet::documents(&server).await,
                "presence" => presence(&server).await,
                "big" => big(&server).await,
                _ => {
                    let (_, crowd) =
                        crowds.iter().find(|(crowd, _)| *crowd == name).expect("one of them");
                    let mut figures = edits(&server, crowd).await;
                    if *kind == Kind::Relay {
                        let readers = if crowd.all { crowd.users } else { 1 };
                        figures.insert(FLOOR, floor::micros_an_edit(readers, crowd.history));
                    }
                    figures
                }
            };
            columns.push(figures);
        }
        print_rows(name, &columns);
        if let Some(figures) = columns.into_iter().next() {
            relay_figures.insert(name, figures);
        }
    }
    print_sizes(&relay_figures);
}

fn print_rows(name: &str, columns: &[Figures]) {
    for (figure, relay) in columns.first().into_iter().flatten() {
        match columns.get(1).and_then(|javascript| javascript.get(figure)) {
            Some(other) => println!(
                "{name:10} {figure:44} {relay:10.1} {other:10.1} {:7.1}x",
                other / relay.max(0.001)
            ),
            None => println!("{name:10} {figure:44} {relay:10.1}"),
        }
    }
}

fn micros(from: Usage, to: Usage, of: f64) -> f64 {
    (to.cpu_seconds - from.cpu_seconds) * 1e6 / of
}

/// Latencies of all clients, in microseconds.
#[derive(Clone, Default)]
struct Latencies(Arc<Mutex<Vec<u64>>>);

impl Latencies {
    fn note(&self, since: u64) {
        self.0.lock().expect("no panic").push(now().saturating_sub(since));
    }

    fn count(&self) -> usize {
        self.0.lock().expect("no panic").len()
    }

    fn percentile_ms(&self, percent: usize) -> f64 {
        let mut all = self.0.lock().expect("no panic").clone();
        all.sort_unstable();
        all.get(all.len() * percent / 100).map_or(f64::NAN, |micros| *micros as f64 / 1000.0)
    }

    fn p99_ms(&self) -> f64 {
        self.percentile_ms(99)
    }

    /// Notes when a cursor was sent.
    fn note_cursor(&self, payload: &[u8]) {
        let at = payload.get(1..).and_then(|at| <[u8; 8]>::try_from(at).ok());
        self.note(at.map_or(0, u64::from_be_bytes));
    }
}

/// Writers edit, and all other clients follow. All clients read continuously, because those that do
/// not answer pings are disconnected.
async fn edits(server: &Server, crowd: &Crowd) -> Figures {
    let (go, _) = watch::channel(false);
    let last = 1 + crowd.edits;
    let (mut ids, mut tasks) = (Vec::new(), Vec::new());
    for nth in 0..crowd.documents {
        let (id, mut writer) = (random_id(), Client::connect(&server.url).await);
        let mut doc = typed(crowd.history);
        put(&mut doc, 1);
        writer.share(id, doc).await;
        ids.push(id);
        let gap = Duration::from_secs_f64(1.0 / crowd.rate);
        // Writers take turns.
        let turn = gap.mul_f64(nth as f64 / crowd.documents as f64);
        tasks.push(tokio::spawn(write(writer, id, go.subscribe(), turn, gap, last)));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    let before = server.usage();
    let latencies = Latencies::default();
    let (joined, mut joins) = mpsc::channel(16);
    let places = Arc::new(Semaphore::new(16));
    let mut links = 0;
    for n in 0..crowd.users {
        let follows: Vec<DocumentId> =
            if crowd.all { ids.clone() } else { ids.get(n).copied().into_iter().collect() };
        links += follows.len();
        let (url, latencies) = (server.url.clone(), latencies.clone());
        let (joined, places) = (joined.clone(), places.clone());
        tasks.push(tokio::spawn(async move {
            let place = places.acquire().await.expect("open");
            let mut client = Client::connect(&url).await;
            client.fetch(&follows).await;
            drop(place);
            joined.send(()).await.expect("somebody waits");
            follow(client, &follows, last, &latencies).await
        }));
    }
    for _ in 0..crowd.users {
        joins.recv().await.expect("everybody joins");
    }
    let start = server.usage();
    go.send_replace(true);
    // Kept until all have ended, so that disconnecting is not measured.
    let mut clients = Vec::new();
    for task in tasks {
        clients.push(task.await.expect("ends well"));
    }
    let end = server.usage();
    let mut figures = Figures::from([
        (EDIT, micros(start, end, latencies.count() as f64)),
        (P99, latencies.p99_ms()),
        (JOIN, micros(before, start, links as f64)),
    ]);
    if crowd.users > 1 {
        // The cost of one more user shows with many of them.
        figures.insert(LINK, (start.resident_kib - before.resident_kib) / links as f64);
    }
    figures
}

/// Edits a document from `turn` after the start on, until edit `last` has reached the server.
async fn write(
    mut writer: Client,
    id: DocumentId,
    mut go: watch::Receiver<bool>,
    turn: Duration,
    gap: Duration,
    last: u64,
) -> Client {
    loop {
        tokio::select! {
            _ = go.wait_for(|go| *go) => break,
            _ = writer.step() => {}
        }
    }
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + turn, gap);
    let mut n = 1;
    while n < last {
        tokio::select! {
            _ = tick.tick() => {
                n += 1;
                put(writer.document(id), n);
                writer.push(id, false).await;
            }
            _ = writer.step() => {}
        }
    }
    while !writer.in_sync(id) {
        writer.step().await;
    }
    writer
}

/// Reads until edit `last` of every document has arrived.
async fn follow(
    mut client: Client,
    follows: &[DocumentId],
    last: u64,
    latencies: &Latencies,
) -> Client {
    let mut seen: HashMap<DocumentId, u64> = follows.iter().map(|id| (*id, 1)).collect();
    while seen.values().any(|seen| *seen < last) {
        if let Event::Changed(id) = client.step().await {
            let doc = client.document(id);
            let n = get(doc, "n");
            if seen.insert(id, n).is_some_and(|seen| n > seen) {
                latencies.note(get(doc, "at"));
            }
        }
    }
    client
}

/// Shares a new document of a few bytes.
async fn share_small(client: &mut Client) -> DocumentId {
    let (id, mut doc) = (random_id(), automerge::Automerge::new());
    put(&mut doc, 1);
    client.share(id, doc).await;
    id
}

/// A cursor that says when it was sent.
fn cursor() -> Vec<u8> {
    // A CBOR byte string of eight bytes: automerge-repo forwards only CBOR.
    let mut payload = vec![0x48];
    payload.extend(now().to_be_bytes());
    payload
}

/// Every client sends its cursor to every other client.
async fn presence(server: &Server) -> Figures {
    const USERS: usize = 50;
    const EACH: u64 = 25;
    let mut first = Client::connect(&server.url).await;
    let id = share_small(&mut first).await;
    let mut clients = vec![first];
    for _ in 1..USERS {
        let mut client = Client::connect(&server.url).await;
        client.fetch(&[id]).await;
        clients.push(client);
    }
    let latencies = Latencies::default();
    let start = server.usage();
    let mut tasks = Vec::new();
    for (n, mut client) in clients.into_iter().enumerate() {
        let latencies = latencies.clone();
        tasks.push(tokio::spawn(async move {
            let wanted = EACH * (USERS as u64 - 1);
            let (mut sent, mut heard) = (0, 0);
            let first = tokio::time::Instant::now() + Duration::from_millis(4 * n as u64);
            let mut tick = tokio::time::interval_at(first, Duration::from_millis(200));
            let end = Instant::now() + Duration::from_secs(30);
            while (sent < EACH || heard < wanted) && Instant::now() < end {
                tokio::select! {
                    _ = tick.tick(), if sent < EACH => {
                        sent += 1;
                        client.send_presence(id, sent, &cursor()).await;
                    }
                    event = client.step() => if let Event::Presence(payload) = event {
                        heard += 1;
                        latencies.note_cursor(&payload);
                    }
                }
            }
            client
        }));
    }
    for task in tasks {
        task.await.expect("ends well");
    }
    let end = server.usage();
    Figures::from([
        ("us of CPU a delivered cursor", micros(start, end, latencies.count() as f64)),
        (P99, latencies.p99_ms()),
    ])
}

/// Sends and fetches one document with a long history.
async fn big(server: &Server) -> Figures {
    let (id, doc) = (random_id(), typed(100_000));
    let start = server.usage();
    let mut writer = Client::connect(&server.url).await;
    writer.share(id, doc).await;
    let pushed = server.usage();
    let mut reader = Client::connect(&server.url).await;
    reader.fetch(&[id]).await;
    let fetched = server.usage();
    Figures::from([
        ("ms of CPU to push 100,000 edits", micros(start, pushed, 1000.0)),
        ("ms of CPU to fetch them", micros(pushed, fetched, 1000.0)),
        ("MiB resident then", fetched.resident_kib / 1024.0),
    ])
}

/// Prints what a machine needs, from the figures of this run.
fn print_sizes(figures: &HashMap<&str, Figures>) {
    let figure = |scenario: &str, name: &str| figures.get(scenario)?.get(name).copied();
    let (Some(connection), Some(link), Some(edit), Some(stored)) = (
        figure("idle", CONNECTION),
        figure("crowd", LINK),
        figure("crowd", EDIT),
        figure("pairs", EDIT),
    ) else {
        return;
    };
    println!(
        "\n\
         For N users who each follow the same M documents of a few KiB, and each make an edit \
         every ten seconds:\n{:>8} {:>10} {:>12} {:>16} {:>12}",
        "users", "documents", "memory, MiB", "CPU, % of a core", "open files"
    );
    for users in [100.0, 1_000.0, 10_000.0] {
        for documents in [10.0, 30.0, 100.0] {
            let memory = 16.0 + (users * (connection + documents * link)) / 1024.0;
            // An edit is stored once, and sent to all clients of its document.
            let cpu = users / 10.0 * (stored + users * edit) / 1e4;
            println!("{users:8} {documents:10} {memory:12.0} {cpu:16.0} {:12.0}", users + 500.0);
        }
    }
    println!(
        "Disk: what the documents take as automerge saves them, at most twice that and 4 KiB for \
         each chunk."
    );
}
