//! Decides whether bytes may become part of a document.
//!
//! automerge 0.12 applies changes that it cannot write again: changes that are not in its canonical
//! form, that number their operations below those of their dependencies, or that do not build on
//! their author's previous change. Once a document with such a change was saved, nobody can load
//! it. Other changes make automerge panic while it applies them. So a [`Document`] only takes
//! changes through [`Document::admit`]. Whatever that admits can be saved and loaded again with the
//! same heads, here and by automerge's JavaScript.
//!
//! Most changes are proven good by themselves: rebuilt from the document they have the same hash,
//! which is how they will be written, and they are numbered as a reader derives it from their
//! dependencies. All other changes are decided by saving the whole document and loading it again.

mod apply;
mod guard;
mod lineage;
mod parse;
mod refusal;
mod rules;
mod tally;

use std::collections::HashSet;

use automerge::{Automerge, Change, ChangeHash, ReadDoc};

pub(super) use self::parse::changes_in;
use self::{
    apply::{Applied, apply_to, check_applicable, has_marks},
    guard::catch_panic,
    lineage::Lineage,
    parse::{DOCUMENT, load_document},
    refusal::{MAX_HEADS, malformed},
    tally::Tally,
};
pub use self::{
    parse::{hashes_in, loads},
    refusal::Refusal,
    rules::Rules,
};
use super::{order::dependencies_first, unpacked};

/// What has become part of a document.
#[derive(Debug)]
pub enum Admitted {
    /// Nothing that changes the heads: the document had the changes already, or they wait for
    /// others that are missing.
    Nothing,
    /// These changes, dependencies first, as automerge writes them.
    Changes(Vec<Change>),
    /// A whole document. The one before was empty.
    Whole,
}

/// An automerge document that holds only admitted changes.
#[derive(Debug, Default)]
pub struct Document {
    state: State,
    heads: Vec<ChangeHash>,
    tally: Tally,
    /// The heads before changes were applied and then refused, until the document is restored.
    refused: Option<Vec<ChangeHash>>,
}

#[derive(Debug)]
enum State {
    Awake(Box<Automerge>),
    /// A save of the document, which takes less memory.
    Asleep(Vec<u8>),
}

impl Default for State {
    fn default() -> Self {
        Self::Awake(Box::default())
    }
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// The bytes are not admitted.
    pub fn read(bytes: &[u8], rules: Rules) -> Result<Self, Refusal> {
        let mut document = Self::default();
        document.admit(bytes, rules)?;
        Ok(document)
    }

    /// The automerge document. Loads it if it is asleep.
    pub fn automerge(&mut self) -> &Automerge {
        self.awake()
    }

    fn awake(&mut self) -> &mut Automerge {
        if let State::Asleep(saved) = &self.state {
            match Automerge::load(saved) {
                Ok(doc) => self.state = State::Awake(Box::new(doc)),
                #[expect(clippy::panic, reason = "the engine then restarts from storage")]
                Err(error) => panic!("a document that was saved does not load: {error}"),
            }
        }
        match &mut self.state {
            State::Awake(doc) => doc,
            State::Asleep(_) => unreachable!("it was just loaded"),
        }
    }

    /// Replaces the document in memory by a save of it, until it is needed.
    pub fn sleep(&mut self) {
        if let State::Awake(doc) = &self.state {
            let mut saved = doc.save();
            saved.shrink_to_fit();
            self.state = State::Asleep(saved);
        }
    }

    /// Whether only a save of it is in memory.
    pub fn is_asleep(&self) -> bool {
        matches!(self.state, State::Asleep(_))
    }

    /// The document's heads, sorted.
    pub fn heads(&self) -> &[ChangeHash] {
        &self.heads
    }

    /// How many changes it has, without orphans.
    pub fn changes(&self) -> u64 {
        self.tally.changes
    }

    /// How many operations its changes have.
    pub fn operations(&self) -> u64 {
        self.tally.operations
    }

    /// Whether it has a change, other than as an orphan. May load a document that is asleep.
    pub fn has(&mut self, hash: &ChangeHash) -> bool {
        self.heads.binary_search(hash).is_ok()
            || self.awake().get_change_meta_by_hash(hash).is_some()
    }

    /// Whether it has orphans: changes that wait for others. Loads a document that is asleep.
    pub fn has_orphans(&mut self) -> bool {
        !self.awake().get_missing_deps(&[]).is_empty()
    }

    /// Checks that every reader can load it, as far as the numbers of its operations tell.
    ///
    /// # Errors
    /// Why some readers may not.
    pub fn check_numbering(&self) -> Result<(), Refusal> {
        self.tally.check()
    }

    /// Applies chunks of changes, documents or bundles. Orphans are judged when the changes arrive
    /// that they wait for.
    ///
    /// # Errors
    /// Why they are refused. The document is then as it was, but its orphans may be gone; or it is
    /// [damaged](Self::is_damaged).
    pub fn admit(&mut self, bytes: &[u8], rules: Rules) -> Result<Admitted, Refusal> {
        let admitted = self.try_admit(bytes, rules);
        self.restore();
        admitted
    }

    /// As [`Self::admit`], but a refusal may leave the document [damaged](Self::is_damaged), for
    /// the caller to [restore](Self::restore): that takes as long as loading it.
    ///
    /// # Errors
    /// Why they are refused.
    pub fn try_admit(&mut self, bytes: &[u8], rules: Rules) -> Result<Admitted, Refusal> {
        let chunks = unpacked::chunks(bytes).map_err(|error| malformed(&error))?;
        let is_empty = self.heads.is_empty() && !self.has_orphans();
        let (mut changes, mut is_whole) = (Vec::new(), false);
        for (n, (kind, chunk)) in chunks.into_iter().enumerate() {
            if n == 0 && kind == DOCUMENT && is_empty {
                *self = Self::load(chunk)?;
                is_whole = true;
                continue;
            }
            changes.extend(changes_in(kind, chunk)?);
        }
        if !is_whole {
            return self.apply(changes, rules);
        }
        // Loading has compared every change with its hash.
        let checked = self.check_whole(rules).and_then(|()| self.apply(changes, rules));
        if checked.is_err() {
            self.refused = Some(Vec::new());
        }
        checked.map(|_| Admitted::Whole)
    }

    /// Returns what to apply to a copy of the document that may lack some of its changes, after
    /// `bytes` were admitted: all of their changes except orphans, and also the former orphans that
    /// waited for them.
    ///
    /// # Errors
    /// They do not parse.
    pub fn changes_to_forward(&self, bytes: &[u8], admitted: Admitted) -> Result<Vec<u8>, Refusal> {
        let mut changes = match admitted {
            Admitted::Whole => return Ok(bytes.to_vec()),
            Admitted::Changes(new) => new,
            Admitted::Nothing => Vec::new(),
        };
        let new: HashSet<ChangeHash> = changes.iter().map(Change::hash).collect();
        let State::Awake(doc) = &self.state else { unreachable!("it was just changed") };
        for (kind, chunk) in unpacked::chunks(bytes).map_err(|error| malformed(&error))? {
            let brought = changes_in(kind, chunk)?.into_iter().filter(|change| {
                let hash = change.hash();
                !new.contains(&hash) && doc.get_change_meta_by_hash(&hash).is_some()
            });
            changes.extend(brought);
        }
        Ok(changes.iter().flat_map(|change| change.raw_bytes().to_vec()).collect())
    }

    /// Applies changes that are parsed already, as [`Self::admit`].
    ///
    /// # Errors
    /// Why they are refused.
    pub(super) fn admit_changes(
        &mut self,
        changes: Vec<Change>,
        rules: Rules,
    ) -> Result<Admitted, Refusal> {
        let admitted = self.apply(changes, rules);
        self.restore();
        admitted
    }

    /// Whether changes were applied and then refused. Nothing of the document may be sent or stored
    /// until it is restored. If that fails, it has to be read from storage again.
    pub fn is_damaged(&self) -> bool {
        self.refused.is_some()
    }

    /// Rebuilds the document as it was before the refused changes, without its orphans. Returns
    /// whether that succeeded.
    pub fn restore(&mut self) -> bool {
        let (Some(before), State::Awake(doc)) = (&self.refused, &self.state) else { return true };
        let restored = match before.as_slice() {
            [] => Ok(Ok(Automerge::new())),
            before => catch_panic(|| doc.fork_at(before)),
        };
        match restored {
            // Equal heads mean equal documents: a hash covers everything that a change builds on.
            Ok(Ok(restored)) if restored.get_heads() == *before => {
                if before.is_empty() {
                    self.tally = Tally::default();
                }
                self.heads.clone_from(before);
                self.state = State::Awake(Box::new(restored));
                self.refused = None;
                true
            }
            _ => false,
        }
    }

    /// Loads a document chunk.
    fn load(chunk: &[u8]) -> Result<Self, Refusal> {
        let (doc, tally) = load_document(chunk)?;
        let heads = doc.get_heads();
        Ok(Self { heads, tally, state: State::Awake(Box::new(doc)), ..Self::default() })
    }

    fn check_whole(&self, rules: Rules) -> Result<(), Refusal> {
        if rules == Rules::Stored {
            return Ok(());
        }
        if self.heads.len() > MAX_HEADS {
            return Err(Refusal::Heads);
        }
        self.tally.check()
    }

    fn apply(&mut self, changes: Vec<Change>, rules: Rules) -> Result<Admitted, Refusal> {
        let missing = self.awake().get_missing_deps(&[]);
        // Orphans that waited for these changes are judged now.
        let frees_orphans = changes.iter().any(|change| missing.contains(&change.hash()));
        if missing.is_empty() {
            return self.apply_these(changes, false, rules);
        }
        // An orphan may be the reason for a refusal. Then the orphans are dropped (their senders
        // are asked for them again), and the changes are judged without them.
        self.apply_these(changes.clone(), frees_orphans, rules).or_else(|refusal| {
            self.refused = Some(self.heads.clone());
            if self.restore() { self.apply_these(changes, false, rules) } else { Err(refusal) }
        })
    }

    fn apply_these(
        &mut self,
        mut changes: Vec<Change>,
        frees_orphans: bool,
        rules: Rules,
    ) -> Result<Admitted, Refusal> {
        let (heads, tally) = (&self.heads, self.tally);
        let State::Awake(doc) = &mut self.state else { unreachable!("it was just loaded") };
        changes.retain(|change| doc.get_change_meta_by_hash(&change.hash()).is_none());
        let mut lineage = Lineage::new(doc, &changes, heads);
        // Nothing can be proven about changes to a document that readers number differently
        // already.
        let mut is_proven = !tally.is_ambiguous;
        for change in &changes {
            check_applicable(change)?;
            is_proven &= lineage.check(change)?;
        }
        let has_marks = frees_orphans || changes.iter().any(has_marks);
        if is_proven && !frees_orphans {
            // If they are refused after all, the document has to be restored.
            self.refused = Some(heads.clone());
            let applied = apply_to(doc, changes, heads, tally, has_marks, rules)?;
            self.refused = None;
            return Ok(self.applied(applied));
        }
        // All others are tried on a copy: operations with the same number cannot be told apart
        // afterwards. They are applied one by one: automerge applies changes of one actor in any
        // order that their dependencies allow, and fails on some.
        let mut trial = doc.clone();
        let has = |hash: &ChangeHash| doc.get_change_meta_by_hash(hash).is_some();
        let (mut ordered, orphans) = dependencies_first(changes, has);
        let last = ordered.pop();
        for change in ordered.into_iter().chain(orphans) {
            catch_panic(|| trial.apply_changes([change]))?
                .map_err(|error| Refusal::Unappliable(error.to_string()))?;
        }
        let last = last.into_iter().collect();
        let applied = apply_to(&mut trial, last, heads, tally, true, rules)?;
        self.state = State::Awake(trial);
        Ok(self.applied(applied))
    }

    fn applied(&mut self, Applied { heads, tally, new }: Applied) -> Admitted {
        if heads == self.heads {
            return Admitted::Nothing;
        }
        (self.heads, self.tally) = (heads, tally);
        Admitted::Changes(new)
    }
}

#[cfg(test)]
mod tests;
