//! Merges a document with the stored one of the same id.

use automerge::{Automerge, ChangeHash};
use serde::{Deserialize, Serialize};

use super::gate::{Document, Refusal, Rules};

/// How a snapshot relates to a document of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ancestry {
    /// The document has all of it.
    Contained,
    /// They share changes, and the snapshot has some that the document lacks.
    Newer,
    /// They share no change: they are two documents with one id.
    Unrelated,
}

impl Ancestry {
    /// Compares `snapshot` with `document`. Neither may be empty.
    pub fn of(snapshot: &Automerge, document: &Automerge) -> Self {
        let has = |hash: &ChangeHash| document.get_change_meta_by_hash(hash).is_some();
        if snapshot.get_heads().iter().all(has) {
            Self::Contained
        } else if snapshot.get_changes_meta(&[]).iter().any(|change| has(&change.hash)) {
            Self::Newer
        } else {
            Self::Unrelated
        }
    }
}

/// The outcome of merging a document with the stored one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Merged {
    /// None of this id was stored.
    New,
    /// It had changes that the stored one lacked.
    Newer,
    /// The stored one had all of its changes.
    Contained,
    /// The stored one shares no change with it and was not changed.
    Unrelated,
    /// The document was deleted here and stays deleted.
    Deleted,
    /// An operator has blocked the document.
    Blocked,
    /// The disk has no space for a new document.
    NoSpace,
    /// The merged document would exceed the size limit.
    TooLarge,
    /// The gate does not admit its changes, for this reason.
    Refused(String),
    /// The stored one cannot be read, or the merged one cannot be written.
    Failed(String),
}

/// Merges the document in `brought` into `here`, which is all that is known of it, and returns the
/// outcome and what has to be stored. Takes processor time.
///
/// `is_stored`: something of `here` is in storage, and not only in the served bundle. `is_kept`:
/// the same bytes are stored already.
pub fn merge(
    here: &mut Document,
    brought: &[u8],
    is_stored: bool,
    is_kept: bool,
) -> (Merged, Option<Addition>) {
    let refused = |refusal: Refusal| (Merged::Refused(format!("its changes {refusal}")), None);
    let mut doc = match Document::read(brought, Rules::Admission) {
        Ok(doc) => doc,
        Err(refusal) => return refused(refusal),
    };
    let waits = doc.has_orphans();
    if doc.heads().is_empty() && !waits {
        return (Merged::Refused("it contains no change".to_owned()), None);
    }
    let is_known = !here.heads().is_empty() || here.has_orphans();
    let merged = match Ancestry::of(doc.automerge(), here.automerge()) {
        _ if waits && is_kept => return (Merged::Contained, None),
        _ if !is_known => Merged::New,
        _ if here.heads().is_empty() => Merged::Newer,
        Ancestry::Contained if !waits && is_stored => return (Merged::Contained, None),
        Ancestry::Unrelated => return (Merged::Unrelated, None),
        // So far only the served bundle has it.
        Ancestry::Contained | Ancestry::Newer if !is_stored => Merged::New,
        Ancestry::Contained | Ancestry::Newer => Merged::Newer,
    };
    // Changes that are good by themselves may not fit to those that are here.
    if is_known && let Err(refusal) = here.admit(brought, Rules::Admission) {
        return refused(refusal);
    }
    let addition = if waits {
        Addition::AsItCame
    } else {
        let heads = doc.heads().to_vec();
        Addition::Snapshot { data: doc.automerge().save(), heads }
    };
    (merged, Some(addition))
}

/// What has to be stored for a merge.
#[derive(Debug)]
pub enum Addition {
    /// A snapshot of the merged-in document, at these heads.
    Snapshot {
        /// The snapshot.
        data: Vec<u8>,
        /// Its heads.
        heads: Vec<ChangeHash>,
    },
    /// The received bytes: some of their changes wait for others.
    AsItCame,
}
