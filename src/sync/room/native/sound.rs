//! Whether a document can be written and read again.
//!
//! automerge 0.12 applies changes that it cannot write as they came: with runs of another form than its own, with
//! operations that are numbered below what they depend on, with ends of marks that never began. What it then saves does
//! not load, here or at a peer. So changes are looked at before anybody else has them.

use std::collections::HashSet;

use automerge::{Automerge, Change, ChangeHash};

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

/// Look at changes that a document has taken in, as it would write them, in its order. `heads` are those of the document
/// now; `last_op` is the number of its last operation before, and is moved on.
pub(super) fn look(
    doc: &Automerge,
    changes: &[Change],
    heads: &[ChangeHash],
    last_op: &mut u64,
) -> Look {
    let deps: HashSet<&ChangeHash> = match changes {
        [_] => HashSet::new(),
        _ => changes.iter().flat_map(Change::deps).collect(),
    };
    let mut look = Look::Sound;
    for change in changes {
        let (hash, start) = (change.hash(), change.start_op().get());
        // Written in another form, it has another hash, which is none of the document's.
        if heads.binary_search(&hash).is_err() && !deps.contains(&hash) {
            look = Look::Odd;
        }
        if start <= *last_op || change.is_empty() {
            let last_op_of = |dep| doc.get_change_meta_by_hash(dep).map(|dep| dep.max_op);
            let before = change.deps().iter().map(last_op_of).max().unwrap_or(Some(0));
            match before {
                // Without operations that are numbered, nothing tells where they begin.
                Some(before) if change.is_empty() && start != before + 1 => return Look::Bad,
                Some(before) if start > before => {}
                _ => look = Look::Odd,
            }
        }
        *last_op = change.max_op().max(*last_op);
    }
    look
}

/// The number of a document's last operation, by its heads: what they depend on came before.
pub(super) fn last_op(doc: &Automerge) -> u64 {
    let heads = doc.get_heads();
    heads
        .iter()
        .filter_map(|head| doc.get_change_meta_by_hash(head))
        .map(|head| head.max_op)
        .max()
        .unwrap_or(0)
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
        let (before, first) = (doc.get_heads(), doc.clone());
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
        for (since, mut last) in [(before.clone(), last_op(&first)), (Vec::new(), 0)] {
            let changes = doc.get_changes(&since);
            assert_eq!(look(&doc, &changes, &doc.get_heads(), &mut last), Look::Sound);
            assert_eq!(last, last_op(&doc));
        }
        let one = doc.get_changes(&doc.get_heads()[..1]);
        assert_eq!(look(&doc, &one, &before, &mut 0), Look::Odd, "with other heads");
        assert!(loads(&doc.save(), &doc.get_heads()));
        assert!(!loads(&doc.save(), &before) && !loads(&[1, 2, 3], &before));
    }
}
