//! The rights that scopes give.
//!
//! A session can lose the right to write one document, when changes of it were refused:
//! `Session::may_write` in `sync::session` answers for a session, and `sync::room::live` enforces
//! it.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{base::document_id::DocumentId, config::scopes::Scope};

/// What a client may do: all its scopes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    read: Documents,
    write: Documents,
    /// Whether it may upload bundles.
    pub upload: bool,
    /// Whether it may download bundles.
    pub download: bool,
    /// Whether it may read the metrics of the public port.
    pub admin: bool,
}

/// The documents of a right. As JSON it is `"all"`, or a list of ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Documents {
    All,
    #[serde(untagged)]
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

    fn contains(&self, document: DocumentId) -> bool {
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
    /// Returns the right to everything.
    pub fn all() -> Self {
        [Scope::Write(None), Scope::Upload, Scope::Download, Scope::Admin].into_iter().collect()
    }

    /// Returns the documents that the client may receive, including those that it may change.
    pub fn readable(&self) -> Documents {
        match (&self.read, &self.write) {
            (Documents::These(read), Documents::These(write)) => {
                Documents::These(read.union(write).copied().collect())
            }
            _ => Documents::All,
        }
    }

    /// Returns the documents that the client may change.
    pub fn writable(&self) -> &Documents {
        &self.write
    }

    /// Whether the client may receive a document. The right to change it includes this.
    pub fn may_read(&self, document: DocumentId) -> bool {
        self.read.contains(document) || self.write.contains(document)
    }

    /// Whether the client may change a document.
    pub fn may_write(&self, document: DocumentId) -> bool {
        self.write.contains(document)
    }

    /// Whether the client may sync any document.
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
    use super::*;

    fn rights(scopes: &[&str]) -> Rights {
        scopes.iter().map(|scope| scope.parse::<Scope>().expect("a scope")).collect()
    }

    #[test]
    fn each_scope_gives_its_own_right_only() {
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
        assert!(widened.may_write(other), "a scope for one document does not narrow a wider one");
    }

    #[test]
    fn documents_are_listed_as_json() {
        let json = |documents: &Documents| serde_json::to_value(documents).expect("JSON");
        let (one, other) = (DocumentId::from_bytes([1; 16]), DocumentId::from_bytes([2; 16]));
        let mixed = rights(&[&format!("sync:read:{one}"), &format!("sync:write:{other}")]);
        assert_eq!(json(&mixed.readable()), serde_json::json!([one, other]));
        assert_eq!(json(mixed.writable()), serde_json::json!([other]));
        let reader = rights(&["sync:read"]);
        assert_eq!(json(&reader.readable()), "all");
        assert_eq!(json(reader.writable()), serde_json::json!([]));
        assert_eq!(
            json(&rights(&["sync:write"]).readable()),
            "all",
            "the right to write includes it"
        );
    }
}
