//! Why an operator deletes or blocks a document.

use serde::{Deserialize, Serialize};

/// The body of a request to delete or block a document.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reason {
    /// The operator's text, if there is one.
    pub reason: Option<String>,
}
