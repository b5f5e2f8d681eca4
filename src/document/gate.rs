//! Decides whether bytes may become part of a document.
//!
//! automerge 0.12 applies changes that it cannot write again: changes that are not in its canonical form, whose operations
//! are numbered below what they depend on, or which leave out their author's previous change. A document with such a
//! change cannot be loaded once it was saved, by anybody. Other changes make it panic while it applies them. So a
//! [`Document`] takes in changes through [`Document::admit`] alone, and whatever that admits can be saved and loaded again
//! with the same heads, here and by automerge's JavaScript.
//!
//! Most changes are proven good by themselves: rebuilt from the document they have the same hash, which is how they will
//! be written, and their numbering is what a reader derives from their dependencies. Whatever is unusual is decided by
//! saving the whole document and loading it again.

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
    apply::{Applied, apply_to, has_marks, may_be_applied},
    guard::guarded,
    lineage::Lineage,
    parse::{DOCUMENT, load_document},
    refusal::{MAX_HEADS, malformed},
    tally::Tally,
};
pub use self::{parse::loads, refusal::Refusal, rules::Rules};
use super::{order::dependencies_first, unpacked};

/// What was admitted.
#[derive(Debug)]
pub enum Admitted {
    /// Nothing that changes the heads: it was there already, or waits for changes that are missing.
    Nothing,
    /// These changes, in the order of their dependencies and as automerge writes them.
    Changes(Vec<Change>),
    /// A whole document, into one that was empty.
    Whole,
}

/// An automerge document into which nothing gets that was not admitted.
#[derive(Debug, Default)]
pub struct Document {
    state: State,
    heads: Vec<ChangeHash>,
    tally: Tally,
    /// The heads before changes were applied that were then refused.
    refused: Option<Vec<ChangeHash>>,
}

#[derive(Debug)]
enum State {
    Awake(Box<Automerge>),
    /// What it was saved as.
    Asleep(Vec<u8>),
}

impl Default for State {
    fn default() -> Self {
        Self::Awake(Box::default())
    }
}

impl Document {
    /// A document of these bytes alone.
    ///
    /// # Errors
    /// They are not to be admitted.
    pub fn read(bytes: &[u8], rules: Rules) -> Result<Self, Refusal> {
        let mut document = Self::default();
        document.admit(bytes, rules)?;
        Ok(document)
    }

    /// The automerge document, which is loaded if it was asleep.
    pub fn automerge(&mut self) -> &Automerge {
        self.awake()
    }

    fn awake(&mut self) -> &mut Automerge {
        if let State::Asleep(saved) = &self.state {
            match Automerge::load(saved) {
                Ok(doc) => self.state = State::Awake(Box::new(doc)),
                #[expect(clippy::panic, reason = "the engine restarts from storage then")]
                Err(error) => panic!("a document that was saved does not load: {error}"),
            }
        }
        match &mut self.state {
            State::Awake(doc) => doc,
            State::Asleep(_) => unreachable!("it was just read"),
        }
    }

    /// Keeps the document as what it is saved as, until it is needed.
    pub fn sleep(&mut self) {
        if let State::Awake(doc) = &self.state {
            let mut saved = doc.save();
            saved.shrink_to_fit();
            self.state = State::Asleep(saved);
        }
    }

    /// Whether it is kept as what it was saved as.
    pub fn is_asleep(&self) -> bool {
        matches!(self.state, State::Asleep(_))
    }

    /// The document's heads, sorted.
    pub fn heads(&self) -> &[ChangeHash] {
        &self.heads
    }

    /// How many changes it has.
    pub fn changes(&self) -> u64 {
        self.tally.changes
    }

    /// How many operations its changes have.
    pub fn operations(&self) -> u64 {
        self.tally.operations
    }

    /// Whether it has a change.
    pub fn has(&mut self, hash: &ChangeHash) -> bool {
        self.heads.binary_search(hash).is_ok()
            || self.awake().get_change_meta_by_hash(hash).is_some()
    }

    /// Whether there are changes that wait for others.
    pub fn has_orphans(&mut self) -> bool {
        !self.awake().get_missing_deps(&[]).is_empty()
    }

    /// Whether readers may be unable to load it because of how its operations are numbered.
    ///
    /// # Errors
    /// They may, for that reason.
    pub fn check_numbering(&self) -> Result<(), Refusal> {
        self.tally.check()
    }

    /// Takes in chunks of changes, documents or bundles. What waits for missing changes is judged when these arrive.
    ///
    /// # Errors
    /// They may not become part of the document, which is then as it was, but for changes that waited for others; or it [is
    /// damaged](Self::is_damaged).
    pub fn admit(&mut self, bytes: &[u8], rules: Rules) -> Result<Admitted, Refusal> {
        let admitted = self.try_admit(bytes, rules);
        self.restore();
        admitted
    }

    /// The same, but a document that refused changes [is left](Self::is_damaged) to be [restored](Self::restore): that takes
    /// as long as loading it.
    ///
    /// # Errors
    /// They may not become part of the document.
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
        // Loading it has compared every change with its hash.
        let checked = self.check_whole(rules).and_then(|()| self.apply(changes, rules));
        if checked.is_err() {
            self.refused = Some(Vec::new());
        }
        checked.map(|_| Admitted::Whole)
    }

    /// What has to be told to whoever keeps a copy of the document and may have lost parts of it, after `bytes` were
    /// admitted: all of their changes but for those that wait, and those that waited for them.
    ///
    /// # Errors
    /// They do not parse.
    pub fn to_be_passed_on(&self, bytes: &[u8], admitted: Admitted) -> Result<Vec<u8>, Refusal> {
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

    /// Takes in changes that were parsed before; as [`Self::admit`].
    ///
    /// # Errors
    /// They may not become part of the document, which is then as it was.
    pub(super) fn admit_changes(
        &mut self,
        changes: Vec<Change>,
        rules: Rules,
    ) -> Result<Admitted, Refusal> {
        let admitted = self.apply(changes, rules);
        self.restore();
        admitted
    }

    /// Whether changes were applied that were then refused. Nothing of the document may be sent or stored until it is
    /// restored; if that fails, it has to be read from storage again.
    pub fn is_damaged(&self) -> bool {
        self.refused.is_some()
    }

    /// Rebuilds the document as it was before the changes that were refused, without those that wait for others.
    /// Returns whether that could be done.
    pub fn restore(&mut self) -> bool {
        let (Some(before), State::Awake(doc)) = (&self.refused, &self.state) else { return true };
        let restored = match before.as_slice() {
            [] => Ok(Ok(Automerge::new())),
            before => guarded(|| doc.fork_at(before)),
        };
        match restored {
            // Equal heads are equal documents: a hash covers all that a change builds on.
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

    /// A document from its chunk, and from nothing else.
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
        // Loads it, if it was asleep.
        let missing = self.awake().get_missing_deps(&[]);
        // Those that waited for these are judged now.
        let frees_orphans = changes.iter().any(|change| missing.contains(&change.hash()));
        if missing.is_empty() {
            return self.apply_these(changes, false, rules);
        }
        // Changes that wait may be to blame for a refusal. Then they go: their senders are asked for them again, and these are
        // judged by themselves.
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
        // What is wrong already tells nothing of how it will be read.
        let mut is_usual = !tally.is_ambiguous;
        for change in &changes {
            may_be_applied(change)?;
            is_usual &= lineage.is_usual(change)?;
        }
        let has_marks = frees_orphans || changes.iter().any(has_marks);
        if is_usual && !frees_orphans {
            // Where it is refused after all, it has to be restored.
            self.refused = Some(heads.clone());
            let applied = apply_to(doc, changes, heads, tally, has_marks, rules)?;
            self.refused = None;
            return Ok(self.applied(applied));
        }
        // What is unusual is tried on a copy: operations with the same number cannot be told apart again. One after the other,
        // for automerge takes changes of one actor in any order that their dependencies leave, and fails.
        let mut trial = doc.clone();
        let has = |hash: &ChangeHash| doc.get_change_meta_by_hash(hash).is_some();
        let (mut ordered, orphans) = dependencies_first(changes, has);
        let last = ordered.pop();
        for change in ordered.into_iter().chain(orphans) {
            guarded(|| trial.apply_changes([change]))?
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
