//! Tests on a real server, which is started if PostgreSQL is installed (Debian's package
//! `postgresql`). Without it they are skipped, unless TONK_RELAY_POSTGRES is set.

mod server;
mod setup;
mod several;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::{
    server::{TestDatabase, test_database},
    several::Rooms,
};
use super::*;
use crate::{
    config::{Config, DatabaseUrl},
    document::chunk::{ChunkKind, Key},
    observe::{health::Phase, metrics::Metrics},
    storage::{
        Basis, ChunkStore, StorageError,
        conformance::{self, store_tests},
        records::Tombstone,
        store::Store,
    },
};

const DOCUMENT: DocumentId = DocumentId::from_bytes([1; 16]);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

fn key(name: &str) -> Key {
    Key::Chunk { document: DOCUMENT, kind: ChunkKind::Incremental, name: name.to_owned() }
}

async fn connect(database: &TestDatabase) -> Result<PostgresStore, ConnectError> {
    connect_with(database, Arc::new(Health::default())).await
}

async fn connect_with(
    database: &TestDatabase,
    health: Arc<Health>,
) -> Result<PostgresStore, ConnectError> {
    let metrics = Metrics::new().expect("metrics").storage;
    let url = database.url().read().expect("a URL").expect("is not empty");
    PostgresStore::open(url, &Config::default(), health, metrics).await
}

/// An empty store, if PostgreSQL is installed.
async fn empty() -> Option<(TestDatabase, PostgresStore)> {
    let database = test_database().await?;
    let store = connect(&database).await.expect("opens");
    Some((database, store))
}

store_tests!(empty);

#[tokio::test(flavor = "multi_thread")]
async fn stored_values_are_there_after_reopening() {
    let Some((database, store)) = empty().await else { return };
    let reopen = async |store: PostgresStore| {
        drop(store);
        connect(&database).await.expect("opens")
    };
    conformance::stored_values_are_there_after_reopening(store, reopen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_document_stores_nothing() {
    let Some((_database, store)) = empty().await else { return };
    let delete = async |store: &PostgresStore, document| {
        let tombstone = Tombstone::new(document, None);
        store.delete_document(document, tombstone).await.expect("deletes");
    };
    conformance::a_deleted_document_stores_nothing(store, delete).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_are_there_after_reopening() {
    let Some((database, store)) = empty().await else { return };
    let other = DocumentId::from_bytes([2; 16]);
    store.delete_document(DOCUMENT, Tombstone::new(DOCUMENT, None)).await.expect("deletes");
    store.block(other, None).await.expect("blocks");
    drop(store);
    let store = connect(&database).await.expect("opens");
    assert!(store.is_deleted(DOCUMENT) && !store.is_deleted(other));
    assert!(store.is_blocked(other) && !store.is_blocked(DOCUMENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_the_first_version_is_alone() {
    let Some((database, store)) = empty().await else { return };
    drop(store);
    let older = database.client().await;
    // As relays of the tables' version 1 do.
    let lock = "select pg_advisory_lock(1953459819)";
    older.batch_execute(lock).await.expect("locks");
    let refused = connect(&database).await;
    assert!(matches!(refused, Err(ConnectError::InUse { .. })), "{:?}", refused.err());
    let problem = refused.err().expect("is refused").to_string();
    assert!(problem.contains("(connected from this machine, since 2"), "{problem}");
    drop(older);
    connect(&database).await.expect("the other has gone");
}

/// A store that connects again, and what ends when it gives up.
async fn connected(
    database: &TestDatabase,
    health: &Arc<Health>,
) -> (Arc<PostgresStore>, AbortOnDropHandle<()>) {
    health.enter_phase(Phase::Running);
    let store = Arc::new(connect_with(database, health.clone()).await.expect("opens"));
    let running = store.clone();
    let running =
        tokio::spawn(async move { running.run(Arc::new(Rooms::default()), || None).await });
    (store, AbortOnDropHandle::new(running))
}

/// Ends all connections of the relay, as a failing server does.
async fn end_connections(database: &TestDatabase) {
    let end = "select pg_terminate_backend(pid) from pg_stat_activity \
               where datname = current_database() and application_name = 'tonk-relay'";
    database.client().await.query(end, &[]).await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_when_connections_are_lost() {
    let Some(database) = test_database().await else { return };
    let health = Arc::new(Health::default());
    let (store, _running) = connected(&database, &health).await;
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..200 {
                let size = if n % 50 == 0 { 2 << 20 } else { 10 };
                store.put(&key(&n.to_string()), vec![7; size].into()).await.expect("is stored");
            }
        }
    });
    for _ in 0..5 {
        sleep(Duration::from_millis(100)).await;
        end_connections(&database).await;
    }
    timeout(LONG, writing).await.expect("in time").expect("no panic");
    let read = async {
        loop {
            match store.load_document(DOCUMENT).await {
                Ok(loaded) => break loaded.chunks,
                // A connection was ended just now.
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    assert_eq!(timeout(LONG, read).await.expect("in time").len(), 200);
    assert!(health.report().ready, "{:?}", health.report());
}

/// A chunk that takes longer than small ones.
const LARGE: usize = 32 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn small_chunks_are_stored_while_a_large_one_is() {
    let Some((_database, store)) = empty().await else { return };
    let store = Arc::new(store);
    let large = tokio::spawn({
        let store = store.clone();
        async move { store.put(&key("large"), vec![7; LARGE].into()).await }
    });
    let (mut small, mut meanwhile) = (0, 0);
    while !large.is_finished() {
        store.put(&key(&small.to_string()), Bytes::from_static(b"x")).await.expect("is stored");
        small += 1;
        meanwhile += i32::from(!large.is_finished());
    }
    large.await.expect("no panic").expect("is stored");
    assert!(meanwhile > 0, "none was stored meanwhile");
    let chunks = store.load_document(DOCUMENT).await.expect("loads").chunks;
    assert_eq!(chunks.len(), small + 1);
    assert!(chunks.iter().any(|(_, data)| data.len() == LARGE));
}

/// The relay has told the database its new name, and then finds no room for all connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_connects_again_after_half_an_attempt() {
    let Some(database) = test_database().await else { return };
    let url = database.url_as("few").await.read().expect("a URL").expect("is not empty");
    let metrics = Metrics::new().expect("metrics").storage;
    let health = Arc::new(Health::default());
    health.enter_phase(Phase::Running);
    let opened = PostgresStore::open(url, &Config::default(), health.clone(), metrics).await;
    let store = Arc::new(opened.expect("opens"));
    let running = store.clone();
    let running =
        tokio::spawn(async move { running.run(Arc::new(Rooms::default()), || None).await });
    let client = database.client().await;
    client.batch_execute("alter role few connection limit 3").await.expect("limits");
    end_connections(&database).await;
    let reason = async {
        loop {
            let report = health.report();
            if report.failed.get("storage").is_some_and(|why| why.contains("too many connections"))
            {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, reason).await.expect("it says why");
    sleep(Duration::from_millis(300)).await;
    client.batch_execute("alter role few connection limit -1").await.expect("limits no more");
    timeout(LONG, store.put(&key("a"), Bytes::from_static(b"x")))
        .await
        .expect("in time")
        .expect("is stored");
    assert!(!running.is_finished() && health.report().ready);
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_lasts_although_the_database_is_away() {
    let Some(database) = test_database().await else { return };
    let (store, _running) = connected(&database, &Arc::default()).await;
    store.block_in_memory(DOCUMENT);
    end_connections(&database).await;
    timeout(LONG, store.put(&key("a"), Bytes::new())).await.expect("in time").expect("is stored");
    assert!(store.is_blocked(DOCUMENT), "until the relay stops");
    assert!(store.unblock(DOCUMENT).await.expect("unblocks") && !store.is_blocked(DOCUMENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_earlier_connections_had_sent_is_not_written_later() {
    let Some(database) = test_database().await else { return };
    let store = connect(&database).await.expect("opens");
    store.put(&key("a"), Bytes::from_static(b"ours")).await.expect("is stored");
    let take = "update tonk_relay.node set connection = 'a later one'";
    database.client().await.execute(take, &[]).await.expect("takes over");
    let late = key("b");
    let late = store.put(&late, Bytes::from_static(b"late"));
    timeout(Duration::from_millis(300), late).await.expect_err("it is never told as stored");
    let count = "select count(*) from tonk_relay.chunk";
    let count: i64 = database.client().await.query_one(count, &[]).await.expect("reads").get(0);
    assert_eq!(count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_that_builds_on_what_the_database_has_lost() {
    let Some(database) = test_database().await else { return };
    let (store, _running) = connected(&database, &Arc::default()).await;
    for name in ["a", "b"] {
        store.put(&key(name), Bytes::from_static(b"confirmed")).await.expect("is stored");
    }
    let count = async || -> i64 {
        let writes = "select writes from tonk_relay.node order by seen desc limit 1";
        database.client().await.query_one(writes, &[]).await.expect("reads").get(0)
    };
    let small = count().await;
    store.put(&key("large"), vec![0; 2 << 20].into()).await.expect("is stored");
    assert!(count().await > small, "the loss of a large chunk would not be noticed");
    let before = store.losses();
    let lose = "update tonk_relay.node set writes = 1";
    database.client().await.execute(lose, &[]).await.expect("loses");
    end_connections(&database).await;
    let write = async |losses| {
        let (key, data) = (key("c"), Bytes::from_static(b"new"));
        let basis = Basis { losses, generation: None };
        timeout(LONG, store.replace(&key, data, &[], basis)).await.expect("in time")
    };
    // A write that does not build on it is made in the same commit.
    let other = key("d");
    let (refused, made) = tokio::join!(write(before), async {
        while store.losses() == before {
            sleep(Duration::from_millis(1)).await;
        }
        store.put(&other, Bytes::from_static(b"new")).await
    });
    assert!(matches!(refused, Err(StorageError::Outdated(_))), "{refused:?}");
    made.expect("is stored");
    write(store.losses()).await.expect("is stored");
    assert_eq!(store.losses(), before + 1);
    // So is a state before this relay had begun.
    let older = "delete from tonk_relay.node";
    database.client().await.execute(older, &[]).await.expect("loses");
    end_connections(&database).await;
    while store.losses() == before + 1 {
        sleep(Duration::from_millis(1)).await;
    }
    write(store.losses()).await.expect("is stored");
    // And one that was brought back under open connections.
    database
        .client()
        .await
        .execute("update tonk_relay.node set writes = 0", &[])
        .await
        .expect("loses");
    let losses = store.losses();
    timeout(LONG, store.put(&key("e"), Bytes::new())).await.expect("in time").ok();
    assert_eq!(store.losses(), losses + 1);
    write(store.losses()).await.expect("is stored");
    // Its next connections find everything that was confirmed since.
    end_connections(&database).await;
    write(store.losses()).await.expect("is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_named() {
    let Some(database) = test_database().await else { return };
    let client = database.client().await;
    let refused = async || connect(&database).await.err().expect("is refused").to_string();
    let name = database.name();
    let set = async |setting: &str| {
        client.batch_execute(&format!("alter database {name} {setting}")).await.expect("sets");
    };
    set("set synchronous_commit = off").await;
    assert!(refused().await.contains("synchronous_commit is off"), "{}", refused().await);
    set("reset synchronous_commit").await;
    set("set default_transaction_read_only = on").await;
    assert!(refused().await.contains("read-only"), "{}", refused().await);
    set("reset default_transaction_read_only").await;
    drop(connect(&database).await.expect("opens"));
    // A newer version says from which one on a program may write.
    let newer = "update tonk_relay.meta set format = 9, oldest_writer = ";
    client.batch_execute(&format!("{newer} 2")).await.expect("sets");
    drop(connect(&database).await.expect("opens"));
    client.batch_execute(&format!("{newer} 5")).await.expect("sets");
    assert!(refused().await.contains("version 9, and this program knows 4"), "{}", refused().await);
    let missing = DatabaseUrl::from(database.url_of("missing").as_str());
    let missing = missing.read().expect("a URL").expect("is not empty");
    let metrics = Metrics::new().expect("metrics").storage;
    let opened = PostgresStore::open(missing, &Config::default(), Arc::default(), metrics).await;
    let error = opened.err().expect("is refused").to_string();
    assert!(error.contains("database \"missing\" does not exist"), "{error}");
}
