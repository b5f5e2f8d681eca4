//! What single steps of several relays cost: `cargo bench --bench relay -- several units`. Each
//! line of the output is a load, with what it did and what it took. `several-growth.mjs` works out
//! from them what a commit, a row, a notification and a look cost, and what larger groups need:
//! `cargo bench --bench relay -- several units | node tests/bench/several-growth.mjs`.

use std::time::Instant;

use crate::{
    cluster::{Cluster, Counts},
    several::{Load, PRESENCE, REST, TOGETHER, edits, presence},
};

/// One document, so that each commit has one row.
const SINGLE_ROWS: Load =
    Load { apps: 1, documents: 1, users: 0, rate: 20.0, edits: 200, history: 0 };
/// Many documents, so that each commit has many rows.
const MANY_ROWS: Load =
    Load { apps: 1, documents: 100, users: 0, rate: 10.0, edits: 100, history: 0 };

/// How many relays each of the groups has, and whether its loads are to be predicted from those of
/// the others.
const GROUPS: [(usize, bool); 4] = [(1, false), (3, false), (6, false), (10, true)];

pub(crate) async fn run() {
    let columns = Counts::NAMES.join("\t");
    println!(
        "relays\tload\tseconds\t{columns}\tlog_bytes\tdatabase_seconds\twriter_seconds\tother_seconds"
    );
    for (relays, is_check) in GROUPS {
        let cluster = Cluster::several(relays);
        // What the start has left to do, and the look that finds the chunks of other documents.
        tokio::time::sleep(REST).await;
        let name = |load: &str| if is_check { format!("check-{load}") } else { load.to_owned() };
        measured(&cluster, relays, "idle", async { tokio::time::sleep(4 * REST).await }).await;
        measured(&cluster, relays, &name("single"), async {
            edits(&cluster, &SINGLE_ROWS, TOGETHER).await;
        })
        .await;
        measured(&cluster, relays, &name("many"), async {
            edits(&cluster, &MANY_ROWS, TOGETHER).await;
        })
        .await;
        if relays > 1 {
            measured(&cluster, relays, PRESENCE, async {
                presence(&cluster).await;
            })
            .await;
        }
    }
}

/// Prints what some work did and took.
async fn measured(cluster: &Cluster, relays: usize, load: &str, work: impl Future<Output = ()>) {
    let (start, cpu, counts) = (Instant::now(), cluster.cpu(), cluster.counts());
    let log = cluster.log_bytes();
    work.await;
    let (cpu, done) = (cluster.cpu().since(&cpu), cluster.counts().since(&counts));
    let log = cluster.log_bytes() - log;
    let seconds = start.elapsed().as_secs_f64();
    let done = done.0.map(|count| format!("{count:.0}")).join("\t");
    let writer = cpu.relays.first().copied().unwrap_or(0.0);
    let others = (cpu.total() - cpu.database - writer) / (relays.max(2) - 1) as f64;
    let database = cpu.database;
    println!(
        "{relays}\t{load}\t{seconds:.1}\t{done}\t{log:.0}\t{database:.3}\t{writer:.3}\t{others:.3}"
    );
}
