use std::num::NonZeroU64;

use automerge::{
    ActorId, ExpandedChange, ObjType, ROOT,
    marks::{ExpandMark, Mark},
    transaction::{CommitOptions, Transactable},
};

use super::*;

fn actor(n: u8) -> ActorId {
    ActorId::from([n; 16])
}

fn put(doc: &mut Automerge, key: &str) -> Vec<u8> {
    let before = doc.get_heads();
    doc.transact::<_, _, automerge::AutomergeError>(|tx| tx.put(ROOT, key, 1)).expect("an edit");
    doc.save_after(&before)
}

fn is_admitted(document: &mut Document, bytes: &[u8], by: &Automerge) {
    document.admit(bytes, Rules::Admission).expect("honest");
    assert_eq!(document.heads(), by.get_heads());
    assert_eq!(document.tally, Tally::of(by), "counting incrementally gives the same");
    let saved = document.automerge().save();
    assert!(loads(&saved, document.heads()));
}

#[test]
fn honest_changes_are_admitted_without_checking_the_whole_document() {
    let mut doc = Automerge::new().with_actor(actor(1));
    let mut document = Document::default();
    let mut tx = doc.transaction();
    let text = tx.put_object(ROOT, "text", ObjType::Text).expect("put");
    tx.splice_text(&text, 0, 0, &"long enough to be deflated ".repeat(100)).expect("typed");
    tx.commit();
    is_admitted(&mut document, &doc.save(), &doc);
    let mut other = doc.clone().with_actor(actor(2));
    for n in 0..20 {
        let before = doc.get_heads();
        for doc in [&mut doc, &mut other] {
            let mut tx = doc.transaction();
            tx.splice_text(&text, n, 1, "x").expect("typed");
            tx.commit();
            doc.empty_commit(CommitOptions::default());
        }
        if n % 3 == 0 {
            doc.merge(&mut other).expect("merges");
            other.merge(&mut doc).expect("merges");
        }
        doc.merge(&mut other.clone()).expect("merges");
        let changes = doc.get_changes(&before);
        let mut lineage = Lineage::new(document.automerge(), &changes, &before);
        assert!(changes.iter().all(|change| lineage.check(change) == Ok(true)));
        if n % 5 == 0 {
            document.sleep();
        }
        is_admitted(&mut document, &doc.save_after(&before), &doc);
    }
    let before = doc.get_heads();
    let mut tx = doc.transaction();
    tx.mark(&text, Mark::new("bold".to_owned(), true, 3, 9), ExpandMark::Both).expect("marked");
    tx.commit();
    is_admitted(&mut document, &doc.save_after(&before), &doc);
}

/// The authors answer each other, and another peer sends the changes of all at once.
#[test]
fn changes_of_authors_who_take_turns_are_proven_good() {
    let mut doc = Automerge::new();
    for n in 0..250 {
        doc.set_actor(actor(n % 5));
        put(&mut doc, &format!("k{n}"));
    }
    let changes = doc.get_changes(&[]);
    let nothing = Automerge::new();
    let mut lineage = Lineage::new(&nothing, &changes, &[]);
    assert!(changes.iter().all(|change| lineage.check(change) == Ok(true)));
    let mut document = Document::default();
    let first = doc.fork_at(&[changes[9].hash()]).expect("forks");
    is_admitted(&mut document, &first.save(), &first);
    let chunks: Vec<u8> = changes.iter().flat_map(|c| c.raw_bytes().to_vec()).collect();
    is_admitted(&mut document, &chunks, &doc);
}

#[test]
fn a_refusal_does_not_change_the_document() {
    let mut doc = Automerge::new().with_actor(actor(1));
    let mut document = Document::default();
    is_admitted(&mut document, &put(&mut doc, "a"), &doc);
    is_admitted(&mut document, &put(&mut doc, "b"), &doc);
    // Another change of the same actor, with the same number.
    let mut twin = Automerge::new().with_actor(actor(1));
    let refused = document.admit(&put(&mut twin, "twin"), Rules::Admission);
    assert!(matches!(refused, Err(Refusal::Unappliable(_))), "{refused:?}");
    assert!(!document.is_damaged());
    is_admitted(&mut document, &put(&mut doc, "c"), &doc);
    for garbage in [&b"garbage"[..], &doc.save()[..20]] {
        let refused = document.admit(garbage, Rules::Admission);
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{refused:?}");
    }
    let mut flipped = put(&mut doc, "d");
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    assert!(document.admit(&flipped, Rules::Admission).is_err(), "a bad checksum");
    let good: Vec<u8> = doc.save_after(document.heads());
    is_admitted(&mut document, &good, &doc);
}

#[test]
fn orphans_are_judged_when_their_dependencies_arrive() {
    let mut doc = Automerge::new().with_actor(actor(1));
    let mut document = Document::default();
    let (first, second, third) = (put(&mut doc, "a"), put(&mut doc, "b"), put(&mut doc, "c"));
    is_admitted(&mut document, &first, &doc.fork_at(&document_heads(&first)).expect("forks"));
    assert!(matches!(document.admit(&third, Rules::Admission), Ok(Admitted::Nothing)));
    assert!(document.has_orphans());
    let admitted = document.admit(&second, Rules::Admission).expect("honest");
    assert!(matches!(admitted, Admitted::Changes(new) if new.len() == 2));
    assert!(!document.has_orphans());
    assert_eq!(document.heads(), doc.get_heads());
}

/// One peer sends an unreadable change that waits for an honest change of another peer.
#[test]
fn a_bad_orphan_does_not_get_the_change_that_it_waits_for_refused() {
    let mut doc = Automerge::new().with_actor(actor(1));
    let mut document = Document::default();
    let first = put(&mut doc, "a");
    is_admitted(&mut document, &first, &doc);
    let mut early = doc.clone().with_actor(actor(2));
    let second = put(&mut doc, "b");
    // Two changes of one actor with one number: automerge can apply one of them.
    let twin = put(&mut doc.clone().with_actor(actor(2)), "twin");
    assert!(matches!(document.admit(&twin, Rules::Admission), Ok(Admitted::Nothing)));
    assert!(document.has_orphans());
    is_admitted(&mut document, &put(&mut early, "twin"), &early);
    assert!(!document.has_orphans(), "both have the same sequence number");
    // Numbered below what it waits for.
    let mut bad = ExpandedChange::from(&Change::try_from(&twin[..]).expect("a change"));
    (bad.actor_id, bad.start_op, bad.hash) = (actor(3), NonZeroU64::MIN, None);
    let bad = Change::from(bad);
    assert!(matches!(document.admit(bad.raw_bytes(), Rules::Admission), Ok(Admitted::Nothing)));
    assert!(document.has_orphans());
    early.apply_changes([Change::try_from(&second[..]).expect("a change")]).expect("merges");
    is_admitted(&mut document, &second, &early);
    assert!(!document.has_orphans(), "the bad one is dropped");
}

fn document_heads(change: &[u8]) -> Vec<ChangeHash> {
    vec![Change::try_from(change).expect("a change").hash()]
}

/// A reader derives a change's numbers from those of its dependencies, so all leaps count.
#[test]
fn skipped_numbers_are_counted_for_the_whole_document() {
    let mut tally = Tally::default();
    tally.add(1, 10, 0);
    assert_eq!(tally.check(), Ok(()));
    for n in 0..100 {
        tally.add(20_011 * (n + 1), 1, 20_011 * n + 10);
    }
    assert!(matches!(tally.check(), Err(Refusal::Leap { .. })), "{tally:?}");
    let before = tally;
    tally.add(tally.highest + 1, 1, tally.highest);
    assert_eq!(tally.check_after(&before), Ok(()), "stored faults may stay");
    // Each of many branches skips the same numbers.
    let mut tally = Tally::default();
    for _ in 0..20 {
        tally.add(900_000, 1, 0);
    }
    assert!(matches!(tally.check(), Err(Refusal::Skipped(_))), "{tally:?}");
}

/// After an empty change, `changeAt` may continue with the same actor at heads that do not include
/// it. automerge fails if it applies these in the wrong order.
#[test]
fn changes_of_one_actor_are_applied_in_its_order() {
    let mut doc = Automerge::new().with_actor(actor(1));
    put(&mut doc, "a");
    let first = doc.get_heads();
    doc.empty_commit(CommitOptions::default());
    let mut tx = doc.transaction_at(automerge::PatchLog::inactive(), &first).expect("at the first");
    tx.put(ROOT, "b", 1).expect("an edit");
    tx.commit();
    let changes = doc.get_changes(&[]);
    let [a, empty, b] = changes.as_slice() else { panic!("{} changes", changes.len()) };
    assert_eq!((b.actor_id(), b.seq(), b.deps()), (a.actor_id(), 3, first.as_slice()));
    for order in [[a, empty, b], [b, empty, a], [a, b, empty]] {
        let chunks: Vec<u8> = order.iter().flat_map(|change| change.raw_bytes().to_vec()).collect();
        let mut document = Document::default();
        is_admitted(&mut document, &chunks, &doc);
    }
}
