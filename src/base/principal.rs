//! Who uses a session.

use std::sync::Arc;

/// Who uses a session: a token or a JWT subject. Without sign-in, all sessions have the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(pub Arc<str>);

impl Principal {
    /// Returns the principal of everyone who has not signed in.
    pub fn anybody() -> Self {
        Self("anybody".into())
    }
}
