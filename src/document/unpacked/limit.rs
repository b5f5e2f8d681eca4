//! How much chunks may unpack to, and why they are refused.

use std::io;

use crate::config::Size;

/// Where chunks are from. That decides by how much large ones may exceed the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A message or a bundle, which may be an attack.
    Peer,
    /// Storage, where all chunks were admitted before.
    Storage,
}

impl Origin {
    /// How many times the limit large inputs may unpack to.
    pub(super) fn max_multiple(self) -> u64 {
        match self {
            Self::Peer => 4,
            Self::Storage => 16,
        }
    }

    /// How many unpacked bytes are allowed for each input byte. In a pasted text each character is
    /// an operation of 500 bytes, and two characters deflate to one byte. In a log that grew in
    /// many changes 40 characters take one byte, at 100 bytes each.
    pub(super) fn max_ratio(self) -> u64 {
        match self {
            Self::Peer => 1024,
            Self::Storage => 4096,
        }
    }
}

/// Why chunks must not be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum NotUnpacked {
    #[error(
        "unpacks to more than {limit} (sync.max_inflated): {operations} operations or more, at \
         least {} MiB",
        bytes >> 20
    )]
    TooMuch { limit: Size, operations: u64, bytes: u64 },
    #[error("is not a sequence of automerge chunks")]
    Malformed,
}

/// How many bytes an input of `size` bytes may unpack to: `limit`, or more in proportion to `size`,
/// up to a multiple of `limit`.
pub fn allowed(size: usize, from: Origin, limit: Size) -> u64 {
    let by_ratio = (size as u64).saturating_mul(from.max_ratio());
    by_ratio.min(limit.0.saturating_mul(from.max_multiple())).max(limit.0)
}

/// Why the estimate of a chunk ended early.
pub(super) enum Stop {
    TooMuch,
    Malformed,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Malformed
    }
}
