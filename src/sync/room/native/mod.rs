//! The engine on automerge itself: one document, one [`State`](automerge::sync::State) a session.
//!
//! [`Core`] decides what to do; the engine does it.
//!
//! | to find | look in |
//! |---|---|
//! | where steps run, who pays for them, what happens when one panics | `steps` |
//! | what is done for each effect of the core | `effects` |
//! | chunks that are being stored, or read because others have stored them | `writer` |

mod core_state;
mod effects;
mod steps;
mod writer;

use self::{core_state::CoreState, writer::Writer};
use super::{
    engine::{Engine, EngineFailed, EngineStart, Start},
    members::Members,
    pending::{Left, Pending},
    port::Port,
};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    config::Size,
    document::{
        chunk::Key,
        core::{
            event::{Effect, Event, Rejection},
            state::Core,
        },
        gate::Refusal,
        merge::Ancestry,
        sync_message::SyncMessage,
    },
    limits::{Charge, turns::Turns},
    observe::usage::Usage,
    storage::{documents::Opened, live::News},
    sync::report::EngineReport,
};
use automerge::ChangeHash;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

/// Returns a starter of native engines, which wait for their turns before long steps.
pub fn engine(turns: Arc<Turns>) -> EngineStart {
    Arc::new(move |start| {
        let engine = NativeEngine::new(start, turns.clone());
        std::future::ready(Box::new(engine) as Box<dyn Engine>).boxed()
    })
}

struct NativeEngine {
    document: DocumentId,
    core: CoreState,
    /// A step has begun, and [`Pending`] does not know yet that it has ended.
    is_in_step: bool,
    /// The session whose changes the core is applying, or 0.
    applying: Arc<AtomicU64>,
    /// Why the core has failed, if it has.
    failure: EngineFailed,
    /// What has happened since the last step began.
    events: Vec<Event>,
    /// The room's members, with the way to each of them.
    members: Arc<Members>,
    /// What was received and is not durable.
    pending: Arc<Pending>,
    writer: Writer,
    /// Limits how many long steps run at once.
    turns: Arc<Turns>,
    /// Is charged for long steps.
    usage: Usage,
    /// What sessions have paid in advance for the step that runs on another thread.
    prepaid: Vec<(SessionId, Duration)>,
}

impl NativeEngine {
    fn new(start: Start, turns: Arc<Turns>) -> Self {
        let Start { documents, document, opened, members, usage, pending, rank } = start;
        let Opened { doc, chunks, unsaved_seed, stored_heads, unpacked, basis, .. } = opened;
        let is_stored = |key: &Key| unsaved_seed.as_ref().is_none_or(|seed| seed.key != *key);
        let sizes = chunks.into_iter().map(|(key, data)| (key, data.len()));
        let (stored, unstored): (Vec<_>, Vec<_>) = sizes.partition(|(key, _)| is_stored(key));
        let unstored = unstored.into_iter().map(|(_, size)| size).sum();
        let (max, values) = (documents.max(), unpacked.values);
        let core = Core::new(document, doc, max, values, (stored, unstored), &stored_heads);
        let mut core = Box::new(core);
        core.set_rank(rank);
        Self {
            document,
            applying: core.applying(),
            is_in_step: false,
            failure: EngineFailed { is_panic: true, is_attributed: false },
            // In a step it writes what is not stored.
            events: if core.is_durable() { Vec::new() } else { vec![Event::Resume] },
            core: CoreState::Idle(core),
            members,
            pending,
            writer: Writer::new(documents, document, basis),
            turns,
            usage,
            prepaid: Vec::new(),
        }
    }

    /// Calls `work` with the port of a session, unless the session has left.
    fn with_port<T>(&self, session: SessionId, work: impl FnOnce(&Port) -> T) -> Option<T> {
        self.members.with_port(session, work)
    }

    async fn settle(&mut self) {
        self.wait_for_core().await;
        // Before anybody is told what is durable.
        if self.writer.read_if_outdated() {
            self.run(None, |core: &mut Core| (None, core.step(vec![Event::Lost]))).await;
        }
        self.retry_pending().await;
        let CoreState::Idle(core) = &self.core else { return };
        self.writer.read_unread(|| core.stored_keys());
        if self.events.is_empty() {
            return;
        }
        self.pending.begin_step();
        let events = std::mem::take(&mut self.events);
        let estimate = Some(core.estimate(&events));
        let max = self.writer.documents.max();
        let step = move |core: &mut Core| {
            core.set_max(max);
            (None, core.step(events))
        };
        self.run(estimate, step).await;
    }

    /// Applies what an earlier engine has left. Each message gets a step of its own, so that it is
    /// known which one to drop if this engine fails, too.
    async fn retry_pending(&mut self) {
        while matches!(self.core, CoreState::Idle(_))
            && let Some(Left { ticket, from, message }) = self.pending.retry()
        {
            let step = move |core: &mut Core| {
                let effects = match SyncMessage::read(message, Size(u64::MAX)) {
                    Ok(message) => core.step(vec![Event::Retry { from, message, ticket }]),
                    Err(why) => vec![Effect::Refuse {
                        from,
                        ticket: Some(ticket),
                        why: Rejection::Gate(Refusal::Malformed(why.to_string())),
                    }],
                };
                (None, effects)
            };
            self.run(None, step).await;
        }
    }

    /// Waits until a write ends, and goes on from there. Cancel safe.
    async fn work(&mut self) -> Result<(), EngineFailed> {
        self.wait_for_core().await;
        if matches!(self.core, CoreState::Failed) {
            return Err(self.failure);
        }
        if !self.events.is_empty() {
            // An earlier call was cancelled.
            self.settle().await;
            return Ok(());
        }
        let Ok(events) = self.writer.next().await else {
            // What was not durable goes to the next engine.
            self.core = CoreState::Failed;
            self.failure = EngineFailed { is_panic: false, is_attributed: true };
            return Err(self.failure);
        };
        self.events.extend(events);
        self.settle().await;
        Ok(())
    }
}

impl Engine for NativeEngine {
    fn join(&mut self, port: Port) -> BoxFuture<'_, ()> {
        let (id, queue_full, reads_only) = (port.session(), port.full(), port.reads_only());
        self.events.push(Event::Join { id, queue_full, reads_only });
        std::future::ready(()).boxed()
    }

    fn leave(&mut self, session: SessionId) {
        self.events.push(Event::Leave(session));
    }

    fn receive(
        &mut self,
        from: SessionId,
        _request: bool,
        message: SyncMessage,
        charge: Option<Charge>,
    ) -> BoxFuture<'_, ()> {
        let charge = charge.filter(|_| message.has_changes());
        let ticket = charge
            .map(|charge| self.pending.receive(from, &message, charge, &self.writer.documents));
        self.events.push(Event::Message { from, message, ticket });
        std::future::ready(()).boxed()
    }

    fn settle(&mut self) -> BoxFuture<'_, ()> {
        self.settle().boxed()
    }

    fn resume(&mut self) {
        self.events.push(Event::Resume);
    }

    fn reads_only(&mut self, session: SessionId) -> BoxFuture<'_, ()> {
        self.events.push(Event::ReadsOnly(session));
        std::future::ready(()).boxed()
    }

    fn follow(&mut self, news: News) -> bool {
        match news {
            News::Chunks(stored) => self.events.push(Event::Stored(stored)),
            News::Unread => self.writer.has_unread = true,
        }
        true
    }

    fn rest(&mut self) {
        if let CoreState::Idle(core) = &mut self.core {
            core.release_memory();
        }
    }

    fn merge(&mut self, snapshot: Bytes) -> BoxFuture<'_, Option<Ancestry>> {
        async move {
            self.settle().await;
            self.run(None, move |core| core.merge(&snapshot)).await
        }
        .boxed()
    }

    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>> {
        self.work().boxed()
    }

    fn heads(&self) -> Option<&[ChangeHash]> {
        match &self.core {
            CoreState::Idle(core) => Some(core.heads()),
            CoreState::Stepping(_) | CoreState::Failed => None,
        }
    }

    fn durable_heads(&self) -> Option<&[ChangeHash]> {
        match &self.core {
            CoreState::Idle(core) => Some(core.durable_heads()),
            CoreState::Stepping(_) | CoreState::Failed => None,
        }
    }

    fn report(&mut self) -> BoxFuture<'_, EngineReport> {
        async move {
            // Messages that came before count.
            self.settle().await;
            self.wait_for_core().await;
            match &self.core {
                CoreState::Idle(core) => EngineReport {
                    heads: Some(core.heads().to_vec()),
                    changes: Some(core.progress().0),
                    bytes: Some(core.stored_bytes() as u64),
                    theirs: core.peer_heads(),
                },
                CoreState::Stepping(_) | CoreState::Failed => EngineReport::default(),
            }
        }
        .boxed()
    }

    fn is_durable(&self) -> bool {
        let is_written =
            self.events.is_empty() && self.writer.is_idle() && !self.writer.is_outdated();
        is_written && matches!(&self.core, CoreState::Idle(core) if core.is_durable())
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, Result<(), EngineFailed>> {
        async move {
            loop {
                self.settle().await;
                if self.is_durable() {
                    return Ok(());
                }
                let is_new_loss = self.writer.is_idle() && self.writer.is_outdated();
                if !is_new_loss {
                    self.work().await?;
                }
            }
        }
        .boxed()
    }
}
