//! How much chunks may unpack to, and why they are refused.

use std::io;

use crate::config::Size;

/// Where chunks come from, which decides how far beyond the limit they may go if their size
/// explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A message or a bundle, which may be meant to do harm.
    Peer,
    /// Storage: it has grown by what was admitted before.
    Storage,
}

impl Origin {
    /// How many times the limit large inputs may unpack to.
    pub(super) fn most(self) -> u64 {
        match self {
            Self::Peer => 4,
            Self::Storage => 16,
        }
    }

    /// How many unpacked bytes each input byte explains. A pasted text is an operation a character,
    /// at 500 bytes, and two characters a byte when it is deflated; a log that has grown in many
    /// changes is 40 characters a byte, at 100.
    pub(super) fn explains(self) -> u64 {
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
        "unpacks to more than {limit} (sync.max_inflated): {operations} operations or more, at least {} MiB",
        bytes >> 20
    )]
    TooMuch { limit: Size, operations: u64, bytes: u64 },
    #[error("is not a sequence of automerge chunks")]
    Malformed,
}

/// What `size` bytes may unpack to.
pub fn allowed(size: usize, from: Origin, limit: Size) -> u64 {
    let explained = (size as u64).saturating_mul(from.explains());
    explained.min(limit.0.saturating_mul(from.most())).max(limit.0)
}

/// Why the measurement of a chunk ended early.
pub(super) enum Stop {
    TooMuch,
    Malformed,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Malformed
    }
}
