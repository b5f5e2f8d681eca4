//! What becomes of a document that is brought beside one that is stored.

use automerge::{Automerge, ChangeHash};
use serde::{Deserialize, Serialize};

use super::gate::{Document, Refusal, Rules};

/// How a snapshot stands to a document of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ancestry {
    /// The document has all of it.
    Contained,
    /// They share changes, and the snapshot has more.
    Newer,
    /// They share no change: two documents that were given one id.
    Unrelated,
}

impl Ancestry {
    /// Compare `snapshot` with `document`, neither of them empty.
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

/// What became of a document that was to be merged with what is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Merged {
    /// There was none of its id.
    New,
    /// It has changes that the stored one lacked.
    Newer,
    /// All of it was there.
    Contained,
    /// The stored one shares no change with it and stays as it is.
    Unrelated,
    /// It was deleted here and stays so.
    Deleted,
    /// An operator keeps it from everybody.
    Blocked,
    /// There is no room for a new document.
    NoSpace,
    /// With what is stored it would be larger than a document may be.
    TooLarge,
    /// It may not become part of the document, for this reason.
    Refused(String),
    /// What is stored of it cannot be read, or it cannot be written.
    Failed(String),
}

/// Compares a document that is brought, `brought`, with `here`, what is known of it, and merges them. `is_stored`: some of
/// what is known is in storage, and not in the served bundle alone. `is_kept`: the same bytes are stored. Takes processor time.
///
/// Returns what became of it, and what has to be stored for that.
pub fn compare(
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
        return (Merged::Refused("it holds no change".to_owned()), None);
    }
    let is_known = !here.heads().is_empty() || here.has_orphans();
    let merged = match Ancestry::of(doc.automerge(), here.automerge()) {
        _ if waits && is_kept => return (Merged::Contained, None),
        _ if !is_known => Merged::New,
        _ if here.heads().is_empty() => Merged::Newer,
        Ancestry::Contained if !waits && is_stored => return (Merged::Contained, None),
        Ancestry::Unrelated => return (Merged::Unrelated, None),
        // The served bundle alone has it so far.
        Ancestry::Contained | Ancestry::Newer if !is_stored => Merged::New,
        Ancestry::Contained | Ancestry::Newer => Merged::Newer,
    };
    // Good by itself, it may not fit what is here.
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

/// What has to be stored of a document that was brought.
#[derive(Debug)]
pub enum Addition {
    /// A snapshot of it, at these heads.
    Snapshot {
        /// The snapshot.
        data: Vec<u8>,
        /// Its heads.
        heads: Vec<ChangeHash>,
    },
    /// The bytes as they came: changes that wait for others.
    AsItCame,
}
