//! Messages of automerge's sync protocol, checked before automerge sees them.

use std::borrow::Cow;

use automerge::{
    ChangeHash,
    sync::{BloomFilter, ChunkList, Message, MessageFlags},
};
use bytes::Bytes;

use super::unpacked::{self, NotUnpacked, Origin, Unpacked};
use crate::config::Size;

/// How many states a message may summarise; automerge sends one.
const MAX_HAVE: usize = 16;
/// How many heads a message may name: more than any document here may have.
const MAX_HEADS: usize = 10_000;

/// A sync message, decoded and checked.
#[derive(Clone, Debug)]
pub struct SyncMessage {
    /// The message's bytes, encoded again where the check changed something.
    pub raw: Bytes,
    /// The decoded message.
    pub message: Message,
    /// What its changes take when they are unpacked.
    pub unpacked: Unpacked,
}

/// Why automerge must not see a sync message. The texts are sent to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BadSyncMessage {
    #[error("is not an automerge sync message")]
    NoMessage,
    #[error("has too many summaries (have)")]
    TooManyStates,
    #[error("lists too many heads")]
    TooManyHeads,
    #[error("{0}")]
    Unpacks(#[from] NotUnpacked),
}

impl BadSyncMessage {
    /// The metric label of a refusal that concerns only the message's document. None where the
    /// bytes violate the protocol.
    pub fn of_document(self) -> Option<&'static str> {
        match self {
            Self::NoMessage => None,
            Self::TooManyStates => Some("states"),
            Self::TooManyHeads => Some("heads"),
            Self::Unpacks(NotUnpacked::TooMuch { .. }) => Some("max_inflated"),
            Self::Unpacks(NotUnpacked::Malformed) => Some("malformed"),
        }
    }
}

impl SyncMessage {
    /// Decodes a message and checks that automerge can process it safely, which includes that its
    /// changes do not unpack to more than `max_inflated`.
    ///
    /// A Bloom filter that automerge would not build is replaced by an empty one: a lookup in it
    /// may take ten times as long, and automerge 0.12 divides by the filter's size.
    ///
    /// # Errors
    /// The check that failed.
    pub fn read(raw: Bytes, max_inflated: Size) -> Result<Self, BadSyncMessage> {
        let mut message = Message::decode(&raw).map_err(|_| BadSyncMessage::NoMessage)?;
        if message.have.len() > MAX_HAVE {
            return Err(BadSyncMessage::TooManyStates);
        }
        if message.heads.len() > MAX_HEADS {
            return Err(BadSyncMessage::TooManyHeads);
        }
        let mut is_unchanged = true;
        for have in &mut message.have {
            if !is_automerge_filter(&have.bloom.to_bytes()) {
                have.bloom = BloomFilter::default();
                is_unchanged = false;
            }
        }
        let unpacked = if message.changes.is_empty() {
            Unpacked::default()
        } else {
            unpacked::of(&joined(&message.changes), Origin::Peer, max_inflated)?
        };
        // automerge 0.12 panics when it has to send a change twice.
        let needed = message.need.len();
        message.need.sort_unstable();
        message.need.dedup();
        is_unchanged &= message.need.len() == needed;
        // automerge itself always writes sorted hashes.
        message.heads.sort_unstable();
        message.have.iter_mut().for_each(|have| have.last_sync.sort_unstable());
        let raw = if is_unchanged { raw } else { message.clone().encode().into() };
        Ok(Self { raw, message, unpacked })
    }

    /// Reads a message of a peer that may only read, and drops its changes. Also returns whether
    /// there were any.
    ///
    /// # Errors
    /// The check that failed on the rest of the message.
    pub fn read_without_changes(raw: Bytes) -> Result<(Self, bool), BadSyncMessage> {
        let message = Message::decode(&raw).map_err(|_| BadSyncMessage::NoMessage)?;
        if message.changes.is_empty() {
            return Ok((Self::read(raw, Size(0))?, false));
        }
        let stripped =
            Self { raw, message, unpacked: Unpacked::default() }.with_changes(Vec::new());
        Ok((Self::read(stripped.raw, Size(0))?, true))
    }

    /// Replaces the message's changes by these chunks, which are concatenated.
    pub fn with_changes(self, changes: Vec<u8>) -> Self {
        let Self { mut message, unpacked, .. } = self;
        let is_empty = changes.is_empty();
        message.changes = if is_empty { Vec::<Vec<u8>>::new().into() } else { changes.into() };
        let unpacked = if is_empty { Unpacked::default() } else { unpacked };
        Self { raw: message.clone().encode().into(), message, unpacked }
    }

    /// The heads that it names, if it says nothing else that has to be answered soon.
    pub fn acknowledged(&self) -> Option<&[ChangeHash]> {
        let Message { heads, need, changes, flags, .. } = &self.message;
        let is_reset = flags.is_some_and(|flags| flags.contains(MessageFlags::SYNC_RESET));
        let is_bare = need.is_empty() && changes.is_empty() && !heads.is_empty();
        (is_bare && !is_reset).then_some(heads)
    }

    /// Whether its sender has any change of the document.
    pub fn has_heads(&self) -> bool {
        !self.message.heads.is_empty()
    }

    /// The chunks of its changes, concatenated.
    pub fn changes(&self) -> Cow<'_, [u8]> {
        joined(&self.message.changes)
    }

    /// Whether it carries changes.
    pub fn has_changes(&self) -> bool {
        !self.message.changes.is_empty()
    }
}

/// Concatenates the parts of a message's changes: automerge reads across their boundaries.
fn joined(changes: &ChunkList) -> Cow<'_, [u8]> {
    match changes.len() {
        1 => changes.iter().next().unwrap_or_default().into(),
        _ => changes.iter().flatten().copied().collect(),
    }
}

/// Whether automerge builds Bloom filters like this one: all of its own have 10 bits an entry and 7
/// probes. Format: automerge 0.12, `sync/bloom.rs` (LEB128 numbers of entries, bits an entry and
/// probes; the bits).
fn is_automerge_filter(filter: &[u8]) -> bool {
    let mut rest = filter;
    match [leb128(&mut rest), leb128(&mut rest), leb128(&mut rest)] {
        [None, ..] => true,
        [Some(entries), Some(bits), Some(probes)] => {
            entries == 0 || (bits == 10 && probes == 7 && !rest.is_empty())
        }
        _ => false,
    }
}

/// How many heads a sync message names, without decoding the rest of it; none if the bytes are not
/// a sync message. Format: automerge 0.12, `sync.rs` (a type byte, then a LEB128 count of 32-byte
/// hashes).
pub fn heads_in(sync_message: &[u8]) -> Option<u64> {
    let (kind, rest) = sync_message.split_first()?;
    if !matches!(kind, 0x42 | 0x43) {
        return None;
    }
    leb128(&mut &*rest)
}

/// Reads an unsigned LEB128 number of at most 32 bits.
fn leb128(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for place in 0..5 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests;
