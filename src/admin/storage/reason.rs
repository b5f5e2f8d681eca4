//! Why an operator deletes or blocks a document.

use serde::{Deserialize, Serialize};

/// Why a document is to be deleted or blocked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reason {
    /// In the operator's words.
    pub reason: Option<String>,
}
