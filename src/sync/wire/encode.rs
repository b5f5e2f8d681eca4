//! Encodes the messages that the relay sends.

use std::fmt;

use automerge::ChangeHash;
use bytes::Bytes;
use minicbor::{
    Encoder,
    encode::{Error as EncodeError, Write},
};

use crate::base::document_id::DocumentId;

/// More than the names and the document id of a message take, in bytes.
const FIELDS: usize = 128;

/// The protocol version that this relay speaks.
pub const VERSION: &str = "1";

pub(super) type Encoded<W> = Result<(), EncodeError<<W as Write>::Error>>;

pub(super) fn encode(build: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Encoded<Vec<u8>>) -> Bytes {
    encode_sized(0, build)
}

/// Encodes a message of about this many bytes, with one allocation.
fn encode_sized(
    size: usize,
    build: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Encoded<Vec<u8>>,
) -> Bytes {
    let mut out = Vec::with_capacity(size);
    match build(&mut Encoder::new(&mut out)) {
        Ok(()) => out.into(),
        // Writing to a Vec cannot fail, and no value written here has a form of its own that can.
        Err(error) => unreachable!("{error}"),
    }
}

/// `peer`: the answer to a join.
pub fn peer(us: &str, target: &str, storage_id: &str) -> Bytes {
    encode(|e| {
        e.map(5)?.str("type")?.str("peer")?;
        e.str("senderId")?.str(us)?.str("targetId")?.str(target)?;
        e.str("selectedProtocolVersion")?.str(VERSION)?;
        e.str("peerMetadata")?.map(2)?;
        e.str("storageId")?.str(storage_id)?.str("isEphemeral")?.bool(false)?;
        Ok(())
    })
}

/// `sync`, or `request`: an automerge sync message.
pub fn sync(request: bool, us: &str, target: &str, document: DocumentId, data: &[u8]) -> Bytes {
    encode_sized(FIELDS + us.len() + target.len() + data.len(), |e| {
        e.map(5)?.str("type")?.str(if request { "request" } else { "sync" })?;
        e.str("senderId")?.str(us)?.str("targetId")?.str(target)?;
        e.str("documentId")?.str(&document.to_string())?;
        e.str("data")?.bytes(data)?;
        Ok(())
    })
}

/// `doc-unavailable`: nobody here has the document.
pub fn doc_unavailable(us: &str, target: &str, document: impl fmt::Display) -> Bytes {
    encode(|e| {
        e.map(4)?.str("type")?.str("doc-unavailable")?;
        e.str("senderId")?.str(us)?.str("targetId")?.str(target)?;
        e.str("documentId")?.str(&document.to_string())?;
        Ok(())
    })
}

/// `ephemeral`: presence and the like, passed on with its author's name.
pub fn ephemeral(
    author: &str,
    target: &str,
    document: DocumentId,
    count: u64,
    session: &str,
    data: &[u8],
) -> Bytes {
    Ephemeral::new(author, document, count, session, data).to(target)
}

/// An `ephemeral` message that is sent to many peers. It is encoded once, in two parts: each frame
/// has its receiver's name between them.
pub struct Ephemeral {
    before: Bytes,
    after: Bytes,
}

impl Ephemeral {
    /// A message of `author`, without a receiver.
    pub fn new(author: &str, document: DocumentId, count: u64, session: &str, data: &[u8]) -> Self {
        let before = encode(|e| {
            e.map(7)?.str("type")?.str("ephemeral")?;
            e.str("senderId")?.str(author)?.str("targetId")?;
            Ok(())
        });
        let after = encode_sized(FIELDS + session.len() + data.len(), |e| {
            e.str("count")?.u64(count)?.str("sessionId")?.str(session)?;
            e.str("documentId")?.str(&document.to_string())?;
            e.str("data")?.bytes(data)?;
            Ok(())
        });
        Self { before, after }
    }

    /// The frame for one receiver.
    pub fn to(&self, target: &str) -> Bytes {
        // A text's length takes at most nine bytes.
        let size = self.before.len() + 9 + target.len() + self.after.len();
        encode_sized(size, |e| {
            e.writer_mut().extend_from_slice(&self.before);
            e.str(target)?.writer_mut().extend_from_slice(&self.after);
            Ok(())
        })
    }
}

/// `remote-heads-changed`: the heads of a document that are durable in a storage, as of a time in
/// milliseconds since 1970. Heads are written as automerge-repo 2.5 does it (`AutomergeUrl.ts`,
/// `encodeHeads`: base58check), the time as cbor-x does it (float64).
pub fn remote_heads_changed(
    us: &str,
    target: &str,
    document: DocumentId,
    storage_id: &str,
    heads: &[ChangeHash],
    timestamp: u64,
) -> Bytes {
    encode(|e| {
        e.map(5)?.str("type")?.str("remote-heads-changed")?;
        e.str("senderId")?.str(us)?.str("targetId")?.str(target)?;
        e.str("documentId")?.str(&document.to_string())?;
        e.str("newHeads")?.map(1)?.str(storage_id)?.map(2)?;
        e.str("heads")?.array(heads.len() as u64)?;
        for head in heads {
            e.str(&bs58::encode(head.0).with_check().into_string())?;
        }
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        e.str("timestamp")?.f64(timestamp as f64)?;
        Ok(())
    })
}

/// `remote-subscription-change`: subscribes to what a storage has of documents.
pub fn subscribe(us: &str, target: &str, storage_id: &str) -> Bytes {
    encode(|e| {
        e.map(4)?.str("type")?.str("remote-subscription-change")?;
        e.str("senderId")?.str(us)?.str("targetId")?.str(target)?;
        e.str("add")?.array(1)?.str(storage_id)?;
        Ok(())
    })
}

/// `error`: sent before a socket is closed.
pub fn error(us: &str, target: &str, message: &str) -> Bytes {
    encode(|e| {
        e.map(4)?.str("type")?.str("error")?;
        e.str("senderId")?.str(us)?.str("targetId")?.str(target)?;
        e.str("message")?.str(message)?;
        Ok(())
    })
}

/// `join`: what a peer says first.
pub fn join(sender: &str) -> Bytes {
    encode(|e| {
        e.map(4)?.str("type")?.str("join")?.str("senderId")?.str(sender)?;
        e.str("peerMetadata")?.map(1)?.str("isEphemeral")?.bool(true)?;
        e.str("supportedProtocolVersions")?.array(1)?.str(VERSION)?;
        Ok(())
    })
}
