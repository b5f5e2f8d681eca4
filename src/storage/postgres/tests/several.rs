//! Several relays on one database.

use std::{collections::HashSet, sync::Mutex};

use super::*;
use crate::{
    base::lock::lock,
    storage::{
        Put, Unknown,
        live::{Live, News},
        relay_message::RelayMessage,
    },
};

/// Live documents that remember what they hear.
#[derive(Default)]
pub(super) struct Rooms(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// The names of chunks, as often as they came.
    chunks: Vec<String>,
    /// Documents that are to be read.
    unread: HashSet<DocumentId>,
    marked: Vec<DocumentId>,
    resyncs: usize,
    lost: usize,
    messages: Vec<RelayMessage>,
}

impl Live for Arc<Rooms> {
    fn wants(&self, _document: DocumentId) -> bool {
        true
    }

    fn stored(&self, document: DocumentId, news: News) {
        let mut heard = lock(&self.0);
        match news {
            News::Chunks(stored) => heard.chunks.extend(stored.chunks.into_iter().map(name)),
            News::Unread => _ = heard.unread.insert(document),
        }
    }

    fn marked(&self, document: DocumentId) {
        lock(&self.0).marked.push(document);
    }

    fn resync(&self) {
        lock(&self.0).resyncs += 1;
    }

    fn lost(&self) {
        lock(&self.0).lost += 1;
    }

    fn heard(&self, message: RelayMessage) {
        lock(&self.0).messages.push(message);
    }
}

impl Rooms {
    /// Waits until something was heard.
    async fn until(&self, mut is_there: impl FnMut(&mut Heard) -> bool) {
        let waiting = async {
            while !is_there(&mut lock(&self.0)) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, waiting).await.expect("in time");
    }
}

fn name((key, _): (Key, Vec<u8>)) -> String {
    match key {
        Key::Chunk { name, .. } => name,
        Key::StorageId => String::new(),
    }
}

/// A relay, and its live documents.
struct Relay {
    store: Arc<PostgresStore>,
    rooms: Arc<Rooms>,
    _running: AbortOnDropHandle<()>,
}

async fn start(database: &TestDatabase) -> Relay {
    let store = Arc::new(connect(database).await.expect("opens"));
    let rooms = Arc::new(Rooms::default());
    let running = tokio::spawn({
        let (store, rooms) = (store.clone(), rooms.clone());
        async move { store.run(rooms, || None).await }
    });
    Relay { store, rooms, _running: AbortOnDropHandle::new(running) }
}

async fn two() -> Option<(TestDatabase, Relay, Relay)> {
    let database = test_database().await?;
    let (one, other) = (start(&database).await, start(&database).await);
    Some((database, one, other))
}

fn snapshot(name: &str) -> Key {
    Key::Chunk { document: DOCUMENT, kind: ChunkKind::Snapshot, name: name.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_stores_the_other_hears_once() {
    let Some((_database, one, other)) = two().await else { return };
    for n in 0..50 {
        let key = key(&format!("{n:02}"));
        one.store.put(&key, Bytes::from_static(b"x")).await.expect("is stored");
    }
    other.rooms.until(|heard| heard.chunks.len() >= 50).await;
    other.store.put(&key("mine"), Bytes::from_static(b"x")).await.expect("is stored");
    one.rooms.until(|heard| heard.chunks.contains(&"mine".to_owned())).await;
    let mut heard = std::mem::take(&mut lock(&other.rooms.0).chunks);
    heard.sort();
    let all: Vec<String> = (0..50).map(|n| format!("{n:02}")).collect();
    assert_eq!(heard, all, "nothing of its own, and nothing twice");
    assert_eq!(lock(&one.rooms.0).chunks, ["mine"]);
    // Large chunks and snapshots are read by the room.
    for key in [key("large"), snapshot("a")] {
        lock(&other.rooms.0).unread.clear();
        let size = if key == snapshot("a") { 1 } else { 2 << 20 };
        one.store.put(&key, vec![7; size].into()).await.expect("is stored");
        other.rooms.until(|heard| heard.unread.contains(&DOCUMENT)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_late_is_found_late() {
    let Some((database, _one, other)) = two().await else { return };
    let insert = |name: &str| {
        format!(
            "insert into tonk_relay.chunk (document, kind, name, data) \
             values (decode(repeat('01', 16), 'hex'), 1, '{name}', 'x')"
        )
    };
    let (slow, fast) = (database.client().await, database.client().await);
    for round in 0..5 {
        slow.batch_execute(&format!("begin; {}", insert(&format!("slow {round}"))))
            .await
            .expect("");
        fast.batch_execute(&insert(&format!("fast {round}"))).await.expect("inserts");
        other.rooms.until(|heard| heard.chunks.contains(&format!("fast {round}"))).await;
        slow.batch_execute("commit").await.expect("commits");
    }
    other.rooms.until(|heard| heard.chunks.len() >= 10).await;
    // One more look finds nothing again.
    fast.batch_execute(&insert("last")).await.expect("inserts");
    other.rooms.until(|heard| heard.chunks.contains(&"last".to_owned())).await;
    assert_eq!(lock(&other.rooms.0).chunks.len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_page_is_read_by_the_rooms() {
    let Some((database, _one, other)) = two().await else { return };
    let insert = "insert into tonk_relay.chunk (document, kind, name, data) \
                  select decode(repeat('01', 16), 'hex'), 1, n::text, 'x' \
                  from generate_series(1, 1000) as n";
    let before = lock(&other.rooms.0).resyncs;
    database.client().await.batch_execute(insert).await.expect("inserts");
    other.rooms.until(|heard| heard.resyncs > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_of_one_count_for_the_other() {
    let Some((_database, one, other)) = two().await else { return };
    let read = |store: Arc<PostgresStore>| async move {
        store.load_document(DOCUMENT).await.expect("loads")
    };
    one.store.put(&key("a"), Bytes::from_static(b"x")).await.expect("is stored");
    let before = read(other.store.clone()).await;
    let basis = Basis { losses: 0, generation: Some(before.generation) };

    let tombstone = Tombstone::new(DOCUMENT, None);
    one.store.delete_document(DOCUMENT, tombstone).await.expect("deletes");
    assert!(read(other.store.clone()).await.is_deleted, "before the other has heard of it");
    other.rooms.until(|heard| heard.marked.contains(&DOCUMENT)).await;
    assert!(other.store.is_deleted(DOCUMENT));
    lock(&other.rooms.0).marked.clear();
    assert!(other.store.undelete(DOCUMENT).await.expect("undeletes"));
    one.rooms.until(|heard| heard.marked.contains(&DOCUMENT)).await;
    assert!(!one.store.is_deleted(DOCUMENT));

    // A write that builds on the deleted content is refused; others in its commit are made.
    let (data, outdated, new) = (Bytes::from_static(b"y"), key("b"), key("c"));
    let (refused, stored) = tokio::join!(
        other.store.replace(&outdated, data.clone(), &[], basis),
        other.store.put(&new, data.clone()),
    );
    assert!(matches!(refused, Err(StorageError::Deleted(_))), "{refused:?}");
    stored.expect("is stored");
    let large: Bytes = vec![1; 2 << 20].into();
    let refused = other.store.replace(&outdated, large, &[], basis).await;
    assert!(matches!(refused, Err(StorageError::Deleted(_))), "{refused:?}");
    let now = read(one.store.clone()).await;
    assert_eq!(now.chunks, [(key("c"), b"y".to_vec())]);
    assert_eq!(now.generation, before.generation + 1);

    one.store.block(DOCUMENT, None).await.expect("blocks");
    other.rooms.until(|_| other.store.is_blocked(DOCUMENT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_during_a_deletion_does_not_come_back() {
    let Some((database, one, other)) = two().await else { return };
    // A write that has looked before the deletion, and is committed after it.
    let slow = database.client().await;
    slow.batch_execute(
        "begin; insert into tonk_relay.chunk (document, kind, name, data) \
         values (decode(repeat('01', 16), 'hex'), 1, 'late', 'x')",
    )
    .await
    .expect("inserts");
    one.store.delete_document(DOCUMENT, Tombstone::new(DOCUMENT, None)).await.expect("deletes");
    assert!(one.store.undelete(DOCUMENT).await.expect("undeletes"));
    slow.batch_execute("commit").await.expect("commits");
    for relay in [&one, &other] {
        assert!(relay.store.load_document(DOCUMENT).await.expect("loads").chunks.is_empty());
    }
    let mut listed = 0;
    let mut count = |_| {
        listed += 1;
        true
    };
    tokio::task::block_in_place(|| one.store.list(&mut count)).expect("lists");
    assert_eq!(listed, 0);
    // The same chunk is stored again if somebody brings it.
    one.store.put(&key("late"), Bytes::from_static(b"x")).await.expect("is stored");
    assert_eq!(other.store.load_document(DOCUMENT).await.expect("loads").chunks.len(), 1);
}

/// A write that waits while its document is deleted and brought again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_brought_again_is_not_hidden_by_an_earlier_write() {
    let Some((database, one, other)) = two().await else { return };
    let (blocker, chunk) = (database.client().await, key("a"));
    let basis = Basis { losses: 0, generation: Some(0) };
    let lock = "begin; select from tonk_relay.node for update";
    one.store.put(&key("first"), Bytes::from_static(b"x")).await.expect("is stored");
    blocker.batch_execute(lock).await.expect("locks");
    let late = tokio::spawn({
        let (store, chunk) = (other.store.clone(), chunk.clone());
        async move { store.replace(&chunk, Bytes::from_static(b"x"), &[], basis).await }
    });
    let waits = "select count(*) from pg_stat_activity \
                 where wait_event_type = 'Lock' and query like '%insert into tonk_relay.chunk%'";
    let waiting = async || -> i64 {
        database.client().await.query_one(waits, &[]).await.expect("reads").get(0)
    };
    while waiting().await == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    // What another relay does meanwhile.
    blocker
        .batch_execute(
            "insert into tonk_relay.document (document, generation) \
             values (decode(repeat('01', 16), 'hex'), 1); \
             insert into tonk_relay.chunk (document, kind, name, data, generation) \
             values (decode(repeat('01', 16), 'hex'), 1, 'a', 'x', 1); commit",
        )
        .await
        .expect("writes");
    late.await.expect("no panic").expect("the chunk is there");
    let chunks = one.store.load_document(DOCUMENT).await.expect("loads").chunks;
    assert_eq!(chunks, [(chunk, b"x".to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_deletion_that_failed_the_marks_are_read_again() {
    let Some((database, one, _other)) = two().await else { return };
    let blocker = database.client().await;
    blocker.batch_execute("begin; lock table tonk_relay.document").await.expect("locks");
    let deleting = one.store.delete_document(DOCUMENT, Tombstone::new(DOCUMENT, None));
    timeout(LONG, deleting).await.expect("in time").expect_err("the lock is not released");
    blocker.batch_execute("rollback").await.expect("releases");
    one.rooms.until(|_| !one.store.is_deleted(DOCUMENT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_reads_only_what_is_new() {
    let Some((database, one, _other)) = two().await else { return };
    let client = database.client().await;
    client
        .batch_execute(
            "insert into tonk_relay.chunk (document, kind, name, data) \
             select decode(lpad(to_hex(n), 32, '0'), 'hex'), 1, n::text, 'x' \
             from generate_series(1, 100000) as n; \
             insert into tonk_relay.document (document, deleted_at, generation) \
             select decode(lpad(to_hex(n), 32, '0'), 'hex'), now(), 1 \
             from generate_series(200000, 210000) as n; analyze",
        )
        .await
        .expect("fills");
    one.store.put(&key("new"), Bytes::from_static(b"x")).await.expect("is stored");
    let look = statements::LOOK;
    let prepare = format!("prepare look (text, text[], bytea, bigint, bigint) as {look}");
    client.batch_execute(&prepare).await.expect("prepares");
    let explain = "explain (analyze, buffers) execute look ( \
                   pg_snapshot_xmax(pg_current_snapshot())::text, '{1}', '\\x00', 10000, 1000)";
    let rows = client.query(explain, &[]).await.expect("plans");
    let plan: String = rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect();
    let removed = plan.lines().filter_map(|line| line.split("Rows Removed by Filter: ").nth(1));
    let removed: u64 = removed.map(|rows| rows.parse().unwrap_or(u64::MAX)).sum();
    assert!(removed < 100, "{plan}");
    let reads_all =
        ["chunk", "document"].iter().any(|t| plan.contains(&format!("Seq Scan on {t}")));
    assert!(!reads_all, "{plan}");
}

/// Snapshots of the same heads may differ in changes that wait for others.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replaced_by_a_snapshot_that_another_has_stored() {
    let Some((_database, one, other)) = two().await else { return };
    one.store.put(&key("a"), Bytes::from_static(b"waits")).await.expect("is stored");
    one.store.put(&snapshot("s"), Bytes::from_static(b"without it")).await.expect("is stored");
    let (data, basis) = (Bytes::from_static(b"with it"), Basis::default());
    let put = other.store.replace(&snapshot("s"), data, &[key("a")], basis).await;
    let Put::MadeAs(stored_as) = put.expect("is durable") else { panic!("the key is taken") };
    let chunks = one.store.load_document(DOCUMENT).await.expect("loads").chunks;
    let (without, with) = (b"without it".to_vec(), b"with it".to_vec());
    let mut both = vec![(snapshot("s"), without), (stored_as, with)];
    both.sort();
    assert_eq!(chunks, both, "and what it replaces is gone");

    let known = vec![snapshot("s"), key("gone")];
    let Unknown { loaded, gone } = other.store.load_unknown(DOCUMENT, known).await.expect("loads");
    assert_eq!((loaded.chunks.len(), gone), (1, vec![key("gone")]));
    assert_eq!(loaded.chunks[0].1, b"with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_replace_the_same_chunks() {
    let Some((_database, one, other)) = two().await else { return };
    let chunk = |n: u8, kind, name: &str| Key::Chunk {
        document: DocumentId::from_bytes([n; 16]),
        kind,
        name: name.to_owned(),
    };
    for n in 0..40 {
        for name in ["a", "b", "c"] {
            let key = chunk(n, ChunkKind::Incremental, name);
            one.store.put(&key, Bytes::from_static(b"x")).await.expect("is stored");
        }
    }
    let compact = async |relay: &Relay, by: &str, order: Vec<u8>| {
        let replacing = order.into_iter().map(async |n| {
            let replaced = ["a", "b", "c"].map(|name| chunk(n, ChunkKind::Incremental, name));
            let (key, data) = (chunk(n, ChunkKind::Snapshot, by), Bytes::from_static(b"all"));
            relay.store.replace(&key, data, &replaced, Basis::default()).await.expect("is stored");
        });
        futures::future::join_all(replacing).await;
    };
    let both = futures::future::join(
        compact(&one, "one", (0..40).collect()),
        compact(&other, "other", (0..40).rev().collect()),
    );
    timeout(LONG, both).await.expect("in time");
    for n in 0..40 {
        let stored = one.store.load_document(DocumentId::from_bytes([n; 16])).await.expect("loads");
        let names: Vec<String> = stored.chunks.into_iter().map(name).collect();
        assert_eq!(names, ["one", "other"], "document {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_server_are_not_found_again_and_again() {
    let Some(database) = test_database().await else { return };
    let store = connect(&database).await.expect("opens");
    store.put(&key("a"), Bytes::from_static(b"x")).await.expect("is stored");
    drop(store);
    // As after a restore from a server with more transactions.
    let later = "update tonk_relay.chunk set xid = '4000000000'; \
                 truncate tonk_relay.incarnation";
    database.client().await.batch_execute(later).await.expect("sets");
    let (one, other) = (start(&database).await, start(&database).await);
    for n in 0..3 {
        one.store.put(&key(&n.to_string()), Bytes::from_static(b"x")).await.expect("is stored");
        other.rooms.until(|heard| heard.chunks.contains(&n.to_string())).await;
    }
    assert_eq!(lock(&other.rooms.0).chunks, ["0", "1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_connections_were_lost_nothing_is_missed() {
    let Some((database, one, other)) = two().await else { return };
    for round in 0..5 {
        end_connections(&database).await;
        let name = round.to_string();
        let key = key(&name);
        let put = one.store.put(&key, Bytes::from_static(b"x"));
        timeout(LONG, put).await.expect("in time").expect("is stored");
        other.rooms.until(|heard| heard.chunks.contains(&name)).await;
    }
    assert_eq!(lock(&other.rooms.0).lost, 0, "the server is the same");
    assert_eq!(lock(&other.rooms.0).resyncs, 0);
    // Another run of the server may have less than was read.
    let client = database.client().await;
    client
        .batch_execute("update tonk_relay.incarnation set id = gen_random_uuid()")
        .await
        .expect("");
    end_connections(&database).await;
    other.rooms.until(|heard| heard.lost == 1 && heard.resyncs > 0).await;
    // What another relay had written is gone.
    let lose = "update tonk_relay.node set writes = 1 where writes > 1";
    client.batch_execute(lose).await.expect("loses");
    end_connections(&database).await;
    other.rooms.until(|heard| heard.lost == 2).await;
}
