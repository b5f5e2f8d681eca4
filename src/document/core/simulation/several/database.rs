//! A database that several relays share.

use std::collections::{BTreeMap, BTreeSet};

use automerge::{Automerge, ChangeHash, ReadDoc};
use bytes::Bytes;

use crate::document::{
    chunk::Key,
    core::{event::Remains, simulation::world::load},
    gate,
};

#[derive(Clone)]
pub(super) struct Row {
    /// The number of the commit.
    pub(super) commit: u64,
    pub(super) data: Bytes,
}

pub(super) type Rows = BTreeMap<Key, Row>;

/// A write that the database has been asked for.
pub(super) struct Writing {
    pub(super) key: Key,
    pub(super) data: Bytes,
    pub(super) replaces: Vec<Key>,
    /// How often the database had lost commits when the relay last read what there is.
    pub(super) losses: usize,
}

/// The database.
#[derive(Default)]
pub(super) struct Database {
    pub(super) rows: Rows,
    pub(super) commits: u64,
    /// The rows before each commit.
    earlier: Vec<Rows>,
    /// The changes that were stored before each loss.
    pub(super) lost: Vec<BTreeSet<ChangeHash>>,
}

impl Database {
    pub(super) fn doc(&self) -> Automerge {
        load(&self.rows.iter().map(|(key, row)| (key.clone(), row.data.to_vec())).collect())
    }

    pub(super) fn changes(&self) -> BTreeSet<ChangeHash> {
        self.doc().get_changes_meta(&[]).iter().map(|change| change.hash).collect()
    }

    /// What a relay can know to be stored that has noticed this many losses.
    pub(super) fn changes_after(&self, losses: usize) -> BTreeSet<ChangeHash> {
        self.lost.get(losses).cloned().unwrap_or_else(|| self.changes())
    }

    /// All changes that are stored, those that wait for others among them.
    fn all_changes(&self) -> BTreeSet<ChangeHash> {
        let of_row = |row: &Row| gate::hashes_in(&row.data).expect("what is stored is read");
        self.rows.values().flat_map(of_row).collect()
    }

    /// Stores a chunk unless it is there, and only then deletes those that it replaces: the chunk
    /// that is there may hold other orphans. Returns whether it was there.
    pub(super) fn commit(&mut self, Writing { key, data, replaces, .. }: &Writing) -> bool {
        let before = self.all_changes();
        self.earlier.push(self.rows.clone());
        self.commits += 1;
        if self.rows.contains_key(key) {
            return true;
        }
        self.rows.insert(key.clone(), Row { commit: self.commits, data: data.clone() });
        for replaced in replaces {
            assert_ne!(replaced, key, "a chunk does not replace itself");
            self.rows.remove(replaced);
        }
        assert!(before.is_subset(&self.all_changes()), "a write has deleted changes");
        false
    }

    /// Goes back to an earlier state.
    pub(super) fn lose(&mut self, commits: usize) {
        self.lost.push(self.changes());
        for _ in 0..commits {
            self.rows = self.earlier.pop().unwrap_or_default();
        }
    }

    pub(super) fn remains(&self) -> Remains {
        let doc = self.doc();
        Remains {
            chunks: self.rows.iter().map(|(key, row)| (key.clone(), row.data.len())).collect(),
            heads: doc.get_heads(),
            has_orphans: !doc.get_missing_deps(&[]).is_empty(),
        }
    }
}
