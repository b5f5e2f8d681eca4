//! Every document with changes that the gate admits can be read and edited by every client. Altered
//! changes are sent to it, and automerge's JavaScript reads the result.
//!
//! 20,000 cases are sent to the gate itself, and 200 by every way into the real relay. To run other
//! and more cases, set `TONK_RELAY_SEED=7 TONK_RELAY_CASES=1000000` and run
//! `cargo test --release --test admission admitted`. Needs Node.js and the packages of tests/js.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed expectation is a failed test"
)]

use std::{
    collections::BTreeMap,
    fs, panic,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use automerge::{ROOT, transaction::Transactable};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use sha2::{Digest, Sha256};
use tonk_relay::{
    base::document_id::DocumentId,
    bundle,
    config::Size,
    document::{
        gate::{self, Document, Rules},
        unpacked::{self, NotUnpacked, Origin},
    },
};

#[path = "changes/mod.rs"]
mod changes;
#[path = "common/client.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod client;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "common/mod.rs"]
mod common;
#[path = "common/oracle.rs"]
mod oracle;

use changes::Case;
use client::Client;
use common::Relay;
use oracle::Oracle;

const CASES: u32 = 20_000;

/// Gives the same cases every time, unless another seed is set.
fn random() -> TestRng {
    let seed = std::env::var("TONK_RELAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

/// Sends a case to the gate. Returns how many of its messages were admitted.
fn admit(case: &Case, oracle: &Mutex<Oracle>) -> Result<usize, TestCaseError> {
    let mut doc = Document::read(&case.base.save(), Rules::Admission)
        .map_err(|why| TestCaseError::fail(format!("an honest document is refused: {why}")))?;
    let mut admitted = 0;
    for message in &case.messages {
        if unpacked::of(message, Origin::Peer, Size::mib(64)).is_err() {
            break;
        }
        let before = (doc.heads().to_vec(), doc.automerge().save());
        if doc.admit(message, Rules::Admission).is_err() {
            if doc.is_damaged() {
                // Like the engines, read it from storage again.
                doc = Document::read(&before.1, Rules::Stored)
                    .map_err(|why| TestCaseError::fail(format!("what is stored {why}")))?;
            }
            prop_assert_eq!(doc.heads(), before.0.as_slice(), "a refusal changed the document");
            // It may only read from now on.
            break;
        }
        admitted += 1;
    }
    let heads = doc.heads().to_vec();
    let saved = doc.automerge().save();
    prop_assert!(gate::loads(&saved, &heads), "what was admitted does not load again");
    let found = oracle.lock().unwrap_or_else(PoisonError::into_inner).check(&saved);
    let mut expected: Vec<String> = heads.iter().map(ToString::to_string).collect();
    expected.sort();
    prop_assert_eq!(found, Ok(expected), "in JavaScript");
    Ok(admitted)
}

#[test]
fn admitted_documents_can_be_read_and_edited_by_all_clients() {
    let cases = std::env::var("TONK_RELAY_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let oracle = Mutex::new(Oracle::start());
    // automerge panics on many of these; the gate catches that.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|panic| {
        if std::env::var_os("TONK_RELAY_PANICS").is_some() {
            eprintln!("{panic}");
        }
    }));
    let (mut admitted, mut refused) = (0, 0);
    let counts = Mutex::new((&mut admitted, &mut refused));
    let bytes = proptest::collection::vec(any::<u8>(), 0..96);
    let result = TestRunner::new_with_rng(config, random()).run(&bytes, |bytes| {
        let case = Case::draw(&bytes);
        let all = admit(&case, &oracle)
            .map_err(|error| TestCaseError::fail(format!("{error}\n{}", case.describe())))?;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        *(if all == case.messages.len() { &mut *counts.0 } else { &mut *counts.1 }) += 1;
        Ok(())
    });
    panic::set_hook(hook);
    eprintln!("{admitted} cases were admitted, {refused} refused");
    if let Err(failure) = result {
        panic!("{failure}");
    }
    assert!(admitted > 100 && refused > 100, "the cases are of both kinds");
}

/// The ways by which changes reach the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Sync,
    Upload,
    Served,
    Import,
    Restore,
    Disk,
}

const WAYS: [Way; 6] = [Way::Sync, Way::Upload, Way::Served, Way::Import, Way::Restore, Way::Disk];
/// The number of cases for each way.
const DRAWN: usize = 200;

/// The folder of a relay, with its config.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path().display();
        let config = format!(
            "[http]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = [\"unix:{at}/admin.sock\"]\n\
             [storage]\npath = \"{at}/documents\"\nmin_free = \"1B\"\n\
             [bundles]\npath = \"{at}/bundles\"\n[bundle]\npath = \"{at}/served.tonk\"\n\
             [sync]\nidle_unload = \"1s\"\n"
        );
        fs::write(folder.path().join("relay.toml"), config).expect("written");
        let place = Self { folder };
        place.serve_nothing();
        place
    }

    /// Has the relay serve a bundle without documents.
    fn serve_nothing(&self) {
        let empty = bundle::pack(&bundle::minimal_manifest(id(0)), &BTreeMap::new());
        fs::write(self.at("served.tonk"), empty.expect("a bundle")).expect("written");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Relay {
        Relay::start_with(&self.at("relay.toml"))
    }

    /// Runs a command of the operator. A case that it refuses is not a failure.
    fn command(&self, words: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
        command.args(words).arg("--config").arg(self.at("relay.toml"));
        let done = command.output().expect("it runs");
        let code = done.status.code().expect("a code");
        assert!(code <= 1, "{words:?}: {code} {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Stops a relay as systemd does.
fn stop(mut relay: Relay) {
    let pid = relay.child.id().to_string();
    let told = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
    assert!(told.success());
    assert!(relay.child.wait().expect("it ends").success());
}

fn id(n: usize) -> DocumentId {
    let mut bytes = [0xa5; 16];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    DocumentId::from_bytes(bytes)
}

/// All changes of a case, after its document, as in a bundle or a file.
fn together(case: &Case) -> Vec<u8> {
    [case.base.save(), case.messages.concat()].concat()
}

fn write(path: &Path, data: &[u8]) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, data).expect("written");
}

/// Writes files in the layout of automerge-repo: the honest documents, and the altered changes.
fn write_folder(folder: &Path, cases: &[Case]) {
    for (n, case) in cases.iter().enumerate() {
        let document = folder.join(id(n).folder());
        write(&document.join("snapshot/honest"), &case.base.save());
        for (m, message) in case.messages.iter().enumerate() {
            write(&document.join(format!("incremental/altered-{m}")), message);
        }
    }
}

fn write_backup(folder: &Path, cases: &[Case]) {
    let mut documents = serde_json::Map::new();
    for (n, case) in cases.iter().enumerate() {
        let data = together(case);
        let sha256: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
        write(&folder.join("documents").join(id(n).folder()).join("snapshot").join(&sha256), &data);
        let bytes = data.len();
        let copied = serde_json::json!({ "fingerprint": "", "sha256": sha256, "bytes": bytes });
        documents.insert(id(n).to_string(), copied);
    }
    let index = serde_json::json!({
        "format": 1, "version": "test", "storage_id": null, "made_at": "", "is_complete": true,
        "documents": documents, "bundles": {},
    });
    write(&folder.join("backup.json"), index.to_string().as_bytes());
}

/// How often the served bundle was loaded, or failed to load.
fn loads(port: u16) -> u64 {
    let mut answer = ureq::get(format!("http://127.0.0.1:{port}/metrics")).call().expect("metrics");
    let text = answer.body_mut().read_to_string().expect("a text");
    let lines = text.lines().filter(|line| line.starts_with("tonk_relay_bundle_loads_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Sends the cases to a relay that has their honest documents, except for the disk's.
async fn bring(place: &Place, relay: &Relay, way: Way, cases: &[Case]) {
    let port = relay.port;
    match way {
        Way::Sync => {
            for (n, case) in cases.iter().enumerate() {
                let mut client = Client::connect(&format!("ws://127.0.0.1:{port}")).await;
                for message in &case.messages {
                    client.send_chunks(id(n), message.clone()).await;
                }
                // The message is processed in its order, and the session continues.
                client.push(id(cases.len()), true).await;
                let last = id(cases.len());
                let is_answer =
                    |event| matches!(event, client::Event::Unavailable(at) if at == last);
                while !is_answer(client.step().await) {}
            }
        }
        Way::Upload => {
            for (n, case) in cases.iter().enumerate() {
                let documents = BTreeMap::from([(id(n), together(case))]);
                let bundle = bundle::pack(&bundle::minimal_manifest(id(n)), &documents);
                let answer = ureq::post(format!("http://127.0.0.1:{port}/api/bundles"))
                    .config()
                    .http_status_as_error(false)
                    .build()
                    .header("content-type", "application/octet-stream")
                    .send(&bundle.expect("a bundle")[..]);
                let status = answer.expect("an answer").status();
                assert!(status == 200 || status == 400, "{status}\n{}", case.describe());
            }
        }
        Way::Served => {
            for (n, case) in cases.iter().enumerate() {
                let before = loads(port);
                let documents = BTreeMap::from([(id(n), together(case))]);
                let bundle = bundle::pack(&bundle::minimal_manifest(id(n)), &documents);
                let aside = place.at("served.new");
                write(&aside, &bundle.expect("a bundle"));
                fs::rename(&aside, place.at("served.tonk")).expect("in place");
                let end = Instant::now() + Duration::from_secs(20);
                while loads(port) == before {
                    assert!(Instant::now() < end, "it is not looked at\n{}", case.describe());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        Way::Import => {
            write_folder(&place.at("theirs"), cases);
            place.command(&["import", &place.at("theirs").display().to_string()]);
        }
        Way::Restore => {
            write_backup(&place.at("backup"), cases);
            place.command(&["restore", &place.at("backup").display().to_string()]);
        }
        Way::Disk => {}
    }
}

/// Checks all documents as a new client receives them: each has its honest changes, loads again,
/// and is valid in JavaScript.
async fn check(
    relay: &Relay,
    way: Way,
    cases: &[Case],
    oracle: &Mutex<Oracle>,
) -> Vec<Vec<automerge::ChangeHash>> {
    let mut client = Client::connect(&format!("ws://127.0.0.1:{}", relay.port)).await;
    let ids: Vec<DocumentId> = (0..cases.len()).map(id).collect();
    client.fetch(&ids).await;
    let mut all = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let doc = client.document(id(n));
        for head in case.base.get_heads() {
            assert!(
                doc.get_change_meta_by_hash(&head).is_some(),
                "{way:?}: lost\n{}",
                case.describe()
            );
        }
        let (saved, heads) = (doc.save(), doc.get_heads());
        assert!(
            gate::loads(&saved, &heads),
            "{way:?}: it does not load again\n{}",
            case.describe()
        );
        // Stored documents are served even if only some readers can read them.
        let read = Document::read(&saved, Rules::Admission);
        if way != Way::Disk || read.is_ok() {
            let found = oracle.lock().unwrap_or_else(PoisonError::into_inner).check(&saved);
            assert!(found.is_ok(), "{way:?}: in JavaScript: {found:?}\n{}", case.describe());
        }
        all.push(heads);
    }
    all
}

#[tokio::test]
async fn every_way_into_the_relay_passes_the_gate() {
    let mut random = random();
    let mut cases = Vec::new();
    while cases.len() < DRAWN {
        let mut bytes = vec![0; 8 + random.next_u32() as usize % 88];
        random.fill_bytes(&mut bytes);
        let case = Case::draw(&bytes);
        let unpacked = unpacked::of(&together(&case), Origin::Peer, Size::mib(64));
        if !matches!(unpacked, Err(NotUnpacked::TooMuch { .. })) {
            cases.push(case);
        }
    }
    let oracle = Mutex::new(Oracle::start());
    for way in WAYS {
        let place = Place::new();
        if way == Way::Disk {
            write_folder(&place.at("documents"), &cases);
        }
        let relay = place.start();
        let url = format!("ws://127.0.0.1:{}", relay.port);
        let mut owner = Client::connect(&url).await;
        if way != Way::Disk {
            for (n, case) in cases.iter().enumerate() {
                owner.share(id(n), case.base.clone()).await;
            }
        }
        bring(&place, &relay, way, &cases).await;
        check(&relay, way, &cases, &oracle).await;
        // Honest edits continue until the documents are stored again as a whole.
        let mut ids: Vec<DocumentId> = (0..cases.len()).map(id).collect();
        let mut editor = Client::connect(&url).await;
        editor.fetch(&ids).await;
        if way == Way::Disk {
            // Stored documents that can be loaded are served, even if nobody knows how an edited
            // form will be read. Edits of those may be refused.
            ids.retain(|id| {
                let saved = editor.document(*id).save();
                Document::read(&saved, Rules::Admission).is_ok()
            });
        }
        for round in 0..2 {
            for id in &ids {
                let doc = editor.document(*id);
                let mut edit = doc.transaction();
                edit.put(ROOT, "long", format!("{round}").repeat(5000)).expect("an edit");
                edit.commit();
                editor.push(*id, false).await;
                while !editor.in_sync(*id) {
                    if let client::Event::Unavailable(id) = editor.step().await {
                        panic!("{way:?}: an honest edit of {id} is refused");
                    }
                }
            }
        }
        drop((owner, editor));
        let before = check(&relay, way, &cases, &oracle).await;
        stop(relay);
        // A relay does not start with an invalid bundle.
        place.serve_nothing();
        let relay = place.start();
        let after = check(&relay, way, &cases, &oracle).await;
        assert_eq!(after, before, "{way:?}: after a restart");
        stop(relay);
    }
}
