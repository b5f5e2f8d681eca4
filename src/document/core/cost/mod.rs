//! What the steps of a core take in processor time, estimated before they begin.
//!
//! | to find | look in |
//! |---|---|
//! | the estimate of a step, and who pays for it | [`estimate`] |
//! | what each operation on a document takes, as measured | [`weight`] |
//! | how far a peer is behind | `versions` |

pub mod estimate;
pub(super) mod versions;
pub mod weight;

#[cfg(test)]
mod tests;
