//! How strict a document is about what becomes part of it.

/// How strict to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// For everything that is brought: it has to be good for every reader.
    Admission,
    /// For what is stored already: it has to load and to survive being saved.
    Stored,
}
