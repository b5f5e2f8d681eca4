//! Makes a document of its stored chunks.
//!
//! Bad chunks are left out, and so are those that build on a bad change. A chunk is bad if the
//! document would not load with it, or would not load again after it was saved.

use std::collections::HashMap;

use automerge::{Change, ChangeHash};

use super::{
    chunk::{Key, StoredChunk},
    gate::{Document, Refusal, Rules, changes_in},
    order::dependencies_first,
    unpacked,
};

/// A document and the faults in its chunks.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The document that the good chunks make.
    pub doc: Document,
    /// Chunks that are not in it, each with the reason.
    pub bad: Vec<(Key, String)>,
    /// Some bad chunks hold good changes that no other chunk has: the document has to be saved
    /// before they are removed.
    pub is_to_be_saved: bool,
}

/// Concatenates chunks, as automerge reads them.
pub fn joined(chunks: &[StoredChunk]) -> Vec<u8> {
    chunks.iter().flat_map(|(_, data)| data).copied().collect()
}

/// Checks that a chunk parses. Its changes may depend on others.
///
/// # Errors
/// Why it does not.
pub fn parses(chunk: &[u8]) -> Result<(), String> {
    changes_of(chunk).map(drop)
}

/// Loads a document. Takes processor time.
pub fn load(chunks: &[StoredChunk]) -> Loaded {
    let has_empty = chunks.iter().any(|(_, data)| data.is_empty());
    // Nearly always all chunks are good.
    let read = match chunks {
        _ if has_empty => None,
        [] => return Loaded::default(),
        [(_, only)] => Document::read(only, Rules::Stored).ok(),
        _ => Document::read(&joined(chunks), Rules::Stored).ok(),
    };
    match read {
        Some(doc) => Loaded { doc, ..Loaded::default() },
        None => salvage(chunks),
    }
}

/// Returns the changes in a stored chunk, which may consist of several of automerge's chunks.
fn changes_of(data: &[u8]) -> Result<Vec<Change>, String> {
    if data.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let mut changes = Vec::new();
    for (kind, chunk) in unpacked::chunks(data).map_err(|error| format!("it {error}"))? {
        changes.extend(changes_in(kind, chunk).map_err(|error| format!("its changes {error}"))?);
    }
    Ok(changes)
}

/// Loads what can be loaded, change by change where necessary.
fn salvage(chunks: &[StoredChunk]) -> Loaded {
    let mut reasons: HashMap<usize, String> = HashMap::new();
    let mut changes = Vec::new();
    let mut sources: HashMap<ChangeHash, Vec<usize>> = HashMap::new();
    for (n, (_, data)) in chunks.iter().enumerate() {
        match changes_of(data) {
            Ok(found) => {
                for change in found {
                    let sources = sources.entry(change.hash()).or_default();
                    if sources.is_empty() {
                        changes.push(change);
                    }
                    sources.push(n);
                }
            }
            Err(reason) => _ = reasons.insert(n, reason),
        }
    }
    let (changes, orphans) = dependencies_first(changes, |_| false);
    let (mut doc, mut bad) = admit_most(&changes);
    for orphan in &orphans {
        let builds_on = orphan.deps().iter().find(|dep| bad.contains_key(dep));
        let reason = match builds_on {
            Some(dep) => builds_on_bad(dep),
            None => match doc.admit_changes(vec![orphan.clone()], Rules::Stored) {
                Ok(_) => continue,
                Err(refused) => describe(orphan, &refused),
            },
        };
        bad.insert(orphan.hash(), reason);
    }
    for (hash, reason) in &bad {
        for n in sources.get(hash).into_iter().flatten() {
            reasons.entry(*n).or_insert_with(|| reason.clone());
        }
    }
    // A good change would be lost if all chunks that hold it are left out.
    let is_to_be_saved = changes.iter().chain(&orphans).map(Change::hash).any(|hash| {
        let sources = sources.get(&hash).map(Vec::as_slice).unwrap_or_default();
        !bad.contains_key(&hash) && sources.iter().all(|n| reasons.contains_key(n))
    });
    let keys = chunks.iter().enumerate();
    let bad = keys.filter_map(|(n, (key, _))| Some((key.clone(), reasons.remove(&n)?))).collect();
    Loaded { doc, bad, is_to_be_saved }
}

/// Makes a document of all changes but those that are bad or build on bad ones. Returns these with
/// the reasons.
fn admit_most(changes: &[Change]) -> (Document, HashMap<ChangeHash, String>) {
    let mut doc = Document::default();
    let mut bad: HashMap<ChangeHash, String> = HashMap::new();
    // Parts of the changes, in order. A part that is refused is halved until it is a single change.
    let mut parts = vec![changes];
    while let Some(part) = parts.pop() {
        let mut good = Vec::new();
        for change in part {
            match change.deps().iter().find(|dep| bad.contains_key(dep)) {
                Some(dep) => _ = bad.insert(change.hash(), builds_on_bad(dep)),
                None => good.push(change.clone()),
            }
        }
        let refused = match doc.admit_changes(good, Rules::Stored) {
            Ok(_) => continue,
            Err(refused) => refused,
        };
        if doc.is_damaged() {
            // It cannot be restored, so it is rebuilt from its good changes.
            doc = Document::default();
            let first = part.first().map(Change::hash);
            let before = changes.iter().take_while(|change| Some(change.hash()) != first);
            let before = before.filter(|change| !bad.contains_key(&change.hash()));
            let _ = doc.admit_changes(before.cloned().collect(), Rules::Stored);
        }
        if part.len() > 1 {
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([second, first]);
        } else if let Some(change) = part.first() {
            bad.insert(change.hash(), describe(change, &refused));
        }
    }
    (doc, bad)
}

fn builds_on_bad(dep: &ChangeHash) -> String {
    format!("it depends on change {dep}, which is invalid")
}

fn describe(change: &Change, refusal: &Refusal) -> String {
    format!("change {} of actor {}: its operations {refusal}", change.hash(), change.actor_id())
}
