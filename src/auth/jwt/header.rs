//! The header of a token.

// It decodes any part of a token. The claims of a token are never read with it.
use jsonwebtoken::dangerous::insecure_decode_claims as decode_part;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

/// The fields of a header that decide how the token is verified. jsonwebtoken's own type cannot
/// hold the name of an algorithm that jsonwebtoken does not know.
#[derive(Deserialize)]
pub(super) struct TokenHeader {
    pub(super) alg: String,
    pub(super) kid: Option<String>,
    crit: Option<IgnoredAny>,
    b64: Option<Value>,
}

impl TokenHeader {
    /// Reads the header of a token. Returns `None` if the token does not begin with one.
    pub(super) fn read(token: &str) -> Option<Self> {
        let (header, _) = token.split_once('.')?;
        // What is decoded is the part between the two dots.
        decode_part(format!(".{header}.")).ok()
    }

    /// Whether the token requires an extension of the standard. None is supported: critical ones
    /// (RFC 7515, 4.1.11), and among these `b64`, which changes what is signed (RFC 7797).
    pub(super) fn requires_extensions(&self) -> bool {
        self.crit.is_some() || !matches!(self.b64, None | Some(Value::Bool(true)))
    }
}
