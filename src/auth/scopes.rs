//! Scopes, as tokens name them, and the rights that they give.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::document_id::{BadDocumentId, DocumentId};

/// One thing that its holder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `sync:read`, or `sync:read:<document>`: receive a document, or all of which the id is known.
    Read(Option<DocumentId>),
    /// `sync:write`, or `sync:write:<document>`: change it as well.
    Write(Option<DocumentId>),
    /// `upload`: bring bundles, of documents that the holder may write.
    Upload,
    /// `download`: fetch the served and the uploaded bundles.
    Download,
    /// `admin`: read the public port's metrics.
    Admin,
}

/// Why a text is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BadScope {
    #[error(
        "{0:?} is no scope: expected sync:read, sync:write, one of these with :<document id>, upload, download or admin"
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

/// What somebody may do: all their scopes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    read: Documents,
    write: Documents,
    /// Bring bundles.
    pub upload: bool,
    /// Fetch bundles.
    pub download: bool,
    /// Read the metrics.
    pub admin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Documents {
    All,
    These(BTreeSet<DocumentId>),
}

impl Default for Documents {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Documents {
    fn add(&mut self, document: Option<DocumentId>) {
        match (&mut *self, document) {
            (_, None) => *self = Self::All,
            (Self::All, _) => {}
            (Self::These(documents), Some(document)) => _ = documents.insert(document),
        }
    }

    fn has(&self, document: DocumentId) -> bool {
        match self {
            Self::All => true,
            Self::These(documents) => documents.contains(&document),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::These(documents) if documents.is_empty())
    }
}

impl Rights {
    /// The right to everything.
    pub fn all() -> Self {
        [Scope::Write(None), Scope::Upload, Scope::Download, Scope::Admin].into_iter().collect()
    }

    /// Whether a document may be received. Who may change one may receive it.
    pub fn may_read(&self, document: DocumentId) -> bool {
        self.read.has(document) || self.write.has(document)
    }

    /// Whether a document may be changed.
    pub fn may_write(&self, document: DocumentId) -> bool {
        self.write.has(document)
    }

    /// Whether there is any document that may be synchronised.
    pub fn may_sync(&self) -> bool {
        !(self.read.is_empty() && self.write.is_empty())
    }
}

impl FromIterator<Scope> for Rights {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        let mut rights = Self::default();
        for scope in scopes {
            match scope {
                Scope::Read(document) => rights.read.add(document),
                Scope::Write(document) => rights.write.add(document),
                Scope::Upload => rights.upload = true,
                Scope::Download => rights.download = true,
                Scope::Admin => rights.admin = true,
            }
        }
        rights
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rights(scopes: &[&str]) -> Rights {
        scopes.iter().map(|scope| scope.parse::<Scope>().expect("a scope")).collect()
    }

    #[test]
    fn scopes_give_what_they_say_and_nothing_else() {
        let (one, other) = (DocumentId::random(), DocumentId::random());
        let reader = rights(&[&format!("sync:read:{one}")]);
        assert!(reader.may_read(one) && !reader.may_write(one) && !reader.may_read(other));
        assert!(reader.may_sync() && !reader.upload && !reader.download && !reader.admin);
        let mixed = rights(&["sync:read", &format!("sync:write:{one}"), "download"]);
        assert!(mixed.may_read(other) && !mixed.may_write(other) && mixed.may_write(one));
        assert!(mixed.download);
        assert!(!rights(&["upload", "download", "admin"]).may_sync());
        assert!(Rights::all().may_write(one) && Rights::all().admin);
        let widened = rights(&["sync:write", &format!("sync:write:{one}")]);
        assert!(widened.may_write(other), "a scope for one document takes nothing away");
    }

    #[test]
    fn what_is_no_scope_is_refused_by_name() {
        for bad in
            ["", "sync", "sync:", "sync:read:", "sync:read:nonsense", "SYNC:READ", "uploads", "*"]
        {
            let error = bad.parse::<Scope>().expect_err(bad).to_string();
            assert!(
                error.contains("is no scope") || error.contains("is no document id"),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_scope_is_read_as_it_is_written(bytes in any::<[u8; 16]>(), kind in 0..7) {
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
