//! The rights that scopes give.

use std::collections::BTreeSet;

use crate::{base::document_id::DocumentId, config::scopes::Scope};

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
}
