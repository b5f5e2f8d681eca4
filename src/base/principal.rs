//! Who stands behind a session.

use std::sync::Arc;

/// Who stands behind a session. In open mode all sessions have the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(pub Arc<str>);

impl Principal {
    /// The one of open mode.
    pub fn anybody() -> Self {
        Self("anybody".into())
    }
}
