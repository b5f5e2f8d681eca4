//! What three relays that share a PostgreSQL database cost, compared with a single relay that has a
//! local folder: `cargo bench --bench relay -- several`. Needs PostgreSQL, and takes five minutes;
//! `-- several fanout`, `crowd` or `latency` runs a part of it, and `-- several units` measures
//! single steps instead ([`units`]).
//!
//! Run it while the machine does nothing else: other work changes even the ratios by a third.

use std::time::Duration;

use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::{
    Latencies,
    client::{Client, Event, put, random_id, typed},
    cluster::{Cluster, Cpu},
    cursor, follow, share_small, units, write,
};

const RELAYS: usize = 3;
/// The default of `storage.commit_interval`.
const COMMIT_INTERVAL_MS: f64 = 20.0;
/// The time in which relays finish what users have caused. It is measured, too.
pub(crate) const REST: Duration = Duration::from_secs(3);
/// How many samples of each latency each pair of clients takes, and how often.
const SAMPLES: u64 = 60;
const PAIRS: usize = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// Which relay a client of an app connects to, by the numbers of both.
pub(crate) type Place = fn(usize, usize) -> usize;

/// One relay has everything.
const SINGLE: Place = |_, _| 0;
/// All clients of an app connect to the same relay.
pub(crate) const TOGETHER: Place = |app, _| app;
/// The clients of an app connect to all relays.
const SPREAD: Place = |app, client| app + client;

/// Apps, in each of which all users follow all documents.
pub(crate) struct Load {
    pub(crate) apps: usize,
    pub(crate) documents: usize,
    pub(crate) users: usize,
    /// Edits per second and document.
    pub(crate) rate: f64,
    pub(crate) edits: u64,
    /// Letters that were typed into each document before the start.
    pub(crate) history: usize,
}

/// One document with many readers.
const FANOUT: Load = Load { apps: 1, documents: 1, users: 300, rate: 4.0, edits: 120, history: 0 };
/// Many documents with several clients each.
const CROWD: Load = Load { apps: 15, documents: 4, users: 10, rate: 0.5, edits: 10, history: 200 };
/// The name of the load of [`presence`].
pub(crate) const PRESENCE: &str = "presence";
/// A writer and a reader, many times.
const LIGHT: Load =
    Load { apps: PAIRS, documents: 1, users: 1, rate: 2.0, edits: SAMPLES, history: 0 };

/// What edits cost.
pub(crate) struct Cost {
    cpu: Cpu,
    /// Copies of each document in memory, in all relays together.
    copies: f64,
    latencies: Latencies,
}

pub(crate) async fn run(arguments: &[String]) {
    if arguments.iter().any(|argument| argument == "units") {
        return units::run().await;
    }
    let wanted = |name| arguments.len() == 1 || arguments.iter().any(|argument| argument == name);
    println!("{:10} {:48} {:>8} {:>8}", "", "", "measured", "target");
    if wanted("fanout") {
        fanout().await;
    }
    if wanted("crowd") {
        crowd().await;
    }
    if wanted("latency") {
        latency().await;
    }
}

async fn fanout() {
    let single = edits(&Cluster::single(), &FANOUT, SINGLE).await;
    let several = edits(&Cluster::several(RELAYS), &FANOUT, SPREAD).await;
    print_busiest("fanout", &single.cpu, &several.cpu, 45.0);
    let (database, total) = (several.cpu.database, several.cpu.total());
    let detail = format!("{database:.2} s of {total:.2} s");
    print("fanout", "% of all CPU, database", database / total * 100.0, 15.0, &detail);
}

async fn crowd() {
    let single = edits(&Cluster::single(), &CROWD, SINGLE).await;
    let several = edits(&Cluster::several(RELAYS), &CROWD, TOGETHER).await;
    print_busiest("placed", &single.cpu, &several.cpu, 40.0);
    print("placed", "live copies a document", several.copies, 1.1, "");
    let several = edits(&Cluster::several(RELAYS), &CROWD, SPREAD).await;
    let (all, one) = (several.cpu.total(), single.cpu.total());
    let detail = format!(
        "{all:.2} s, {:.2} s of it the database, to {one:.2} s; {:.1} live copies a document",
        several.cpu.database, several.copies
    );
    print("spread", "times a single relay's CPU, relays and database", all / one, 2.2, &detail);
}

async fn latency() {
    let cluster = Cluster::several(RELAYS);
    let latencies = edits(&cluster, &LIGHT, SPREAD).await.latencies;
    print_latency("edit", &latencies, 50, COMMIT_INTERVAL_MS + 10.0);
    print_latency("edit", &latencies, 99, 100.0);
    print_latency("presence", &presence(&cluster).await, 50, 40.0);
}

fn print(scenario: &str, figure: &str, measured: f64, target: f64, detail: &str) {
    let verdict = if measured <= target { "met" } else { "missed" };
    println!("{scenario:10} {figure:48} {measured:8.2} {target:8.2} {verdict:8} {detail}");
}

fn print_busiest(scenario: &str, single: &Cpu, several: &Cpu, target: f64) {
    let (most, one) = (several.busiest(), single.busiest());
    let detail = format!(
        "{most:.2} s to {one:.2} s; relays {:.2?}, database {:.2} s",
        several.relays, several.database
    );
    let figure = "% of a single relay's CPU, busiest relay";
    print(scenario, figure, most / one * 100.0, target, &detail);
}

fn print_latency(scenario: &str, latencies: &Latencies, percent: usize, target: f64) {
    let figure = format!("p{percent} in ms, from relay to relay");
    let detail = format!("of {}", latencies.count());
    print(scenario, &figure, latencies.percentile_ms(percent), target, &detail);
}

/// Writers edit, and the users of their app follow.
pub(crate) async fn edits(cluster: &Cluster, load: &Load, place: Place) -> Cost {
    let (go, _) = watch::channel(false);
    let (last, latencies) = (1 + load.edits, Latencies::default());
    let gap = Duration::from_secs_f64(1.0 / load.rate);
    let documents = load.apps * load.documents;
    let mut tasks: Vec<JoinHandle<Client>> = Vec::new();
    for app in 0..load.apps {
        let mut ids = Vec::new();
        for nth in 0..load.documents {
            let mut doc = typed(load.history);
            put(&mut doc, 1);
            let (id, mut writer) =
                (random_id(), Client::connect(&cluster.url(place(app, nth))).await);
            writer.share(id, doc).await;
            // Writers take turns.
            let turn = gap.mul_f64((app * load.documents + nth) as f64 / documents as f64);
            tasks.push(tokio::spawn(write(writer, id, go.subscribe(), turn, gap, last)));
            ids.push(id);
        }
        for user in 1..=load.users {
            let mut client = Client::connect(&cluster.url(place(app, user))).await;
            client.fetch(&ids).await;
            let (ids, latencies) = (ids.clone(), latencies.clone());
            tasks.push(tokio::spawn(async move { follow(client, &ids, last, &latencies).await }));
        }
    }
    tokio::time::sleep(REST).await;
    let start = cluster.cpu();
    go.send_replace(true);
    // Kept until the end, so that disconnecting is not measured.
    let mut clients = Vec::new();
    for task in tasks {
        clients.push(task.await.expect("ends well"));
    }
    tokio::time::sleep(REST).await;
    let cpu = cluster.cpu().since(&start);
    Cost { cpu, copies: cluster.live_copies() / documents as f64, latencies }
}

/// Cursors that clients of one relay send to those of another.
pub(crate) async fn presence(cluster: &Cluster) -> Latencies {
    let latencies = Latencies::default();
    let mut tasks = Vec::new();
    for pair in 0..PAIRS {
        let mut sender = Client::connect(&cluster.url(SPREAD(pair, 0))).await;
        let id = share_small(&mut sender).await;
        let mut reader = Client::connect(&cluster.url(SPREAD(pair, 1))).await;
        reader.fetch(&[id]).await;
        let turn = PAUSE.mul_f64(pair as f64 / PAIRS as f64);
        let first = Instant::now() + REST + turn;
        tasks.push(tokio::spawn(async move {
            let mut tick = tokio::time::interval_at(first, PAUSE);
            let mut sent = 0;
            while sent < SAMPLES {
                tokio::select! {
                    _ = tick.tick() => {
                        sent += 1;
                        sender.send_presence(id, sent, &cursor()).await;
                    }
                    _ = sender.step() => {}
                }
            }
        }));
        let latencies = latencies.clone();
        tasks.push(tokio::spawn(async move {
            let mut heard = 0;
            while heard < SAMPLES {
                if let Event::Presence(payload) = reader.step().await {
                    heard += 1;
                    latencies.note_cursor(&payload);
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("ends well");
    }
    latencies
}
