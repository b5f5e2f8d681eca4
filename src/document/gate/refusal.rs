//! Why bytes may not become part of a document, and the limits that they would exceed.

/// No healthy document has this many heads. Every head costs time on every message, so refuse more.
pub(super) const MAX_HEADS: usize = 4_096;
/// By how much the highest operation number of a document may exceed its number of operations.
/// Honest changes leave such gaps only if their author knew operations that they do not depend on
/// (`changeAt`). automerge's JavaScript reserves memory for every skipped number: 300,000,000 fail
/// with "out of memory", and every client has to continue from the highest number.
pub(super) const MAX_LEAP: u64 = 1_000_000;
/// How many numbers all changes together may skip between their dependencies and themselves: many
/// branches can skip the same numbers. JavaScript can still load 20,000,000, each of which takes
/// some 200 bytes meanwhile.
pub(super) const MAX_SKIPPED: u64 = 10_000_000;

/// Why bytes may not become part of a document. The texts are for the sender, and continue a
/// sentence that names the document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Refusal {
    #[error("are not automerge changes: {0}")]
    Malformed(String),
    #[error("cannot be applied: {0}")]
    Unappliable(String),
    #[error("are not encoded as automerge does it; a document with them could not be loaded again")]
    Unreadable,
    #[error(
        "use the operation number {highest}, which is {} above the number of operations in the \
         document; at most {MAX_LEAP} are allowed",
        highest - operations
    )]
    Leap { highest: u64, operations: u64 },
    #[error("skip {0} operation numbers; at most {MAX_SKIPPED} are allowed in a document")]
    Skipped(u64),
    #[error("leave more than {MAX_HEADS} heads")]
    Heads,
}

impl Refusal {
    /// The refusal's label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Unappliable(_) => "unappliable",
            Self::Unreadable => "unreadable",
            Self::Leap { .. } | Self::Skipped(_) => "numbering",
            Self::Heads => "heads",
        }
    }
}

pub(super) fn malformed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::Malformed(error.to_string())
}
