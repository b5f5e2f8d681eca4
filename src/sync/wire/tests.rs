use proptest::prelude::*;

use super::*;

const MAX: Size = Size::mib(256);

const ID: &str = "2XehcERzGALTcjP7C7VxwFJdWoEW";

fn id() -> DocumentId {
    ID.parse().expect("an id")
}

fn cbor(build: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Encoded<Vec<u8>>) -> Vec<u8> {
    encode(build).to_vec()
}

#[test]
fn what_cbor_x_writes_is_read() {
    // A float for a number, a tagged typed array, undefined fields, a map of indefinite length.
    let frame = cbor(|e| {
        e.begin_map()?.str("type")?.str("ephemeral")?;
        e.str("senderId")?.begin_str()?.str("peer-")?.str("1")?.end()?;
        e.str("targetId")?.undefined()?;
        e.str("count")?.f64(7.0)?;
        e.str("sessionId")?.str("s")?;
        e.str("documentId")?.str(ID)?;
        e.str("extra")?.array(2)?.map(0)?.begin_array()?.u8(1)?.end()?;
        e.str("data")?
            .tag(minicbor::data::Tag::new(64))?
            .begin_bytes()?
            .bytes(b"ab")?
            .bytes(b"c")?
            .end()?;
        e.end()?;
        Ok(())
    });
    assert_eq!(
        Message::decode(&frame),
        Ok(Message {
            sender: Some("peer-1".into()),
            target: None,
            body: Body::Ephemeral {
                document: id(),
                count: 7,
                session: "s".into(),
                data: b"abc".as_slice().into()
            },
        })
    );
}

#[test]
fn a_join_without_versions_is_one() {
    let frame = cbor(|e| {
        e.map(3)?.str("type")?.str("join")?.str("senderId")?.str("p")?;
        e.str("supportedProtocolVersions")?.undefined()?;
        Ok(())
    });
    let message = Message::decode(&frame).expect("a message");
    assert_eq!(message.body, Body::Join { versions: None });
    assert_eq!(
        Message::decode(&join("p")).expect("a message").body,
        Body::Join { versions: Some(vec!["1".into()]) }
    );
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let with = |kind: &str, document: &str| {
        cbor(|e| {
            e.map(2)?.str("type")?.str(kind)?.str("documentId")?.str(document)?;
            Ok(())
        })
    };
    assert_eq!(Message::decode(&cbor(|e| e.map(0).map(drop))), Err(WireError::Missing("type")));
    assert_eq!(Message::decode(&with("sync", ID)), Err(WireError::Missing("data")));
    assert_eq!(Message::decode(&with("ephemeral", ID)), Err(WireError::Missing("count")));
    for kind in ["sync", "request", "ephemeral", "doc-unavailable"] {
        let frame = with(kind, "../etc");
        let body = Message::decode(&frame).map(|message| message.body);
        assert_eq!(body, Ok(Body::UnusableId { kind, id: "../etc".into() }));
        assert_eq!(body.map(|body| body.name()), Ok(kind));
    }
    assert!(matches!(Message::decode(b"\xff\xff"), Err(WireError::Cbor(_))));
    assert!(matches!(Message::decode(b""), Err(WireError::Cbor(_))));
    assert_eq!(Message::decode(&with("brand-new", ID)).map(|m| m.body), Ok(Body::Unknown));
    let long = "x".repeat(MAX_NAME + 1);
    assert!(matches!(Message::decode(&with(&long, ID)), Err(WireError::Cbor(_))));
    for count in [-1.0, 0.5, f64::NAN, 1e300] {
        let frame = cbor(|e| {
            e.map(3)?.str("type")?.str("ephemeral")?.str("documentId")?.str(ID)?;
            e.str("count")?.f64(count).map(drop)
        });
        assert!(matches!(Message::decode(&frame), Err(WireError::Cbor(_))), "{count}");
    }
}

#[test]
fn an_unknown_type_may_use_every_field_for_something_else() {
    let with = |kind: &str, field: &str| {
        cbor(|e| {
            e.map(2)?.str(field)?.map(1)?.str("a")?.array(1)?.u8(1)?;
            e.str("type")?.str(kind).map(drop)
        })
    };
    for field in ["senderId", "targetId", "documentId", "sessionId", "message", "data", "count"] {
        let frame = with("brand-new", field);
        let body = Message::decode(&frame).map(|message| message.body);
        assert_eq!(body, Ok(Body::Unknown), "{field}");
    }
    let frame = with("error", "message");
    let text = Message::decode(&frame).map(|message| message.body);
    assert_eq!(text, Ok(Body::Error { message: "".into() }), "it is for the log alone");
    assert!(matches!(Message::decode(&with("leave", "senderId")), Err(WireError::Cbor(_))));
}

#[test]
fn frames_of_subduction_are_told_from_garbage() {
    for frame in [&b"SUM\0\x01"[..], b"SUX", b"SU"] {
        assert_eq!(Message::decode(frame), Err(WireError::Subduction));
    }
    assert!(matches!(Message::decode(b"SX"), Err(WireError::Cbor(_))));
}

#[test]
fn deep_nesting_is_skipped_without_a_stack() {
    let mut frame = cbor(|e| e.map(1)?.str("x").map(drop));
    frame.extend(std::iter::repeat_n(0x81, 2_000_000));
    assert!(Message::decode(&frame).is_err());
}

#[test]
fn heads_are_counted_as_automerge_counts_them() {
    use automerge::{
        Automerge, ROOT,
        sync::{State, SyncDoc},
        transaction::Transactable,
    };
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
fn bloom_filters_of_another_kind_count_as_empty() {
    let with_filter = |filter: &[u8]| {
        let mut data = vec![0x42, 0, 0, 1, 0, filter.len() as u8];
        data.extend(filter);
        data.push(0);
        let message = SyncMessage::read(data.into(), MAX).expect("a message");
        let again = automerge::sync::Message::decode(&message.raw).expect("a message");
        assert_eq!(again.have, message.message.have, "samod reads it again");
        message.message.have.first().map(|have| have.bloom.to_bytes())
    };
    assert_eq!(with_filter(&[]), Some(vec![]));
    assert_eq!(with_filter(&[1, 10, 7, 0, 0]), Some(vec![1, 10, 7, 0, 0]));
    // No bits at all: automerge divides by their number.
    assert_eq!(with_filter(&[1, 0, 1]), Some(vec![]));
    // Sixty-four probes, and four thousand million: automerge allocates them for every change.
    assert_eq!(with_filter(&[1, 8, 64, 0]), Some(vec![]));
    assert_eq!(with_filter(&[1, 10, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]), Some(vec![]));
    assert!(SyncMessage::read(Bytes::from_static(b"garbage"), MAX).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(&frame);
        let _ = (heads_in(&frame), SyncMessage::read(frame.into(), MAX));
    }

    #[test]
    fn a_message_with_bytes_changed_is_a_message_or_an_error(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut frame = ephemeral("a", "b", id(), 3, "s", b"data").to_vec();
        for (index, byte) in changes {
            let at = index.index(frame.len());
            frame[at] = byte;
        }
        let _ = Message::decode(&frame);
    }

    #[test]
    fn what_is_written_is_read(
        sender in ".{0,40}", target in ".{0,40}", data in proptest::collection::vec(any::<u8>(), 0..100),
        count: u64, request: bool,
    ) {
        let frame = sync(request, &sender, &target, id(), &data);
        let message = Message::decode(&frame).expect("a message");
        prop_assert_eq!(message.sender.as_deref(), Some(sender.as_str()));
        prop_assert_eq!(message.target.as_deref(), Some(target.as_str()));
        prop_assert_eq!(message.body, Body::Sync { document: id(), request, data: data.as_slice().into() });
        let frame = ephemeral(&sender, &target, id(), count, &sender, &data);
        let body = Message::decode(&frame).expect("a message").body;
        prop_assert_eq!(body, Body::Ephemeral { document: id(), count, session: sender.as_str().into(), data: data.as_slice().into() });
        let frame = doc_unavailable(&sender, &target, id());
        prop_assert_eq!(Message::decode(&frame).expect("a message").body, Body::DocUnavailable { document: id() });
        let frame = error(&sender, &target, "why");
        prop_assert_eq!(Message::decode(&frame).expect("a message").body, Body::Error { message: "why".into() });
        let frame = peer(&sender, &target, "id");
        prop_assert_eq!(Message::decode(&frame).expect("a message").body, Body::Peer);
    }
}

/// A sync message of version 1 with these hashes as needed, and changes in these parts.
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
fn a_bomb_in_parts_is_one() {
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
fn what_is_asked_for_twice_is_asked_for_once() {
    let (a, b) = ([1; 32], [2; 32]);
    let read = SyncMessage::read(message_of(&[b, a, b, a], &[]), MAX).expect("a message");
    assert_eq!(read.message.need.len(), 2);
    let again = automerge::sync::Message::decode(&read.raw).expect("the same for samod");
    assert_eq!(again.need, read.message.need);
    let once = message_of(&[a, b], &[]);
    assert_eq!(SyncMessage::read(once.clone(), MAX).expect("a message").raw, once, "as it came");
}

/// What is read of a message of which only so many bytes of its beginning and its end are left.
fn truncated(frame: &[u8], head: usize, tail: usize) -> Option<(&'static str, String)> {
    let missing = frame.len().checked_sub(head + tail)? as u64;
    let left = [&frame[..head], &frame[frame.len() - tail..]].concat();
    let truncation = Truncation { message: 0, head, missing };
    let read = Truncated::decode(&left, truncation)?;
    assert_eq!(read.size, frame.len() as u64);
    Some((read.kind, read.id.into_owned()))
}

#[test]
fn a_truncated_message_tells_its_document_whether_that_is_before_or_after_the_data() {
    let samod = cbor(|e| {
        e.map(4)?.str("type")?.str("sync")?.str("documentId")?.str(ID)?;
        e.str("senderId")?.str("a")?.str("data")?.bytes(&[0; 70_000])?;
        Ok(())
    });
    let automerge_repo = cbor(|e| {
        e.begin_map()?.str("type")?.str("sync")?.str("data")?.bytes(&[0; 70_000])?;
        e.str("documentId")?.str(ID)?.str("senderId")?.str("a")?.end()?;
        Ok(())
    });
    for frame in [samod, automerge_repo] {
        for (head, tail) in [(200, 200), (4_096, 4_096), (60_000, 120), (120, 60_000)] {
            assert_eq!(
                truncated(&frame, head, tail),
                Some(("sync", ID.to_owned())),
                "{head}, {tail}"
            );
        }
        // Every other way is none, and no panic.
        for head in 0..frame.len().min(300) {
            for tail in [0, 1, 20, 100, 300] {
                if let Some(read) = truncated(&frame, head, tail) {
                    assert_eq!(read, ("sync", ID.to_owned()), "{head}, {tail}");
                }
            }
        }
    }
}
