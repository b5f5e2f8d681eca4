use automerge::{
    Automerge, ROOT,
    sync::{State, SyncDoc},
    transaction::Transactable,
};
use proptest::prelude::*;

use super::*;

const MAX: Size = Size::mib(256);

#[test]
fn heads_are_counted_as_automerge_counts_them() {
    let mut doc = Automerge::new();
    let empty = doc.generate_sync_message(&mut State::new()).expect("a message").encode();
    assert_eq!(heads_in(&empty), Some(0));
    doc.transact::<_, _, automerge::AutomergeError>(|tx| tx.put(ROOT, "a", 1)).expect("an edit");
    let one = doc.generate_sync_message(&mut State::new()).expect("a message").encode();
    assert_eq!(heads_in(&one), Some(1));
    assert_eq!(heads_in(b"nothing"), None);
    assert_eq!(heads_in(b""), None);
}

#[test]
fn a_bloom_filter_that_automerge_would_not_build_is_emptied() {
    let with_filter = |filter: &[u8]| {
        let mut data = vec![0x42, 0, 0, 1, 0, filter.len() as u8];
        data.extend(filter);
        data.push(0);
        let message = SyncMessage::read(data.into(), MAX).expect("a message");
        let again = Message::decode(&message.raw).expect("a message");
        assert_eq!(again.have, message.message.have, "samod reads it again");
        message.message.have.first().map(|have| have.bloom.to_bytes())
    };
    assert_eq!(with_filter(&[]), Some(vec![]));
    assert_eq!(with_filter(&[1, 10, 7, 0, 0]), Some(vec![1, 10, 7, 0, 0]));
    // No bits: automerge divides by their number.
    assert_eq!(with_filter(&[1, 0, 1]), Some(vec![]));
    // 64 probes, and 4,294,967,295: automerge allocates them for every change.
    assert_eq!(with_filter(&[1, 8, 64, 0]), Some(vec![]));
    assert_eq!(with_filter(&[1, 10, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]), Some(vec![]));
    assert!(SyncMessage::read(Bytes::from_static(b"garbage"), MAX).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (heads_in(&data), SyncMessage::read(data.into(), MAX));
    }
}

/// A sync message of version 1 that needs these hashes and has changes in these parts.
fn message_of(need: &[[u8; 32]], parts: &[&[u8]]) -> Bytes {
    let mut out = vec![0x42, 1];
    out.extend([7; 32]);
    out.push(u8::try_from(need.len()).expect("few"));
    need.iter().for_each(|hash| out.extend(hash));
    out.extend([0, u8::try_from(parts.len()).expect("few")]);
    for part in parts {
        out.push(u8::try_from(part.len()).expect("short"));
        out.extend(*part);
    }
    out.into()
}

#[test]
fn a_decompression_bomb_in_parts_is_refused() {
    // A change chunk with one column that is a single run of 2^35 values.
    let column = [0x80, 0x80, 0x80, 0x80, 0x80, 1, 0];
    let data = [&[0, 1, 7, 1, 1, 0, 0, 0, 1, 0x42, 7][..], &column].concat();
    let chunk = [&[0x85, 0x6f, 0x4a, 0x83, 0, 0, 0, 0, 1, data.len() as u8][..], &data].concat();
    let bomb = |parts: &[&[u8]]| SyncMessage::read(message_of(&[], parts), MAX).map(drop);
    let is_too_much = |read| {
        matches!(read, Err(BadSyncMessage::Unpacks(NotUnpacked::TooMuch { limit: MAX, .. })))
    };
    assert!(is_too_much(bomb(&[&chunk])));
    for at in 1..chunk.len() {
        let (one, other) = chunk.split_at(at);
        assert!(is_too_much(bomb(&[one, other])), "cut at {at}");
    }
    assert!(matches!(bomb(&[&chunk[..20]]), Err(BadSyncMessage::Unpacks(NotUnpacked::Malformed))));
}

#[test]
fn duplicate_needs_are_removed() {
    let (a, b) = ([1; 32], [2; 32]);
    let read = SyncMessage::read(message_of(&[b, a, b, a], &[]), MAX).expect("a message");
    assert_eq!(read.message.need.len(), 2);
    let again = Message::decode(&read.raw).expect("the same for samod");
    assert_eq!(again.need, read.message.need);
    let once = message_of(&[a, b], &[]);
    assert_eq!(SyncMessage::read(once.clone(), MAX).expect("a message").raw, once, "as it came");
}
