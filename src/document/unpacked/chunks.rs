//! Splits bytes into automerge chunks.

use std::io::Read;

use super::{
    limit::{NotUnpacked, Stop},
    reader::unsigned,
};

/// The first bytes of every chunk. A checksum of four bytes, the chunk's kind and its length
/// follow.
pub(super) const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// Splits concatenated chunks. Returns the kind of each, and all of its bytes.
///
/// # Errors
/// The bytes are not a sequence of chunks.
pub fn chunks(mut bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, NotUnpacked> {
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let first = split(bytes).map_err(|_| NotUnpacked::Malformed)?;
        chunks.push((first.kind, first.whole));
        bytes = first.rest;
    }
    Ok(chunks)
}

/// The first of concatenated chunks.
pub(super) struct Split<'a> {
    pub(super) kind: u8,
    pub(super) contents: &'a [u8],
    /// All bytes of the chunk.
    pub(super) whole: &'a [u8],
    /// The bytes after the chunk.
    pub(super) rest: &'a [u8],
}

/// Splits off the first chunk of `bytes`.
pub(super) fn split(bytes: &[u8]) -> Result<Split<'_>, Stop> {
    let mut rest = bytes;
    let mut head = [0; 9];
    rest.read_exact(&mut head)?;
    let [m0, m1, m2, m3, _, _, _, _, kind] = head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Stop::Malformed);
    }
    let length = usize::try_from(unsigned(&mut rest)?).map_err(|_| Stop::Malformed)?;
    let (contents, rest) = rest.split_at_checked(length).ok_or(Stop::Malformed)?;
    let whole = bytes.get(..bytes.len() - rest.len()).ok_or(Stop::Malformed)?;
    Ok(Split { kind, contents, whole, rest })
}
