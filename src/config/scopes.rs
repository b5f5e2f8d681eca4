//! Scopes, as they are written in tokens and `auth.anonymous`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::document_id::{BadDocumentId, DocumentId};

/// Something that a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `sync:read`, or `sync:read:<document>`: receive one document, or every document whose id the
    /// client knows.
    Read(Option<DocumentId>),
    /// `sync:write`, or `sync:write:<document>`: receive and change them.
    Write(Option<DocumentId>),
    /// `upload`: upload bundles of documents that the client may write.
    Upload,
    /// `download`: download the served bundle and uploaded ones.
    Download,
    /// `admin`: read the public port's metrics.
    Admin,
}

/// A text that is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BadScope {
    #[error(
        "{0:?} is not a scope; expected sync:read, sync:write, one of these with :<document id>, \
         upload, download or admin"
    )]
    Unknown(String),
    #[error("{0}")]
    Document(#[from] BadDocumentId),
}

impl FromStr for Scope {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, BadScope> {
        match text {
            "sync:read" => return Ok(Self::Read(None)),
            "sync:write" => return Ok(Self::Write(None)),
            "upload" => return Ok(Self::Upload),
            "download" => return Ok(Self::Download),
            "admin" => return Ok(Self::Admin),
            _ => {}
        }
        if let Some(document) = text.strip_prefix("sync:read:") {
            Ok(Self::Read(Some(document.parse()?)))
        } else if let Some(document) = text.strip_prefix("sync:write:") {
            Ok(Self::Write(Some(document.parse()?)))
        } else {
            Err(BadScope::Unknown(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(None) => f.write_str("sync:read"),
            Self::Read(Some(document)) => write!(f, "sync:read:{document}"),
            Self::Write(None) => f.write_str("sync:write"),
            Self::Write(Some(document)) => write!(f, "sync:write:{document}"),
            Self::Upload => f.write_str("upload"),
            Self::Download => f.write_str("download"),
            Self::Admin => f.write_str("admin"),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_invalid_scope_is_refused() {
        for bad in
            ["", "sync", "sync:", "sync:read:", "sync:read:nonsense", "SYNC:READ", "uploads", "*"]
        {
            let error = bad.parse::<Scope>().expect_err(bad).to_string();
            assert!(
                error.contains("is not a scope") || error.contains("is not a document id"),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_scope_is_parsed_from_its_text_form(bytes in any::<[u8; 16]>(), kind in 0..7) {
            let document = DocumentId::from_bytes(bytes);
            let scope = match kind {
                0 => Scope::Read(None),
                1 => Scope::Read(Some(document)),
                2 => Scope::Write(None),
                3 => Scope::Write(Some(document)),
                4 => Scope::Upload,
                5 => Scope::Download,
                _ => Scope::Admin,
            };
            prop_assert_eq!(scope.to_string().parse(), Ok(scope));
        }
    }
}
