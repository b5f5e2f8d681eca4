//! Messages of the automerge-repo network protocol, version 1, which are CBOR maps. No I/O.
//!
//! Source: automerge-repo 2.5, `packages/automerge-repo/src/network/messages.ts` and
//! `packages/automerge-repo-network-websocket/src/messages.ts`. JavaScript peers encode with
//! cbor-x, so numbers may be floats, byte strings may carry a typed-array tag, absent fields may be
//! `undefined`, and lengths may be indefinite; all of that is read here.

mod encode;

use std::borrow::Cow;

use minicbor::{Decoder, data::Type, decode::Error as DecodeError};

pub use self::encode::{
    Ephemeral, VERSION, doc_unavailable, ephemeral, error, join, peer, remote_heads_changed,
    subscribe, sync,
};
use super::truncating::Truncation;
use crate::base::document_id::DocumentId;

/// Longest accepted peer id, session id or version name, in bytes.
const MAX_NAME: usize = 1024;
/// Most names in a list, such as the protocol versions of a join.
const MAX_NAMES: usize = 1024;

/// First bytes of frames of Subduction, a future protocol of automerge-repo: "SUM", or "SU" and
/// another letter. No CBOR map begins with them.
const SUBDUCTION: &[u8] = b"SU";

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum WireError {
    #[error("is not a CBOR map of a message: {0}")]
    Cbor(String),
    #[error("has no {0}")]
    Missing(&'static str),
    #[error(
        "belongs to the Subduction protocol; this relay speaks automerge-repo protocol version 1"
    )]
    Subduction,
}

/// A received message. Texts and bytes are borrowed from the frame where its encoding allows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message<'a> {
    /// Who sent it, according to the sender. Not every type has it.
    pub sender: Option<Cow<'a, str>>,
    /// The recipient.
    pub target: Option<Cow<'a, str>>,
    /// The fields of its type.
    pub body: Body<'a>,
}

/// The fields of a message's type.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the protocol's own names")]
pub enum Body<'a> {
    Join {
        /// None if the field is absent, which means version 1.
        versions: Option<Vec<Cow<'a, str>>>,
    },
    Peer,
    Leave,
    Sync {
        document: DocumentId,
        /// A `request` comes from a peer that does not hold the document.
        request: bool,
        data: Cow<'a, [u8]>,
    },
    DocUnavailable {
        document: DocumentId,
    },
    Ephemeral {
        document: DocumentId,
        count: u64,
        session: Cow<'a, str>,
        data: Cow<'a, [u8]>,
    },
    Error {
        message: Cow<'a, str>,
    },
    RemoteSubscriptionChange {
        /// Storage ids to whose heads the peer subscribes.
        add: Vec<Cow<'a, str>>,
        remove: Vec<Cow<'a, str>>,
    },
    RemoteHeadsChanged,
    /// A message about a document whose id is not a [`DocumentId`]. automerge-repo lets an
    /// application choose such ids.
    UnusableId {
        /// The message's type.
        kind: &'static str,
        /// The id as it was received.
        id: Cow<'a, str>,
    },
    /// A type that this version of the protocol does not have.
    Unknown,
}

impl Body<'_> {
    /// The type's name, for metrics: one of a fixed set.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Join { .. } => "join",
            Self::Peer => "peer",
            Self::Leave => "leave",
            Self::Sync { request: true, .. } => "request",
            Self::Sync { request: false, .. } => "sync",
            Self::DocUnavailable { .. } => "doc-unavailable",
            Self::Ephemeral { .. } => "ephemeral",
            Self::Error { .. } => "error",
            Self::RemoteSubscriptionChange { .. } => "remote-subscription-change",
            Self::RemoteHeadsChanged => "remote-heads-changed",
            Self::UnusableId { kind, .. } => kind,
            Self::Unknown => "unknown",
        }
    }
}

/// Where the value of each field begins in the frame.
///
/// What a field may contain depends on the message's type, so values are read once the type is
/// known: a type that this relay does not know may use the same names for something else.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<Decoder<'a>>,
    sender: Option<Decoder<'a>>,
    target: Option<Decoder<'a>>,
    document: Option<Decoder<'a>>,
    session: Option<Decoder<'a>>,
    message: Option<Decoder<'a>>,
    data: Option<Decoder<'a>>,
    count: Option<Decoder<'a>>,
    versions: Option<Decoder<'a>>,
    add: Option<Decoder<'a>>,
    remove: Option<Decoder<'a>>,
}

impl<'a> Message<'a> {
    /// Parses a frame.
    ///
    /// # Errors
    /// It is not a CBOR map, or lacks a field that its type needs.
    pub fn decode(frame: &'a [u8]) -> Result<Self, WireError> {
        if frame.starts_with(SUBDUCTION) {
            return Err(WireError::Subduction);
        }
        let fields = Fields::find(frame)?;
        let kind = required(fields.kind.as_ref(), "type", name)?;
        let body = match kind.as_ref() {
            "join" => Body::Join { versions: optional(fields.versions.as_ref(), names)? },
            "peer" => Body::Peer,
            "leave" => Body::Leave,
            "request" => fields.about_document("request")?,
            "sync" => fields.about_document("sync")?,
            "doc-unavailable" => fields.about_document("doc-unavailable")?,
            "ephemeral" => fields.about_document("ephemeral")?,
            // The text is only logged, so an unreadable one does not end the session.
            "error" => {
                let message = optional(fields.message.as_ref(), name).ok().flatten();
                Body::Error { message: message.unwrap_or_default() }
            }
            "remote-subscription-change" => Body::RemoteSubscriptionChange {
                add: optional(fields.add.as_ref(), names)?.unwrap_or_default(),
                remove: optional(fields.remove.as_ref(), names)?.unwrap_or_default(),
            },
            "remote-heads-changed" => Body::RemoteHeadsChanged,
            _ => return Ok(Self { sender: None, target: None, body: Body::Unknown }),
        };
        let sender = optional(fields.sender.as_ref(), name)?;
        let target = optional(fields.target.as_ref(), name)?;
        Ok(Self { sender, target, body })
    }
}

/// What a truncated message, which was larger than `sync.max_message`, still says.
#[derive(Debug, PartialEq)]
pub(super) struct Truncated<'a> {
    pub(super) sender: Option<Cow<'a, str>>,
    pub(super) target: Option<Cow<'a, str>>,
    /// `sync`, `request` or `ephemeral`: other messages are never this large.
    pub(super) kind: &'static str,
    /// The document's id as it was received.
    pub(super) id: Cow<'a, str>,
    /// Its size in bytes before it was truncated.
    pub(super) size: u64,
}

impl<'a> Truncated<'a> {
    /// Parses what is left of a message. Returns nothing if that does not name the document.
    pub(super) fn decode(frame: &'a [u8], truncation: Truncation) -> Option<Self> {
        let fields = Fields::find_around(frame, truncation)?;
        let text = |value: Option<&Decoder<'a>>| optional(value, name).ok();
        let kind = match text(fields.kind.as_ref())??.as_ref() {
            "sync" => "sync",
            "request" => "request",
            "ephemeral" => "ephemeral",
            _ => return None,
        };
        Some(Self {
            sender: text(fields.sender.as_ref())?,
            target: text(fields.target.as_ref())?,
            kind,
            id: text(fields.document.as_ref())??,
            size: frame.len() as u64 + truncation.missing,
        })
    }
}

impl<'a> Fields<'a> {
    /// Finds the fields of a frame. `null` and `undefined` count as absent.
    fn find(frame: &'a [u8]) -> Result<Self, WireError> {
        let mut d = Decoder::new(frame);
        let mut fields = Self::default();
        let mut left = d.map().map_err(cbor)?;
        fields.read(&mut d, &mut left).map_err(cbor)?;
        Ok(fields)
    }

    /// Finds the fields of a frame whose middle, within one byte string, is missing.
    fn find_around(frame: &'a [u8], truncation: Truncation) -> Option<Self> {
        let (head, tail) = frame.split_at_checked(truncation.head)?;
        let mut d = Decoder::new(head);
        let mut fields = Self::default();
        let mut left = d.map().ok()?;
        if fields.read(&mut d, &mut left).is_err() {
            let before = (head.len() as u64).checked_add(truncation.missing)?;
            let after = end_of_byte_string(&mut d, head)?.checked_sub(before)?;
            let mut d = Decoder::new(tail.get(usize::try_from(after).ok()?..)?);
            fields.read(&mut d, &mut left).ok()?;
        }
        Some(fields)
    }

    /// Reads the remaining fields of a map; `left` is their number. If a value is incomplete, the
    /// decoder stays before it.
    fn read(&mut self, d: &mut Decoder<'a>, left: &mut Option<u64>) -> Result<(), DecodeError> {
        loop {
            match left {
                Some(0) => return Ok(()),
                Some(n) => *n -= 1,
                None if d.datatype()? == Type::Break => return Ok(()),
                None => {}
            }
            let key = name(d)?;
            let is_absent = matches!(d.datatype()?, Type::Null | Type::Undefined);
            let value = d.clone();
            if let Err(error) = d.skip() {
                *d = value;
                return Err(error);
            }
            let field = match key.as_ref() {
                "type" => &mut self.kind,
                "senderId" => &mut self.sender,
                "targetId" => &mut self.target,
                "documentId" => &mut self.document,
                "sessionId" => &mut self.session,
                "message" => &mut self.message,
                "data" => &mut self.data,
                "count" => &mut self.count,
                "supportedProtocolVersions" => &mut self.versions,
                "add" => &mut self.add,
                "remove" => &mut self.remove,
                _ => continue,
            };
            if !is_absent {
                *field = Some(value);
            }
        }
    }

    /// Reads the rest of a message that is about one document.
    fn about_document(&self, kind: &'static str) -> Result<Body<'a>, WireError> {
        let id = required(self.document.as_ref(), "documentId", name)?;
        let Ok(document) = id.parse() else { return Ok(Body::UnusableId { kind, id }) };
        let data = || required(self.data.as_ref(), "data", byte_string);
        Ok(match kind {
            "doc-unavailable" => Body::DocUnavailable { document },
            "ephemeral" => Body::Ephemeral {
                document,
                count: required(self.count.as_ref(), "count", whole_number)?,
                session: required(self.session.as_ref(), "sessionId", name)?,
                data: data()?,
            },
            _ => Body::Sync { document, request: kind == "request", data: data()? },
        })
    }
}

fn cbor(error: DecodeError) -> WireError {
    WireError::Cbor(error.to_string())
}

fn optional<'a, T>(
    value: Option<&Decoder<'a>>,
    read: impl FnOnce(&mut Decoder<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, WireError> {
    value.map(|value| read(&mut value.clone())).transpose().map_err(cbor)
}

fn required<'a, T>(
    value: Option<&Decoder<'a>>,
    field: &'static str,
    read: impl FnOnce(&mut Decoder<'a>) -> Result<T, DecodeError>,
) -> Result<T, WireError> {
    optional(value, read)?.ok_or(WireError::Missing(field))
}

fn name<'a>(d: &mut Decoder<'a>) -> Result<Cow<'a, str>, DecodeError> {
    let text = if d.datatype()? == Type::StringIndef {
        let mut text = String::new();
        for part in d.str_iter()? {
            text.push_str(part?);
            if text.len() > MAX_NAME {
                break;
            }
        }
        Cow::Owned(text)
    } else {
        Cow::Borrowed(d.str()?)
    };
    if text.len() > MAX_NAME {
        return Err(DecodeError::message("a name is longer than 1,024 bytes"));
    }
    Ok(text)
}

fn names<'a>(d: &mut Decoder<'a>) -> Result<Vec<Cow<'a, str>>, DecodeError> {
    let mut names = Vec::new();
    let mut left = d.array()?;
    loop {
        match &mut left {
            Some(0) => return Ok(names),
            Some(n) => *n -= 1,
            None if d.datatype()? == Type::Break => {
                d.skip()?;
                return Ok(names);
            }
            None => {}
        }
        if names.len() >= MAX_NAMES {
            return Err(DecodeError::message("a list has more than 1,024 names"));
        }
        names.push(name(d)?);
    }
}

fn byte_string<'a>(d: &mut Decoder<'a>) -> Result<Cow<'a, [u8]>, DecodeError> {
    // cbor-x may tag a Uint8Array as such (tag 64, RFC 8746).
    while d.datatype()? == Type::Tag {
        d.tag()?;
    }
    if d.datatype()? == Type::BytesIndef {
        let mut bytes = Vec::new();
        for part in d.bytes_iter()? {
            bytes.extend_from_slice(part?);
        }
        return Ok(Cow::Owned(bytes));
    }
    d.bytes().map(Cow::Borrowed)
}

/// Returns where the next byte string ends, according to its header in `frame`.
fn end_of_byte_string(d: &mut Decoder<'_>, frame: &[u8]) -> Option<u64> {
    while d.datatype().ok()? == Type::Tag {
        d.tag().ok()?;
    }
    let (first, rest) = frame.get(d.position()..)?.split_first()?;
    // Major type 2, with its length in 1, 2, 4 or 8 bytes (RFC 8949, section 3).
    let bytes = match first {
        0x58..=0x5b => 1 << (first - 0x58),
        _ => return None,
    };
    let length = rest.get(..bytes)?.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
    let begins = d.position() + 1 + bytes;
    length.checked_add(begins as u64)
}

fn whole_number(d: &mut Decoder<'_>) -> Result<u64, DecodeError> {
    let number = match d.datatype()? {
        Type::F16 => f64::from(d.f16()?),
        Type::F32 => f64::from(d.f32()?),
        Type::F64 => d.f64()?,
        _ => return d.u64(),
    };
    // Whole numbers of a float64 are exact up to 2^53.
    if number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "in range and whole"
        )]
        Ok(number as u64)
    } else {
        Err(DecodeError::message("a count is not an integer"))
    }
}

#[cfg(test)]
mod tests;
