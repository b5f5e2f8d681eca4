use std::io::{Cursor, Read, Write};

use automerge::{Automerge, ROOT, transaction::Transactable};
use proptest::prelude::*;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::{manifest::MANIFEST, *};
use crate::{base::document_id::DocumentId, config::Size};

const ROOT_ID: &str = "2XehcERzGALTcjP7C7VxwFJdWoEW";

fn id(text: &str) -> DocumentId {
    text.parse().expect("an id")
}

fn entry(document: DocumentId) -> String {
    let text = document.to_string();
    format!("storage/{}/{}/snapshot/bundle_export", &text[..2], &text[2..])
}

fn save(text: &str) -> Vec<u8> {
    let mut doc = Automerge::new();
    doc.transact::<_, _, automerge::AutomergeError>(|tx| tx.put(ROOT, "text", text))
        .expect("an edit");
    doc.save()
}

fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        out.start_file(*name, SimpleFileOptions::default()).expect("an entry");
        out.write_all(bytes).expect("bytes");
    }
    out.finish().expect("an archive").into_inner()
}

fn manifest() -> Vec<u8> {
    format!(r#"{{"manifestVersion":1,"rootId":"{ROOT_ID}","networkUris":["wss://x"],"xNew":[1]}}"#)
        .into_bytes()
}

fn open(bytes: &[u8]) -> Result<Bundle<Cursor<&[u8]>>, BundleError> {
    let max_inflated = MaxInflated { bundle: 1 << 20, document: Size::mib(256) };
    Bundle::open(Cursor::new(bytes), max_inflated)
}

fn error_of(entries: &[(&str, &[u8])]) -> String {
    match open(&zip(entries)).and_then(|mut bundle| bundle.verify()) {
        Ok(()) => panic!("was accepted"),
        Err(error) => error.to_string(),
    }
}

/// Two ids whose texts share their first two characters, and so their folder.
fn two_ids_in_one_folder() -> (DocumentId, DocumentId) {
    let root = id(ROOT_ID);
    let other = (0u32..)
        .map(|n| {
            let mut bytes = *root.as_bytes();
            bytes[12..].copy_from_slice(&n.to_le_bytes());
            DocumentId::from_bytes(bytes)
        })
        .find(|other| *other != root && other.to_string()[..2] == ROOT_ID[..2])
        .expect("there is one");
    (root, other)
}

#[test]
fn the_slim_form_holds_only_the_manifest_and_the_root_document() {
    let (root, other) = two_ids_in_one_folder();
    let (root_save, other_save) = (save("root"), save("other"));
    let full =
        zip(&[(&entry(other), &other_save), (&entry(root), &root_save), (MANIFEST, &manifest())]);
    let mut bundle = open(&full).expect("a bundle");
    bundle.verify().expect("whole");
    assert_eq!(bundle.documents().len(), 2);
    let slim = bundle.slim().expect("the slim form");
    assert_eq!(
        slim,
        open(&full).expect("a bundle").slim().expect("again"),
        "the same bytes each time"
    );

    let mut archive = ZipArchive::new(Cursor::new(&slim[..])).expect("a ZIP");
    assert_eq!(archive.len(), 2);
    let mut contents = Vec::new();
    for index in 0..2 {
        let mut file = archive.by_index(index).expect("an entry");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("bytes");
        contents.push((file.name().expect("a name").into_owned(), bytes));
    }
    assert_eq!(contents, [(MANIFEST.to_owned(), manifest()), (entry(root), root_save)]);
}

#[test]
fn invalid_bundles_are_rejected_with_a_reason() {
    let whole = save("x");
    let path = entry(id(ROOT_ID));
    let m = manifest();
    assert_eq!(error_of(&[(&path, &whole)]), "manifest.json not found");
    assert_eq!(error_of(&[(MANIFEST, b"{}")]), "rootId not found in manifest");
    assert_eq!(error_of(&[(MANIFEST, br#"{"rootId":7}"#)]), "rootId not found in manifest");
    assert!(error_of(&[(MANIFEST, br#"{"rootId":"../x"}"#)]).contains("is not a document id"));
    assert_eq!(
        error_of(&[(
            MANIFEST,
            format!(r#"{{"manifestVersion":2,"rootId":"{ROOT_ID}"}}"#).as_bytes()
        )]),
        "manifestVersion 2 is not supported, expected 1"
    );
    assert!(error_of(&[(MANIFEST, b"[")]).starts_with("manifest.json is not valid: "));
    assert!(error_of(&[(MANIFEST, &m), ("storage/../../etc/passwd", b"")]).contains("\"..\""));
    assert!(error_of(&[(MANIFEST, &m), ("/etc/passwd", b"")]).contains("absolute"));
    assert!(
        error_of(&[(MANIFEST, &m), ("storage/aa/bb/snapshot/x", b"")])
            .contains("do not form a document id")
    );
    assert!(
        error_of(&[(MANIFEST, &m), (&path, b"garbage")]).contains("is not an automerge document")
    );
    assert!(matches!(open(b"PK garbage"), Err(BundleError::NotZip(_))));
}

#[test]
fn two_entries_of_one_name_are_rejected() {
    // ZipWriter does not write such an archive, so two names of one length are made equal.
    let mut bytes = zip(&[(MANIFEST, &manifest()), ("storage-aaaa", b"1"), ("storage-bbbb", b"2")]);
    while let Some(at) = bytes.windows(12).position(|w| w == b"storage-bbbb") {
        bytes[at..at + 12].copy_from_slice(b"storage-aaaa");
    }
    match open(&bytes) {
        Err(error) => assert!(error.to_string().contains("twice"), "{error}"),
        Ok(_) => panic!("was accepted"),
    }
}

#[test]
fn a_bundle_that_unpacks_to_more_than_the_limit_is_rejected_even_if_it_declares_less() {
    let zeros = vec![0u8; 4 << 20];
    let path = entry(id(ROOT_ID));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    out.start_file(MANIFEST, options).expect("an entry");
    out.write_all(&manifest()).expect("bytes");
    out.start_file(path.as_str(), options).expect("an entry");
    out.write_all(&zeros).expect("bytes");
    let mut bytes = out.finish().expect("an archive").into_inner();
    assert!(matches!(open(&bytes), Err(BundleError::TooLarge { .. })));

    // The same archive, with smaller sizes in both headers.
    let size = (4u32 << 20).to_le_bytes();
    while let Some(at) = bytes.windows(4).position(|w| w == size) {
        bytes[at..at + 4].copy_from_slice(&100u32.to_le_bytes());
    }
    assert!(open(&bytes).and_then(|mut bundle| bundle.verify()).is_err());
}

#[test]
fn documents_of_several_chunks_are_joined() {
    let mut doc = Automerge::new();
    doc.transact::<_, _, automerge::AutomergeError>(|tx| tx.put(ROOT, "a", 1)).expect("an edit");
    let snapshot = doc.save();
    doc.transact::<_, _, automerge::AutomergeError>(|tx| tx.put(ROOT, "b", 2)).expect("an edit");
    let increment = doc.get_last_local_change().expect("a change").raw_bytes().to_vec();
    let path = entry(id(ROOT_ID));
    let second = path.replace("snapshot", "incremental");
    let bytes = zip(&[(MANIFEST, &manifest()), (&second, &increment), (&path, &snapshot)]);
    let save = open(&bytes).and_then(|mut b| b.document(id(ROOT_ID))).expect("the document");
    assert_eq!(Automerge::load(&save).expect("loads").get_heads(), doc.get_heads());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_give_a_bundle_or_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = open(&bytes).and_then(|mut bundle| bundle.verify());
    }

    #[test]
    fn a_corrupted_bundle_gives_a_bundle_or_an_error(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = zip(&[(MANIFEST, &manifest()), (&entry(id(ROOT_ID)), &save("x"))]);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = open(&bytes).and_then(|mut bundle| bundle.verify().and_then(|()| bundle.slim()));
    }
}
