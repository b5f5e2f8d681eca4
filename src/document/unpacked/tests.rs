use std::{io::Write, time::Instant};

use automerge::{Automerge, ObjType, ROOT, ScalarValue, transaction::Transactable};
use flate2::{Compression, write::DeflateEncoder};
use proptest::prelude::*;

use super::{chunks::MAGIC, *};

const LIMIT: Size = Size::mib(256);

fn of(chunks: &[u8], limit: Size) -> Result<Unpacked, NotUnpacked> {
    super::of(chunks, Origin::Peer, limit)
}

fn is_too_much(chunks: &[u8]) -> bool {
    matches!(of(chunks, LIMIT), Err(NotUnpacked::TooMuch { limit: LIMIT, .. }))
}

/// A document with a list of `values` nulls, made in one change.
fn nulls(values: usize) -> Automerge {
    let mut doc = Automerge::new();
    let mut tx = doc.transaction();
    let list = tx.put_object(ROOT, "list", ObjType::List).expect("a list");
    let nulls = (0..values).map(|_| automerge::hydrate::Value::from(ScalarValue::Null));
    tx.splice(&list, 0, 0, nulls.collect::<Vec<_>>()).expect("nulls");
    tx.commit();
    doc
}

fn change_of(doc: &Automerge) -> Vec<u8> {
    doc.get_changes(&[]).pop().expect("a change").raw_bytes().to_vec()
}

/// A LEB128 number.
fn leb(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

fn chunk(kind: u8, data: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &[0; 4], &[kind], &leb(data.len() as u64), data].concat()
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).expect("written");
    encoder.finish().expect("finished")
}

/// A change chunk's data with one column.
fn change_with(specification: u64, column: &[u8]) -> Vec<u8> {
    let head = [0, 1, 7, 1, 1, 0, 0, 0, 1];
    [&head[..], &leb(specification), &leb(column.len() as u64), column].concat()
}

#[test]
fn estimates_count_what_chunks_hold() {
    let doc = nulls(1000);
    let change = of(&change_of(&doc), LIMIT).expect("small");
    // The list and its values.
    assert_eq!((change.changes, change.bytes / CHANGE_OPERATION), (1, 1002));
    let saved = of(&doc.save(), LIMIT).expect("small");
    assert_eq!(saved.changes, 1);
    assert!((100_000..110_000).contains(&saved.bytes), "{saved:?}");
    let mut text = Automerge::new();
    for n in 0..50 {
        let mut tx = text.transaction();
        tx.put(ROOT, "n", n).expect("put");
        tx.commit();
    }
    assert_eq!(of(&text.save(), LIMIT).expect("small").changes, 50);
    let each: Vec<u8> = text.get_changes(&[]).iter().flat_map(|c| c.raw_bytes().to_vec()).collect();
    assert_eq!(of(&each, LIMIT).expect("small").changes, 50);
}

#[test]
fn long_runs_are_refused_without_unpacking_them() {
    let start = Instant::now();
    // INSERT of a run, in the columns that automerge writes.
    let bomb = change_with(0x42, &[&leb(4_000_000)[..], &[0]].concat());
    for kind in [1, 2] {
        let data = if kind == 2 { deflate(&bomb) } else { bomb.clone() };
        assert!(is_too_much(&chunk(kind, &data)), "kind {kind}");
    }
    let nulls = change_with(0x42, &[&[0][..], &leb(u64::MAX)].concat());
    assert!(is_too_much(&chunk(1, &nulls)));
    let booleans = change_with(0x34, &leb(1 << 40));
    assert!(is_too_much(&chunk(1, &booleans)));
    let group = change_with(0x70, &[&leb(2)[..], &leb(1 << 62)].concat());
    assert!(is_too_much(&chunk(1, &group)), "counts of values a row");
    let document = [&[0, 0, 0, 1][..], &leb(0x42), &leb(6), &leb(1 << 34), &[1]].concat();
    assert!(is_too_much(&chunk(0, &document)));
    assert!(start.elapsed().as_millis() < 100, "{:?}", start.elapsed());
}

#[test]
fn repeated_texts_count_for_each_change() {
    // 100,000 changes in a run, whose message is one text of 100 kB in a run, deflated.
    let text = [&leb(100_000)[..], &leb(100_000), &vec![b'a'; 100_000]].concat();
    let (text, actors) = (deflate(&text), [&leb(100_000)[..], &leb(1)].concat());
    let columns =
        [&leb(0x01)[..], &leb(actors.len() as u64), &leb(0x35 | 8), &leb(text.len() as u64)]
            .concat();
    let document = [&[1, 1, 7, 0, 2][..], &columns, &[0], &actors, &text].concat();
    assert!(is_too_much(&chunk(0, &document)));
    let long = vec![7u8; 50_000];
    let document = [
        &[1][..],
        &leb(50_000),
        &long,
        &[0, 1],
        &leb(0x01),
        &leb(actors.len() as u64),
        &[0],
        &actors,
    ]
    .concat();
    assert!(is_too_much(&chunk(0, &document)), "an actor's id");
}

#[test]
fn malformed_chunks_are_refused() {
    let whole = change_of(&nulls(10));
    assert_eq!(of(&whole[..20], LIMIT), Err(NotUnpacked::Malformed), "a part of a chunk");
    assert_eq!(of(&[whole.as_slice(), b"more"].concat(), LIMIT), Err(NotUnpacked::Malformed));
    let columns: Vec<u8> =
        (0..1001u64).flat_map(|n| [leb(((n + 20) << 4) | 2), leb(0)].concat()).collect();
    let change = [&[0, 1, 7, 1, 1, 0, 0, 0][..], &leb(1001), &columns].concat();
    assert!(is_too_much(&chunk(1, &change)), "too many columns");
}

#[test]
fn deflated_data_is_read_only_up_to_the_limit() {
    let zeros = vec![0u8; 300 << 20];
    let packed = deflate(&zeros);
    drop(zeros);
    let start = Instant::now();
    // A deflated column of values, and a change that is deflated as a whole and has a long message.
    let document = [&[0, 0, 0, 1][..], &leb(0x5f), &leb(packed.len() as u64), &packed].concat();
    assert!(is_too_much(&chunk(0, &document)));
    let head = [&[0u8, 1, 7, 1, 1, 0][..], &leb(300 << 20)].concat();
    let mut change = DeflateEncoder::new(Vec::new(), Compression::best());
    change.write_all(&head).expect("written");
    for _ in 0..300 {
        change.write_all(&vec![b'a'; 1 << 20]).expect("written");
    }
    let change = change.finish().expect("finished");
    let made = start.elapsed();
    assert!(is_too_much(&chunk(2, &change)));
    assert!((start.elapsed() - made).as_millis() < 500, "{:?}", start.elapsed() - made);
}

#[test]
fn large_inputs_may_exceed_the_limit() {
    let mut random = 1u64;
    let text: String = (0..200_000)
        .map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            char::from(b'a' + (random % 26) as u8)
        })
        .collect();
    let mut doc = Automerge::new();
    let mut tx = doc.transaction();
    let object = tx.put_object(ROOT, "text", ObjType::Text).expect("a text");
    tx.splice_text(&object, 0, 0, &text).expect("text");
    tx.commit();
    let saved = doc.save();
    let small = Size::mib(8);
    assert!(of(&saved, Size::mib(1)).is_err(), "more than four times the limit");
    assert!(of(&saved, small).expect("in proportion").bytes > small.0);
    assert!(of(&nulls(200_000).save(), small).is_err(), "the input is too small for that");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kind in 0u8..5,
    ) {
        let _ = of(&bytes, LIMIT);
        let _ = of(&chunk(kind, &bytes), LIMIT);
    }

    #[test]
    fn a_truncated_chunk_does_not_make_it_panic(cut in 0usize..2000) {
        let saved = nulls(300).save();
        let _ = of(&saved[..cut.min(saved.len())], LIMIT);
    }

    #[test]
    fn numbers_are_read_back(number in any::<u64>()) {
        prop_assert_eq!(unsigned(&mut &leb(number)[..]).expect("a number"), number);
    }
}

#[test]
fn booleans_that_automerge_reads_endlessly_are_refused() {
    const INSERTS: u64 = 0x34;
    assert!(of(&chunk(1, &change_with(INSERTS, &[1, 2])), LIMIT).is_ok());
    for endless in [&[0x80][..], &[1, 0xff], &[0x80; 12], &[&[0x80; 12][..], &[0]].concat()] {
        assert_eq!(
            of(&chunk(1, &change_with(INSERTS, endless)), LIMIT),
            Err(NotUnpacked::Malformed)
        );
    }
}

#[test]
fn marks_count_by_their_cost() {
    let marks = |count: u64| chunk(1, &change_with(0x42, &[leb(count), leb(7)].concat()));
    assert_eq!(of(&marks(60), LIMIT).expect("few").marks, 60);
    assert!(is_too_much(&marks(1 << 18)));
    let stored = super::of(&marks(1 << 17), Origin::Storage, LIMIT);
    assert_eq!(stored.expect("stored already").marks, 1 << 17);
}
