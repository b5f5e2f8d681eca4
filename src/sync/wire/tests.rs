use proptest::prelude::*;

use minicbor::Encoder;

use super::{
    encode::{Encoded, encode},
    *,
};

const ID: &str = "2XehcERzGALTcjP7C7VxwFJdWoEW";

fn body(frame: &[u8]) -> Body<'_> {
    Message::decode(frame).expect("a message").body
}

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

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(
        frame in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = Message::decode(&frame);
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
        sender in ".{0,40}", target in ".{0,40}",
        data in proptest::collection::vec(any::<u8>(), 0..100),
        count: u64, request: bool,
    ) {
        let sent = Cow::Borrowed(data.as_slice());
        let frame = sync(request, &sender, &target, id(), &data);
        let message = Message::decode(&frame).expect("a message");
        prop_assert_eq!(message.sender.as_deref(), Some(sender.as_str()));
        prop_assert_eq!(message.target.as_deref(), Some(target.as_str()));
        prop_assert_eq!(message.body, Body::Sync { document: id(), request, data: sent.clone() });
        let frame = ephemeral(&sender, &target, id(), count, &sender, &data);
        let session = sender.as_str().into();
        let presence = Body::Ephemeral { document: id(), count, session, data: sent };
        prop_assert_eq!(body(&frame), presence);
        let frame = doc_unavailable(&sender, &target, id());
        prop_assert_eq!(body(&frame), Body::DocUnavailable { document: id() });
        let frame = error(&sender, &target, "why");
        prop_assert_eq!(body(&frame), Body::Error { message: "why".into() });
        let frame = peer(&sender, &target, "id");
        prop_assert_eq!(body(&frame), Body::Peer);
    }
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
