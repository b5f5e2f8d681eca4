//! Whether a document can be written and read again.
//!
//! automerge 0.12 applies changes that it cannot write as they came: with runs of another form than its own, with
//! operations that are numbered below what they depend on, with ends of marks that never began. What it then saves does
//! not load, here or at a peer. So changes are looked at before anybody else has them.

use std::collections::HashMap;

use automerge::{Automerge, ChangeHash};

/// Whether what was saved of a document loads, and is the whole of it.
pub(super) fn loads(saved: &[u8], heads: &[ChangeHash]) -> bool {
    Automerge::load(saved).is_ok_and(|doc| doc.get_heads() == heads)
}

/// How changes look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// As automerge writes its own.
    Sound,
    /// Of another form; they may be good all the same, which [`loads`] tells.
    Odd,
    /// Not every automerge loads a document with them.
    Bad,
}

/// Look at the changes since some heads, which are written as `new`.
pub(super) fn look(doc: &Automerge, since: &[ChangeHash], new: &[u8]) -> Look {
    let changes = doc.get_changes_meta(since);
    let mut last_ops: HashMap<ChangeHash, u64> = HashMap::with_capacity(changes.len());
    let mut checksums = checksums(new);
    for change in changes {
        if checksums.next() != change.hash.0.first_chunk() {
            return Look::Odd;
        }
        let last_op_of = |dep: &ChangeHash| {
            let found = last_ops.get(dep).copied();
            found.or_else(|| Some(doc.get_change_meta_by_hash(dep)?.max_op))
        };
        let Some(before) = change
            .deps
            .iter()
            .map(last_op_of)
            .try_fold(0, |most, last| last.map(|last| most.max(last)))
        else {
            return Look::Odd;
        };
        // Without operations that are numbered, nothing tells where they begin.
        if change.max_op < change.start_op && change.start_op != before + 1 {
            return Look::Bad;
        }
        if change.start_op <= before {
            return Look::Odd;
        }
        last_ops.insert(change.hash, change.max_op);
    }
    if checksums.next().is_none() { Look::Sound } else { Look::Odd }
}

/// The checksums of chunks: the beginnings of the hashes of the changes in them, also of deflated ones
/// (<https://automerge.org/automerge-binary-format-spec/>, 3.1).
fn checksums(mut chunks: &[u8]) -> impl Iterator<Item = &[u8; 4]> {
    std::iter::from_fn(move || {
        let (_, rest) = chunks.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        let (_, rest) = rest.split_first()?;
        let (length, rest) = leb128(rest)?;
        chunks = rest.get(length..)?;
        Some(checksum)
    })
}

/// A number in LEB128, and what follows.
fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let size = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = bytes.split_at_checked(size)?;
    let fold = |sum: usize, byte: &u8| sum.checked_mul(128)?.checked_add(usize::from(byte & 0x7f));
    Some((number.iter().rev().try_fold(0, fold)?, rest))
}

#[cfg(test)]
mod tests {
    use automerge::{
        ActorId, ROOT,
        marks::{ExpandMark, Mark},
        transaction::Transactable,
    };

    use super::*;

    #[test]
    fn what_automerge_writes_itself_looks_sound() {
        let mut doc = Automerge::new();
        let mut tx = doc.transaction();
        let text = tx.put_object(ROOT, "text", automerge::ObjType::Text).expect("put");
        tx.splice_text(&text, 0, 0, &"long enough to be deflated ".repeat(100)).expect("typed");
        tx.commit();
        let before = doc.get_heads();
        let mut other = doc.fork().with_actor(ActorId::from([9; 16]));
        for doc in [&mut doc, &mut other] {
            for n in 0..5 {
                let mut tx = doc.transaction();
                tx.splice_text(&text, n, 1, "x").expect("typed");
                tx.put(ROOT, "n", n as i64).expect("put");
                tx.commit();
                doc.empty_commit(automerge::transaction::CommitOptions::default());
            }
        }
        let mut tx = other.transaction();
        tx.mark(&text, Mark::new("bold".to_owned(), true, 3, 9), ExpandMark::Both).expect("marked");
        tx.commit();
        doc.merge(&mut other).expect("merged");
        assert_eq!(look(&doc, &before, &doc.save_after(&before)), Look::Sound);
        assert_eq!(look(&doc, &[], &doc.save_after(&[])), Look::Sound);
        assert_eq!(look(&doc, &[], &doc.save_after(&before)), Look::Odd, "other changes");
        assert!(loads(&doc.save(), &doc.get_heads()));
        assert!(!loads(&doc.save(), &before) && !loads(&[1, 2, 3], &before));
    }
}
