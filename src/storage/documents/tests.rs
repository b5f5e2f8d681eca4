use automerge::{Automerge, AutomergeError, ROOT, ReadDoc, transaction::Transactable};
use tokio::sync::watch;

use super::*;
use crate::{
    bundle::served::ServedBundle,
    config,
    document::{chunk::ChunkKind, load},
    observe::metrics::Metrics,
    storage::local::journal::Journal,
};

const ID: &str = "2XehcERzGALTcjP7C7VxwFJdWoEW";

struct Fixture {
    folder: tempfile::TempDir,
    served: watch::Sender<Option<Arc<ServedBundle>>>,
    documents: Documents,
    health: Arc<Health>,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().expect("a folder");
    let (served, receiver) = watch::channel(None);
    let health = Arc::new(Health::default());
    health.enter_phase(crate::observe::health::Phase::Running);
    let metrics = Metrics::new().expect("metrics").storage;
    let path = folder.path().to_owned();
    let stored = config::Storage { path, ..Config::default().storage };
    let store = Arc::new(Journal::open(&stored, metrics.clone()).expect("opens"));
    let config = watch::channel(Arc::default()).1;
    let space = Arc::new(Space::new(config.clone(), health.clone(), metrics.clone()));
    let documents = Documents::new(store, receiver, health.clone(), space, config, metrics);
    Fixture { folder, served, documents, health }
}

fn id() -> DocumentId {
    ID.parse().expect("an id")
}

fn edit(doc: &mut Automerge, key: &str) {
    doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, key, 1)).expect("an edit");
}

fn chunk(kind: ChunkKind, name: &str) -> Key {
    Key::Chunk { document: id(), kind, name: name.to_owned() }
}

impl Fixture {
    fn serve(&self, doc: &Automerge) {
        let bundle = ServedBundle::of_documents([(id(), Bytes::from(doc.save()))]);
        self.served.send_replace(Some(Arc::new(bundle)));
    }

    async fn open(&self) -> Opened {
        self.documents.open(id()).await.expect("opens")
    }
}

#[tokio::test]
async fn the_storage_id_does_not_change() {
    let fixture = fixture();
    let first = fixture.documents.storage_id().await.expect("an id");
    assert_eq!(first.len(), 36, "{first}");
    assert_eq!(&first[14..15], "4", "{first}");
    assert_eq!(fixture.documents.storage_id().await.expect("an id"), first);
}

#[tokio::test]
async fn opening_a_document_of_the_bundle_does_not_store_it() {
    let fixture = fixture();
    assert!(fixture.open().await.heads.is_empty());
    let mut doc = Automerge::new();
    edit(&mut doc, "a");
    fixture.serve(&doc);
    let opened = fixture.open().await;
    assert_eq!(opened.heads, doc.get_heads());
    let seed = opened.unsaved_seed.expect("to be saved before the first change");
    assert_eq!(seed.key, snapshot_key(id(), &doc.get_heads()));
    assert!(!fixture.folder.path().join("2X").exists());
}

#[tokio::test]
async fn a_newer_seed_is_merged_and_an_unrelated_one_is_refused() {
    let fixture = fixture();
    let mut doc = Automerge::new();
    edit(&mut doc, "a");
    fixture.documents.save(&chunk(ChunkKind::Snapshot, "bundle_export"), doc.save().into()).await;
    fixture.serve(&doc);
    let opened = fixture.open().await;
    assert!(opened.unsaved_seed.is_none() && opened.chunks.len() == 1, "storage has all of it");

    edit(&mut doc, "b");
    fixture.serve(&doc);
    fixture.open().await;
    fixture.served.send_replace(None);
    assert_eq!(fixture.open().await.heads, doc.get_heads(), "durable without the bundle");

    let mut other = Automerge::new();
    edit(&mut other, "c");
    fixture.serve(&other);
    assert_eq!(fixture.open().await.heads, doc.get_heads());
    assert_eq!(fixture.documents.metrics.unrelated_snapshots.get(), 1);
}

#[tokio::test]
async fn chunks_that_do_not_parse_are_quarantined_and_the_others_are_loaded() {
    let fixture = fixture();
    let mut doc = Automerge::new();
    edit(&mut doc, "a");
    fixture.documents.save(&chunk(ChunkKind::Snapshot, "good"), doc.save().into()).await;
    let mut flipped = doc.save();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (name, data) in [("garbage", b"garbage".to_vec()), ("empty", vec![]), ("flipped", flipped)]
    {
        fixture.documents.save(&chunk(ChunkKind::Incremental, name), data.into()).await;
    }
    let opened = fixture.open().await;
    assert_eq!(opened.heads, doc.get_heads());
    assert_eq!(opened.chunks.len(), 1);
    assert_eq!(fixture.documents.metrics.broken_chunks.get(), 3);
    for name in ["garbage", "empty", "flipped"] {
        let kept = format!("quarantine/2X/{}/incremental/{name}", &ID[2..]);
        assert!(fixture.folder.path().join(kept).exists(), "{name} is kept");
    }
}

#[tokio::test]
async fn changes_are_loaded_in_any_order() {
    let fixture = fixture();
    let mut doc = Automerge::new();
    for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
        edit(&mut doc, key);
        let change = doc.get_last_local_change().expect("a change").raw_bytes().to_vec();
        // Reversed names, so that the changes are not listed in their order.
        let name = format!("{}", 9 - n);
        fixture.documents.save(&chunk(ChunkKind::Incremental, &name), change.into()).await;
    }
    let opened = fixture.open().await;
    assert_eq!(opened.heads, doc.get_heads());
    assert_eq!(opened.changes.len(), 3);
    let mut loaded = load::load(&opened.chunks);
    assert_eq!(loaded.doc.automerge().keys(ROOT).count(), 3);
    assert!(loaded.bad.is_empty());
}

/// Two programs wrote as the same actor.
#[tokio::test]
async fn a_chunk_that_conflicts_with_another_is_quarantined() {
    let fixture = fixture();
    for name in ["a", "b"] {
        let mut doc = Automerge::new().with_actor(automerge::ActorId::from([1; 16]));
        edit(&mut doc, name);
        let data = doc.save();
        assert_eq!(load::parses(&data), Ok(()));
        fixture.documents.save(&chunk(ChunkKind::Incremental, name), data.into()).await;
    }
    let opened = fixture.open().await;
    assert_eq!((opened.heads.len(), opened.chunks.len()), (1, 1));
    assert_eq!(fixture.documents.metrics.broken_chunks.get(), 1);
    let folder = fixture.folder.path().join(format!("quarantine/2X/{}/incremental", &ID[2..]));
    let reasons = std::fs::read_dir(folder).expect("lists").count();
    assert_eq!(reasons, 2, "a chunk and its reason");
}

#[tokio::test]
async fn a_failing_write_is_retried_and_the_relay_is_not_ready_meanwhile() {
    let fixture = Arc::new(fixture());
    let blocker = fixture.folder.path().join("2X");
    std::fs::write(&blocker, b"a file where a folder must be").expect("written");
    let key = chunk(ChunkKind::Incremental, "a");
    // Small chunks go into the journal, which is elsewhere.
    let size = 100 << 10;
    let saving = tokio::spawn({
        let (fixture, key) = (fixture.clone(), key.clone());
        async move { fixture.documents.save(&key, vec![0; size].into()).await }
    });
    while fixture.health.report().ready {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(fixture.health.report().failed["storage"].contains("cannot create"));
    // The gauge shows the count, but the relay does not read it.
    let gauge = &fixture.documents.metrics.unsaved_bytes;
    assert_eq!(gauge.get(), size as i64);
    gauge.set(0);
    assert_eq!(fixture.documents.unsaved(), size as u64);
    gauge.set(size as i64);
    std::fs::remove_file(&blocker).expect("removed");
    saving.await.expect("saved");
    assert!(fixture.health.report().ready);
    assert_eq!(fixture.documents.unsaved(), 0);
    assert_eq!(fixture.documents.metrics.unsaved_bytes.get(), 0);
    assert!(fixture.documents.metrics.retries.get() > 0);
}
