//! The engine on automerge itself: one document, one [`State`](automerge::sync::State) a session.
//!
//! [`core`] decides, [`exchange`] speaks automerge's sync protocol; here is what happens: steps that take
//! long go to a thread of their own, one write at a time is under way, and what the core wants sent is sent.

mod core;
pub(super) mod cost;
mod exchange;
#[cfg(test)]
mod simulation;

use self::{
    core::{Core, Effect, Event, Refused},
    cost::Estimate,
};
use super::{Engine, EngineFailed, EngineStart, Port, done};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    config::Size,
    document::{chunk::Key, compare::Relation, gate::Refusal},
    limits::{
        Charge,
        turns::{Payer, Turns},
    },
    observe::usage::{Usage, thread_time},
    storage::documents::{Documents, SeedSnapshot},
    sync::{
        look::EngineLook,
        room::{
            Start,
            pending::{Left, Pending},
        },
        wire::SyncMessage,
    },
};
use automerge::ChangeHash;
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::{JoinError, JoinHandle};
use tracing::error;

/// A starter of native engines, which take places of `heavy` for steps that take long.
pub fn engine(heavy: Arc<Turns>) -> EngineStart {
    Arc::new(move |start| {
        let engine = NativeEngine::new(start, heavy.clone());
        std::future::ready(Box::new(engine) as Box<dyn Engine>).boxed()
    })
}

struct NativeEngine {
    document: DocumentId,
    documents: Arc<Documents>,
    /// Places for steps that take long.
    heavy: Arc<Turns>,
    core: Place,
    /// A step has begun, and its end is not noted yet.
    is_in_step: bool,
    /// The session whose changes the core is taking in, or 0.
    taking_in: Arc<AtomicU64>,
    /// Why there is no core any more.
    failed: EngineFailed,
    /// What came since the last step.
    events: Vec<Event>,
    ports: HashMap<SessionId, Port>,
    /// The writes under way, one after the other.
    write: Option<BoxFuture<'static, ()>>,
    /// The served bundle's snapshot, which is stored before the first change that builds on it.
    seed: Option<SeedSnapshot>,
    /// Chunks that a snapshot replaced are being deleted.
    removal: Option<BoxFuture<'static, ()>>,
    /// What was received and is not durable.
    pending: Arc<Pending>,
    /// Where steps that take long are noted.
    usage: Usage,
    /// What sessions have paid in advance for the step that is away.
    estimated: Vec<(SessionId, Duration)>,
}

/// Where the core is.
enum Place {
    Here(Box<Core>),
    /// In a step that takes long.
    Away(JoinHandle<Result<Stepped, JoinError>>),
    /// In a panic.
    Lost,
}

/// A core after a step, and what is to be done.
struct Stepped {
    core: Box<Core>,
    effects: Vec<Effect>,
    relation: Option<Relation>,
    /// What its senders are to pay.
    shares: Vec<(SessionId, Duration)>,
    /// The document refused changes and could not be restored.
    is_lost: bool,
}

impl NativeEngine {
    fn new(start: Start, heavy: Arc<Turns>) -> Self {
        let Start { documents, document, opened, usage, pending } = start;
        let values = opened.unpacked.values;
        let stored = opened.chunks.into_iter().map(|(key, data)| (key, data.len()));
        let core = Box::new(Core::new(document, opened.doc, documents.max(), values, stored));
        Self {
            document,
            documents,
            heavy,
            taking_in: core.taking_in(),
            failed: EngineFailed { is_panic: true, is_mended: false },
            core: Place::Here(core),
            is_in_step: false,
            events: Vec::new(),
            ports: HashMap::new(),
            write: None,
            seed: opened.unsaved_seed,
            removal: None,
            pending,
            usage,
            estimated: Vec::new(),
        }
    }

    /// Run `work` on the core, on a thread that may block where it takes long; it always does where nothing is estimated.
    async fn run(
        &mut self,
        estimate: Option<Estimate>,
        work: impl FnOnce(&mut Core) -> (Option<Relation>, Vec<Effect>) + Send + 'static,
    ) -> Option<Relation> {
        self.come_back().await;
        let Place::Here(core) = std::mem::replace(&mut self.core, Place::Lost) else {
            return None;
        };
        self.is_in_step = true;
        let is_long = estimate.as_ref().is_none_or(|estimate| estimate.total() > cost::LONG);
        let estimate = estimate.unwrap_or_default();
        let payer = is_long.then(|| self.payer(estimate.payer()));
        if is_long {
            // Paid for in advance: many long steps may be under way before the first has ended.
            self.estimated = estimate.shares(estimate.total().into()).collect();
            self.charge(self.estimated.iter().copied(), 1);
        }
        let step = move |mut core: Box<Core>| {
            let total = estimate.total();
            let began = (is_long || total > cost::MEASURED).then(thread_time);
            let (relation, effects) = work(&mut core);
            let took = began.map_or(total.into(), |began| thread_time().saturating_sub(began));
            let shares = estimate.shares(took).collect();
            Stepped { core, effects, relation, shares, is_lost: false }
        };
        if let Some(payer) = payer {
            self.core = self.send_away(core, payer, step);
            return self.come_back().await;
        }
        match catch_unwind(AssertUnwindSafe(move || step(core))) {
            Ok(stepped) => {
                let relation = self.stepped(stepped);
                // Its document may have to be restored.
                self.come_back().await.or(relation)
            }
            Err(_) => {
                self.panicked();
                None
            }
        }
    }

    /// Who takes a place for a step that is mostly one session's, or nobody's.
    fn payer(&self, session: Option<SessionId>) -> Payer {
        let port = session.and_then(|session| self.ports.get(&session));
        port.map_or(Payer::Document(self.document), Port::payer)
    }

    /// Have sessions pay, or pay them back where `sign` is -1.
    fn charge(&self, shares: impl Iterator<Item = (SessionId, Duration)>, sign: i64) {
        for (session, share) in shares {
            if let Some(port) = self.ports.get(&session) {
                port.charge(share, sign);
            }
        }
    }

    /// Start a step on a thread that may block.
    fn send_away(
        &self,
        core: Box<Core>,
        payer: Payer,
        step: impl FnOnce(Box<Core>) -> Stepped + Send + 'static,
    ) -> Place {
        let (heavy, usage) = (self.heavy.clone(), self.usage.clone());
        Place::Away(tokio::spawn(async move {
            let stepped = heavy.run(payer, move || usage.charge(|| step(core))).await;
            stepped.map(|(stepped, _)| stepped)
        }))
    }

    /// Wait until the core is here and its document as it should be, or lost. Nothing is forgotten if the wait is given up.
    async fn come_back(&mut self) -> Option<Relation> {
        let mut relation = None;
        loop {
            match &mut self.core {
                Place::Away(step) => match step.await {
                    Ok(Ok(stepped)) => relation = self.stepped(stepped).or(relation),
                    Ok(Err(_)) | Err(_) => {
                        self.core = Place::Lost;
                        self.panicked();
                    }
                },
                Place::Here(core) if core.is_damaged() => {
                    let Place::Here(core) = std::mem::replace(&mut self.core, Place::Lost) else {
                        return relation;
                    };
                    let sender = core.damaged_by();
                    self.core = self.send_away(core, self.payer(sender), move |mut core| {
                        let began = thread_time();
                        let effects = core.recover();
                        let took = thread_time().saturating_sub(began);
                        let shares = sender.map(|sender| (sender, took)).into_iter().collect();
                        let is_lost = effects.is_none();
                        let effects = effects.unwrap_or_default();
                        Stepped { core, effects, relation: None, shares, is_lost }
                    });
                }
                Place::Here(core) => {
                    if std::mem::take(&mut self.is_in_step) {
                        let (changes, durable) = core.progress();
                        self.pending.end_step(changes, durable);
                    }
                    return relation;
                }
                Place::Lost => return relation,
            }
        }
    }

    fn panicked(&mut self) {
        error!(document = %self.document, "a panic in the document's engine; it is started anew");
        let from = SessionId(self.taking_in.load(Ordering::Relaxed));
        self.failed_in_step(from);
        if let Some(port) = self.ports.get(&from) {
            let reason = format!("the changes to {} make automerge fail", self.document);
            port.refuse(&reason, "unappliable");
            self.failed.is_mended = true;
        }
    }

    /// A step that took in changes of a session has failed, or of none if that is 0: they are not
    /// tried again.
    fn failed_in_step(&self, from: SessionId) {
        let bytes = self.pending.step_failed((from.0 != 0).then_some(from));
        if bytes > 0 {
            error!(
                document = %self.document, connection = %from, bytes,
                "changes that make the document's engine fail are dropped"
            );
        }
    }

    fn stepped(&mut self, stepped: Stepped) -> Option<Relation> {
        let estimated = std::mem::take(&mut self.estimated);
        self.charge(stepped.shares.into_iter(), 1);
        self.charge(estimated.into_iter(), -1);
        self.core = if stepped.is_lost {
            self.failed_in_step(stepped.core.damaged_by().unwrap_or_default());
            self.failed = EngineFailed { is_panic: false, is_mended: true };
            Place::Lost
        } else {
            Place::Here(stepped.core)
        };
        for effect in stepped.effects {
            match effect {
                Effect::Send { to, message } => {
                    if let Some(port) = self.ports.get(&to) {
                        port.sync_granted(&message);
                    }
                }
                Effect::KeepBack { from } => {
                    if let Some(port) = self.ports.get(&from) {
                        port.when_room();
                    }
                }
                Effect::Save { key, data } => {
                    self.pending.write_begins();
                    self.save_seed();
                    self.save(key, data);
                }
                Effect::Remove(keys) => {
                    let (documents, earlier) = (self.documents.clone(), self.removal.take());
                    let removal = async move {
                        if let Some(earlier) = earlier {
                            earlier.await;
                        }
                        // All at once: each alone would wait for a commit of its own.
                        join_all(keys.iter().map(|key| documents.remove(key))).await;
                    };
                    self.removal = Some(removal.boxed());
                }
                Effect::Applied { from, ticket, new_changes, has_orphans } => {
                    if let Some(ticket) = ticket {
                        self.pending.admitted(ticket, new_changes > 0 || has_orphans);
                    }
                    if let Some(port) = self.ports.get(&from) {
                        port.applied(new_changes);
                    }
                }
                Effect::Refuse { from, ticket, why } => {
                    if let Some(ticket) = ticket {
                        self.pending.refused(ticket);
                    }
                    if let Some(port) = self.ports.get(&from) {
                        let (reason, label) = match why {
                            Refused::Gate(why) => {
                                (format!("the changes to {} {why}", self.document), why.label())
                            }
                            Refused::TooLarge(why) => (why, "max_document"),
                        };
                        port.refuse(&reason, label);
                    }
                }
            }
        }
        stepped.relation
    }

    /// Begin to store a chunk, after those that are being stored.
    fn save(&mut self, key: Key, data: Bytes) {
        let (documents, earlier) = (self.documents.clone(), self.write.take());
        let waiting = documents.unsaved_bytes(data.len());
        let write = async move {
            if let Some(earlier) = earlier {
                earlier.await;
            }
            drop(waiting);
            documents.save(&key, data).await;
        };
        self.write = Some(write.boxed());
    }

    /// Begin to store the bundle's snapshot: the bundle may be gone tomorrow, and what builds on it must not be without it.
    fn save_seed(&mut self) {
        if let Some(SeedSnapshot { key, data }) = self.seed.take() {
            self.save(key, data);
        }
    }

    async fn settle(&mut self) {
        self.come_back().await;
        self.take_in_left().await;
        if self.events.is_empty() || matches!(self.core, Place::Lost) {
            return;
        }
        self.pending.begin_step();
        let events = std::mem::take(&mut self.events);
        let estimate = match &self.core {
            Place::Here(core) => Some(core.estimate(&events)),
            Place::Away(_) | Place::Lost => None,
        };
        let max = self.documents.max();
        let step = move |core: &mut Core| {
            core.set_max(max);
            (None, core.step(events))
        };
        self.run(estimate, step).await;
    }

    /// Take in what an earlier engine has left. One message a step: if this engine fails too, it is
    /// known over which.
    async fn take_in_left(&mut self) {
        while matches!(self.core, Place::Here(_))
            && let Some(Left { ticket, from, message }) = self.pending.retry()
        {
            let step = move |core: &mut Core| {
                let effects = match SyncMessage::read(message, Size(u64::MAX)) {
                    Ok(message) => core.step(vec![Event::Left { from, message, ticket }]),
                    Err(why) => vec![Effect::Refuse {
                        from,
                        ticket: Some(ticket),
                        why: Refused::Gate(Refusal::Malformed(why.to_string())),
                    }],
                };
                (None, effects)
            };
            self.run(None, step).await;
        }
    }

    async fn work(&mut self) -> Result<(), EngineFailed> {
        // Every wait here may be given up and begun again.
        self.come_back().await;
        if matches!(self.core, Place::Lost) {
            return Err(self.failed);
        }
        tokio::select! {
            () = done(&mut self.write) => {
                self.write = None;
                self.events.push(Event::Saved);
                self.settle().await;
            }
            () = done(&mut self.removal) => self.removal = None,
        }
        Ok(())
    }
}

impl Engine for NativeEngine {
    fn join(&mut self, port: Port) -> BoxFuture<'_, ()> {
        let (id, full, reads_only) = (port.session(), port.full(), port.reads_only());
        self.events.push(Event::Join { id, full, reads_only });
        self.ports.insert(port.session(), port);
        std::future::ready(()).boxed()
    }

    fn leave(&mut self, session: SessionId) {
        self.events.push(Event::Leave(session));
        self.ports.remove(&session);
    }

    fn receive(
        &mut self,
        from: SessionId,
        _request: bool,
        message: SyncMessage,
        charge: Option<Charge>,
    ) -> BoxFuture<'_, ()> {
        let charge = charge.filter(|_| message.has_changes());
        let ticket =
            charge.map(|charge| self.pending.receive(from, &message, charge, &self.documents));
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

    fn rest(&mut self) {
        if let Place::Here(core) = &mut self.core {
            core.rest();
        }
    }

    fn merge(&mut self, snapshot: Bytes) -> BoxFuture<'_, Option<Relation>> {
        async move {
            self.save_seed();
            self.settle().await;
            self.run(None, move |core| core.merge(&snapshot)).await
        }
        .boxed()
    }

    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>> {
        self.work().boxed()
    }

    fn durable_heads(&self) -> Option<&[ChangeHash]> {
        match &self.core {
            Place::Here(core) => Some(core.durable()),
            Place::Away(_) | Place::Lost => None,
        }
    }

    fn look(&mut self) -> BoxFuture<'_, EngineLook> {
        async move {
            self.come_back().await;
            match &self.core {
                Place::Here(core) => core.look(),
                Place::Away(_) | Place::Lost => EngineLook::default(),
            }
        }
        .boxed()
    }

    fn is_durable(&self) -> bool {
        let is_written = self.events.is_empty() && self.write.is_none();
        is_written && matches!(&self.core, Place::Here(core) if core.is_durable())
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            self.settle().await;
            while (!self.is_durable() || self.removal.is_some()) && self.work().await.is_ok() {}
        }
        .boxed()
    }
}
