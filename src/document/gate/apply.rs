//! Applies changes to an automerge document, and decides whether they are admitted.

use std::collections::HashSet;

use automerge::{Automerge, Change, ChangeHash};

use super::{
    guard::catch_panic,
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

/// The latest time of a change, in seconds since 1970. automerge stores differences of times, and
/// fails where these overflow.
const MAX_TIME: u64 = 1 << 53;

/// What a document is after admitted changes.
pub(super) struct Applied {
    pub(super) heads: Vec<ChangeHash>,
    pub(super) tally: Tally,
    pub(super) new: Vec<Change>,
}

/// Applies changes to a document and decides whether they are admitted. `before` are its heads.
/// `needs_load`: the changes are not proven good, so the document has to be saved and loaded.
pub(super) fn apply_to(
    doc: &mut Automerge,
    changes: Vec<Change>,
    before: &[ChangeHash],
    mut tally: Tally,
    needs_load: bool,
    rules: Rules,
) -> Result<Applied, Refusal> {
    catch_panic(|| doc.apply_changes(changes))?
        .map_err(|error| Refusal::Unappliable(error.to_string()))?;
    let heads = doc.get_heads();
    if heads == before {
        return Ok(Applied { heads, tally, new: Vec::new() });
    }
    let tally_before = tally;
    if needs_load && rules == Rules::Admission && !tally_before.is_ambiguous {
        // automerge fails on some of these, which would be reported less clearly.
        let Tally { is_ambiguous, .. } = catch_panic(|| Tally::of(doc))?;
        if is_ambiguous {
            return Err(Refusal::Unreadable);
        }
    }
    let (new, is_canonical) = catch_panic(|| {
        let new = doc.get_changes(before);
        let is_canonical = count(doc, &new, &heads, &mut tally);
        (new, is_canonical)
    })?;
    if needs_load || !is_canonical {
        tally = catch_panic(|| Tally::of(doc))?;
        if !loads(&catch_panic(|| doc.save())?, &heads) {
            return Err(Refusal::Unreadable);
        }
    }
    if rules == Rules::Admission {
        if heads.len() > MAX_HEADS && heads.len() > before.len() {
            return Err(Refusal::Heads);
        }
        tally.check_after(&tally_before)?;
    }
    Ok(Applied { heads, tally, new })
}

/// Adds the `new` changes of a document to the tally. Returns whether all of them will be written
/// in the form in which they were received.
fn count(doc: &Automerge, new: &[Change], heads: &[ChangeHash], tally: &mut Tally) -> bool {
    let several = if new.len() > 1 { new } else { &[] };
    let deps: HashSet<&ChangeHash> = several.iter().flat_map(Change::deps).collect();
    let lineage = Lineage::new(doc, new, &[]);
    let mut is_canonical = true;
    for change in new {
        tally.add(change.start_op().get(), change.len() as u64, lineage.number_before(change));
        // In another form a change has another hash, which the document does not know.
        let hash = change.hash();
        is_canonical &= heads.binary_search(&hash).is_ok() || deps.contains(&hash);
    }
    is_canonical
}

/// Checks that automerge does not fail in the middle of applying a change.
pub(super) fn check_applicable(change: &Change) -> Result<(), Refusal> {
    let fault = if change.seq() == 0 {
        "a change has the sequence number 0"
    } else if change.seq() > 1 && change.author().is_some() {
        "a change that is not its actor's first has an author"
    } else if change.timestamp().unsigned_abs() > MAX_TIME {
        "a change has a time that is out of range"
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
