//! How strictly changes are judged.

/// How strictly changes are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// New changes have to be good for every reader.
    Admission,
    /// Stored changes only have to load, and to load again after they were saved.
    Stored,
}
