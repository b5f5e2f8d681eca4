//! Values and parsers that the arguments of several commands share.

use crate::base::document_id::{BadDocumentId, DocumentId};

/// The config file that commands read unless `--config` names another.
pub(super) const CONFIG_FILE: &str = "/etc/tonk-relay.toml";

pub(super) fn document_id(text: &str) -> Result<DocumentId, BadDocumentId> {
    text.strip_prefix("automerge:").unwrap_or(text).parse()
}
