//! What the store says that others have done to it: chunks of other relays, and losses.

use automerge::ChangeHash;

use super::{
    event::{Effect, Remains},
    state::{Core, Orphans},
};
use crate::document::{
    chunk::{Key, StoredChunk},
    gate::{self, Admitted, Document, Refusal, Rules},
};

impl Core {
    /// Applies chunks that another relay has stored, with these bytes of values. They fit to each
    /// other in no particular order.
    pub(super) fn apply_stored(
        &mut self,
        mut chunks: Vec<StoredChunk>,
        values: u64,
        effects: &mut Vec<Effect>,
    ) {
        chunks.retain(|(key, _)| !self.chunks.has(key));
        if chunks.is_empty() {
            return;
        }
        let bytes: Vec<u8> = chunks.iter().flat_map(|(_, data)| data).copied().collect();
        let had_unsaved_base = std::mem::take(&mut self.has_unsaved_base);
        let lacks_base = had_unsaved_base && !self.has_base(&bytes);
        let changes = self.doc.changes();
        let admitted = self.admit_stored(&bytes);
        if self.doc.changes() > changes {
            // A snapshot has the values of all that was there before, too.
            let has_all = chunks.iter().any(|(key, _)| key.is_snapshot());
            let sum = self.values.saturating_add(values);
            self.values = if has_all { self.values.max(values) } else { sum };
        }
        match admitted {
            Ok(()) => chunks.into_iter().for_each(|(key, data)| self.note_stored(key, &data)),
            Err(_) if self.is_damaged() => {}
            Err(why) if chunks.len() == 1 => {
                let unreadable = |(key, _)| Effect::Unreadable { key, why: why.clone() };
                effects.extend(chunks.into_iter().map(unreadable));
            }
            // Those that fit become part of the document.
            Err(_) => {
                for chunk in chunks {
                    self.apply_stored(vec![chunk], values, effects);
                }
            }
        }
        if lacks_base {
            self.lose(Vec::new());
        }
    }

    /// Whether these chunks have all of the base, if there are any. Another relay may serve another
    /// bundle.
    fn has_base(&self, bytes: &[u8]) -> bool {
        let stored = Document::read(bytes, Rules::Stored);
        stored.is_ok_and(|mut stored| self.durable.heads.iter().all(|head| stored.has(head)))
    }

    fn admit_stored(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let was_durable = self.durable.has_no_unsaved();
        let had_orphans = self.doc.has_orphans();
        let admitted = if had_orphans {
            // The gate judges orphans when they become part of the document.
            let admitted = self.doc.admit(bytes, Rules::Admission);
            admitted.or_else(|_| self.doc.admit(bytes, Rules::Stored))?
        } else {
            self.doc.admit(bytes, Rules::Stored)?
        };
        if self.orphans.bytes > 0 && !self.doc.has_orphans() {
            self.orphans = Orphans::default();
        }
        if matches!(admitted, Admitted::Nothing) {
            return Ok(());
        }
        self.heads_changed();
        let own = match admitted {
            // Orphans of peers that became part of the document are not stored.
            Admitted::Changes(mut new) if had_orphans => {
                let theirs = gate::hashes_in(bytes)?;
                new.retain(|change| !theirs.contains(&change.hash()));
                new
            }
            _ => Vec::new(),
        };
        if !own.is_empty() {
            self.chunks.keep(&own);
            self.durable.add_unsaved(&Admitted::Changes(own), self.doc.changes());
        } else if was_durable {
            self.durable_until(self.doc.heads().to_vec(), self.doc.changes());
        }
        Ok(())
    }

    fn note_stored(&mut self, key: Key, data: &[u8]) {
        // A chunk with orphans is not replaced: our snapshots may lack them.
        let is_part = !self.doc.has_orphans()
            || gate::hashes_in(data).is_ok_and(|all| all.iter().all(|hash| self.doc.has(hash)));
        if is_part {
            self.chunks.add_of_another(key, data.len());
        }
    }

    /// Counts nothing as durable until it is known what the store still has.
    pub(super) fn apply_lost(&mut self) {
        self.awaits_remains = true;
        if self.has_unsaved_base && self.chunks.under_way.is_none() {
            // Nothing of it was stored.
            return;
        }
        let base = if self.has_unsaved_base { self.durable.heads.clone() } else { Vec::new() };
        self.lose(base);
    }

    /// Counts only what the store still has as durable, and writes the rest again.
    pub(super) fn apply_restored(&mut self, remains: Remains) {
        let Remains { chunks, mut heads, has_orphans } = remains;
        self.awaits_remains = false;
        if self.has_unsaved_base && self.chunks.under_way.is_none() {
            // Nothing of it was stored.
            return;
        }
        let is_contained = !has_orphans && heads.iter().all(|head| self.doc.has(head));
        // Changes of other relays that were not read yet are not in our snapshots.
        let replaceable =
            chunks.into_iter().filter(|(key, _)| is_contained || self.chunks.has(key));
        let replaceable: Vec<_> = replaceable.collect();
        let had_unsaved_base = std::mem::take(&mut self.has_unsaved_base);
        let base = if had_unsaved_base { self.durable.heads.clone() } else { Vec::new() };
        self.chunks.begin_anew(replaceable);
        heads.retain(|head| self.doc.has(head));
        if heads == self.doc.heads() {
            self.chunks.unstored = 0;
            self.durable_until(heads, self.doc.changes());
        } else {
            // Peers have the base from the bundle, so they may be told of it.
            let heads = if heads.is_empty() && base != self.doc.heads() { base } else { heads };
            self.lose(heads);
        }
    }

    /// Writes the base although no change was made, if nothing is stored.
    pub(super) fn save_base(&mut self) {
        if std::mem::take(&mut self.has_unsaved_base) {
            self.lose(Vec::new());
        }
    }

    /// Only what is before these heads is durable.
    pub(super) fn lose(&mut self, heads: Vec<ChangeHash>) {
        let changes = self.doc.changes();
        self.chunks.keep_nothing();
        self.durable.lose(heads, changes);
        self.peers.withhold_from_all(changes);
    }
}
