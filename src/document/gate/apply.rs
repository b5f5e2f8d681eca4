//! Applies changes to an automerge document, and decides whether they are admitted.

use std::collections::HashSet;

use automerge::{Automerge, Change, ChangeHash};

use super::{
    guard::guarded,
    lineage::Lineage,
    parse::loads,
    refusal::{MAX_HEADS, Refusal},
    rules::Rules,
    tally::Tally,
};
use crate::{
    config::Size,
    document::unpacked::{self, Origin},
};

/// Seconds since 1970. automerge stores differences of times, and fails where these overflow.
const MAX_TIME: u64 = 1 << 53;

/// A document after changes that are admitted.
pub(super) struct Applied {
    pub(super) heads: Vec<ChangeHash>,
    pub(super) tally: Tally,
    pub(super) new: Vec<Change>,
}

/// Applies changes to a document, and decides whether they are admitted. `before` are its heads.
/// `is_unusual`: only loading the document tells.
pub(super) fn apply_to(
    doc: &mut Automerge,
    changes: Vec<Change>,
    before: &[ChangeHash],
    mut tally: Tally,
    is_unusual: bool,
    rules: Rules,
) -> Result<Applied, Refusal> {
    guarded(|| doc.apply_changes(changes))?
        .map_err(|error| Refusal::Unappliable(error.to_string()))?;
    let heads = doc.get_heads();
    if heads == before {
        return Ok(Applied { heads, tally, new: Vec::new() });
    }
    let was = tally;
    if is_unusual && rules == Rules::Admission && !was.is_ambiguous {
        // automerge fails on some of these, which would say less.
        let Tally { is_ambiguous, .. } = guarded(|| Tally::of(doc))?;
        if is_ambiguous {
            return Err(Refusal::Unreadable);
        }
    }
    let (new, is_canonical) = guarded(|| {
        let new = doc.get_changes(before);
        let is_canonical = count(doc, &new, &heads, &mut tally);
        (new, is_canonical)
    })?;
    if is_unusual || !is_canonical {
        tally = guarded(|| Tally::of(doc))?;
        if !loads(&guarded(|| doc.save())?, &heads) {
            return Err(Refusal::Unreadable);
        }
    }
    if rules == Rules::Admission {
        if heads.len() > MAX_HEADS && heads.len() > before.len() {
            return Err(Refusal::Heads);
        }
        tally.check_after(&was)?;
    }
    Ok(Applied { heads, tally, new })
}

/// Counts changes that a document has now, and tells whether all of them will be written as they
/// came.
fn count(doc: &Automerge, new: &[Change], heads: &[ChangeHash], tally: &mut Tally) -> bool {
    let several = if new.len() > 1 { new } else { &[] };
    let deps: HashSet<&ChangeHash> = several.iter().flat_map(Change::deps).collect();
    let lineage = Lineage::new(doc, new, &[]);
    let mut is_canonical = true;
    for change in new {
        tally.add(change.start_op().get(), change.len() as u64, lineage.number_before(change));
        // Written in another form than it came in, it has another hash, which is not the
        // document's.
        let hash = change.hash();
        is_canonical &= heads.binary_search(&hash).is_ok() || deps.contains(&hash);
    }
    is_canonical
}

/// Whether automerge can apply a change, or stops in the middle of it.
pub(super) fn may_be_applied(change: &Change) -> Result<(), Refusal> {
    let fault = if change.seq() == 0 {
        "a change has the number 0"
    } else if change.seq() > 1 && change.author().is_some() {
        "a change that is not its actor's first names an author"
    } else if change.timestamp().unsigned_abs() > MAX_TIME {
        "a change has an impossible time"
    } else {
        return Ok(());
    };
    Err(Refusal::Unappliable(fault.to_owned()))
}

/// Whether a change begins or ends marks.
pub(super) fn has_marks(change: &Change) -> bool {
    let unpacked = unpacked::of(change.raw_bytes(), Origin::Storage, Size(u64::MAX));
    unpacked.map_or(true, |unpacked| unpacked.marks > 0)
}
