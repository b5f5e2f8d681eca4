//! Changes that a room has received and that are not durable yet.
//!
//! They belong to the room and outlive its engine: whatever the reason that an engine ends, the
//! next one applies what it left. Each message holds the quota that its sender was charged; the
//! charge is refunded unless the changes are stored.

use std::{collections::VecDeque, sync::Mutex};

use bytes::Bytes;

use crate::{
    base::{lock::lock, session_id::SessionId},
    document::{core::event::Ticket, sync_message::SyncMessage},
    limits::Charge,
    storage::documents::{Documents, Unsaved},
};

/// Messages of fewer bytes are copied: each of them may keep a read buffer of its connection in
/// memory.
const COPIED: usize = 16 << 10;

/// A message that an earlier engine has left.
#[derive(Clone)]
pub struct Left {
    /// Its name.
    pub ticket: Ticket,
    /// The session that sent it, which may have ended.
    pub from: SessionId,
    /// The automerge sync message.
    pub message: Bytes,
}

/// The messages whose changes are not durable yet, in the order in which they came.
#[derive(Default)]
pub struct Pending(Mutex<Messages>);

#[derive(Default)]
struct Messages {
    /// By their tickets, and by their stages: first what is applied, then what is in a step, then
    /// what is to be.
    waiting: VecDeque<Entry>,
    last: u64,
    /// The charge for a document that is new, until something of it is durable.
    creation: Option<Charge>,
}

struct Entry {
    left: Left,
    charge: Option<Charge>,
    /// Counts its bytes as unsaved until they are part of a write.
    unsaved: Option<Unsaved>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No step of the engine has begun with it.
    Received,
    /// The engine's step with it has not ended.
    InStep,
    /// It is durable when the first `changes` changes of the document are.
    Applied { changes: u64 },
    /// The engine that had it has ended.
    Left,
    /// It was left, and is alone in a step of the next engine.
    Retried,
}

impl Pending {
    /// Adds a message with changes.
    pub fn receive(
        &self,
        from: SessionId,
        message: &SyncMessage,
        charge: Charge,
        documents: &Documents,
    ) -> Ticket {
        let raw = &message.raw;
        let message = if raw.len() < COPIED { Bytes::copy_from_slice(raw) } else { raw.clone() };
        let unsaved = Some(documents.unsaved_bytes(message.len()));
        let mut messages = lock(&self.0);
        messages.last += 1;
        let ticket = Ticket(messages.last);
        messages.waiting.push_back(Entry {
            left: Left { ticket, from, message },
            charge: Some(charge),
            unsaved,
            stage: Stage::Received,
        });
        ticket
    }

    /// A step of the engine begins with all messages that it has received.
    pub fn begin_step(&self) {
        for entry in lock(&self.0).not_applied() {
            if entry.stage == Stage::Received {
                entry.stage = Stage::InStep;
            }
        }
    }

    /// Returns the next message that an earlier engine has left. A step begins with it alone.
    pub fn retry(&self) -> Option<Left> {
        let mut messages = lock(&self.0);
        let first = messages.waiting.partition_point(Entry::is_applied);
        let entry = messages.waiting.get_mut(first).filter(|entry| entry.stage == Stage::Left)?;
        entry.stage = Stage::Retried;
        Some(entry.left.clone())
    }

    /// The changes of a message are part of the document, or wait there for others. Where `is_new`
    /// is false the document had them before, and their charge is refunded.
    pub fn admitted(&self, ticket: Ticket, is_new: bool) {
        let mut messages = lock(&self.0);
        if !is_new
            && let Ok(at) = messages.find(ticket)
            && let Some(entry) = messages.waiting.get_mut(at)
        {
            entry.charge = None;
        }
    }

    /// The changes of a message were refused: they do not become part of the document.
    pub fn refused(&self, ticket: Ticket) {
        let mut messages = lock(&self.0);
        if let Ok(at) = messages.find(ticket) {
            messages.waiting.remove(at);
        }
    }

    /// A write begins with all that is part of the document. It counts its own bytes as unsaved.
    pub fn write_begins(&self) {
        for entry in lock(&self.0).waiting.iter_mut().rev() {
            match entry.stage {
                Stage::Received | Stage::Left => {}
                // An earlier write, which failed or is under way, has all that came before.
                Stage::Applied { .. } if entry.unsaved.is_none() => return,
                Stage::InStep | Stage::Retried | Stage::Applied { .. } => entry.unsaved = None,
            }
        }
    }

    /// The engine's step has ended. The document has this many `changes`, and the first `durable`
    /// of them are durable.
    pub fn end_step(&self, changes: u64, durable: u64) {
        let mut messages = lock(&self.0);
        if durable > 0
            && let Some(mut creation) = messages.creation.take()
        {
            creation.keep_documents(1);
        }
        for entry in messages.not_applied() {
            if matches!(entry.stage, Stage::InStep | Stage::Retried) {
                entry.stage = Stage::Applied { changes };
            }
        }
        while let Some(mut entry) = messages.waiting.pop_front_if(|entry| entry.is_durable(durable))
        {
            if let Some(charge) = &mut entry.charge {
                charge.keep_bytes();
            }
        }
        if messages.waiting.is_empty() {
            // A quiet room keeps no memory for it.
            messages.waiting = VecDeque::new();
        }
    }

    /// The engine has failed in a step. Drops the step's messages from `culprit` and one that was
    /// retried, so that the next engine does not fail over the same. Returns the bytes of what was
    /// dropped.
    pub fn step_failed(&self, culprit: Option<SessionId>) -> usize {
        let mut dropped = 0;
        lock(&self.0).waiting.retain(|entry| {
            let is_culprit = match entry.stage {
                Stage::InStep => culprit == Some(entry.left.from),
                Stage::Retried => true,
                Stage::Received | Stage::Applied { .. } | Stage::Left => false,
            };
            dropped += if is_culprit { entry.left.message.len() } else { 0 };
            !is_culprit
        });
        dropped
    }

    /// The engine has ended: what it has left is for the next one. Returns whether there is
    /// anything.
    pub fn hand_over(&self, documents: &Documents) -> bool {
        let mut messages = lock(&self.0);
        for entry in &mut messages.waiting {
            entry.stage = Stage::Left;
            let bytes = entry.left.message.len();
            entry.unsaved.get_or_insert_with(|| documents.unsaved_bytes(bytes));
        }
        !messages.waiting.is_empty()
    }

    /// Whether everything that was received is durable or refused.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).waiting.is_empty()
    }

    /// Gives everything up, and returns how many bytes that were.
    pub fn clear(&self) -> usize {
        let waiting = std::mem::take(&mut lock(&self.0).waiting);
        waiting.iter().map(|entry| entry.left.message.len()).sum()
    }

    /// Holds the charge for a new document until something of it is durable.
    pub fn hold_creation(&self, charge: Charge) {
        lock(&self.0).creation = Some(charge);
    }

    /// Whether somebody is charged for a new document that is not durable yet.
    pub fn holds_creation(&self) -> bool {
        lock(&self.0).creation.is_some()
    }

    /// Keeps the charge for a new document: something of it is stored.
    pub fn keep_creation(&self) {
        if let Some(mut creation) = lock(&self.0).creation.take() {
            creation.keep_documents(1);
        }
    }
}

impl Messages {
    fn find(&self, ticket: Ticket) -> Result<usize, usize> {
        self.waiting.binary_search_by_key(&ticket, |entry| entry.left.ticket)
    }

    /// Those that no step has ended with, the last one first.
    fn not_applied(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.waiting.iter_mut().rev().take_while(|entry| !entry.is_applied())
    }
}

impl Entry {
    fn is_applied(&self) -> bool {
        matches!(self.stage, Stage::Applied { .. })
    }

    /// Whether it is durable once the first `durable` changes of the document are.
    fn is_durable(&self, durable: u64) -> bool {
        matches!(self.stage, Stage::Applied { changes } if changes <= durable)
    }
}
