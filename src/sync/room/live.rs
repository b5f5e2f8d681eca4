//! A room whose document is here: its engine, and the members that it synchronizes with.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use automerge::ChangeHash;
use tokio::time::{Instant as Deadline, sleep_until};
use tracing::{debug, info, warn};

use super::{
    engine::{Engine, EngineFailed, Start},
    input::Input,
    members::{Member, MemberState},
    port::Port,
    shared::{NOTHING, seconds_since},
    state::{End, REOPEN, Room, STASH},
};
use crate::{
    base::session_id::SessionId,
    document::{merge::Ancestry, sync_message::SyncMessage},
    limits::Charge,
    storage::documents::Opened,
    sync::{
        close_reason::CloseReason,
        events::What,
        report::{EngineReport, LiveDocument, LiveSession, texts},
        session::Session,
    },
};

/// Messages that are handled before they are answered: answers to one document's edits are sent
/// together.
const BATCH: usize = 64;
/// How long a room receives no message before it frees what memory it can. Acknowledgements are
/// delayed for as long.
const QUIET: Duration = Duration::from_millis(1500);

/// What a room with an engine is waiting for.
struct Waits {
    /// When the engine started.
    started: Instant,
    /// The document was empty then.
    was_empty: bool,
    /// When the last member left, if there is none.
    idle_since: Option<Deadline>,
    /// When the room unloads, unless something happens first.
    unload: Option<Deadline>,
    /// Whether it unloads because memory is short.
    is_evicted: bool,
    /// When the room frees what memory it can.
    quiet: Option<Deadline>,
}

impl Room {
    /// Serves the document until nobody is in the room.
    pub(super) async fn live(&mut self, opened: Box<Opened>) -> End {
        let stopping = self.shared.stopping.clone();
        let mut config = self.shared.config.clone();
        let was_empty = opened.heads.is_empty();
        // What happens once is in a box: a room keeps no memory for it.
        let mut engine = Box::pin(self.start_engine(opened)).await;
        let handle = self.handle.clone();
        if let Some(stored) = handle.take_stored() {
            // From while it was being opened.
            handle.stored(stored);
        }
        let mut waits = Waits {
            started: Instant::now(),
            was_empty,
            idle_since: None,
            unload: None,
            is_evicted: false,
            quiet: Some(Deadline::now() + QUIET),
        };
        loop {
            self.announce_durable(&*engine);
            let idle_unload = config.borrow_and_update().sync.idle_unload.0;
            self.plan_unload(&mut waits, engine.is_durable(), idle_unload);
            let next = [self.next_answer, waits.unload, waits.quiet].into_iter().flatten().min();
            // One timer: each costs a lock, and most are never due.
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = self.inbox.recv() => match input {
                    Some(input) => {
                        self.handle_batch(&mut *engine, input).await;
                        self.delay_acknowledgements(&*engine, &mut waits);
                    }
                    None => return End::Stop,
                },
                worked = engine.work() => if let Err(failed) = worked {
                    drop(engine);
                    return self.engine_failed(failed, waits.started).await;
                },
                () = handle.news.notified() => {
                    let delayed = self.inbox.take_delayed();
                    let senders = self.handle_all(&mut *engine, delayed).await;
                    if let Some(stored) = handle.take_stored()
                        && !engine.follow(stored)
                    {
                        return self.end_engine(engine, End::Reopen).await;
                    }
                    engine.resume();
                    engine.settle().await;
                    senders.into_iter().for_each(|id| self.measure(id));
                    self.delay_acknowledgements(&*engine, &mut waits);
                    if handle.take_storage_change() {
                        return self.end_engine(engine, End::Reopen).await;
                    }
                    if handle.take_bundle_change() {
                        self.merge_bundle(&mut *engine).await;
                    }
                }
                () = due => {
                    if waits.quiet.is_some_and(|at| at <= Deadline::now()) {
                        self.handle_delayed(&mut *engine).await;
                    }
                    if let Some(end) = self.handle_due(&mut *engine, &mut waits) {
                        return self.end_engine(engine, end).await;
                    }
                }
                _ = config.changed() => {}
                () = stopping.cancelled() => {
                    // Sessions have ended by now: what they sent is in the mailbox.
                    while let Some(input) = self.inbox.try_recv() {
                        self.handle_input(&mut *engine, input).await;
                    }
                    return self.end_engine(engine, End::Stop).await;
                }
            }
        }
    }

    /// Starts an engine with the members that wait for it and the messages that were kept.
    async fn start_engine(&mut self, opened: Box<Opened>) -> Box<dyn Engine> {
        let document = self.document();
        let start = Start {
            documents: self.shared.documents.clone(),
            document,
            opened: *opened,
            members: self.handle.members.clone(),
            usage: self.handle.usage.clone(),
            pending: self.handle.pending.clone(),
            rank: self.shared.others.as_ref().map_or(0, |others| others.rank(document)),
        };
        let mut engine = (self.shared.engine)(start).await;
        debug!(%document, "live");

        let waiting: Vec<(Arc<Session>, bool)> = {
            let members = self.members();
            let waiting = members
                .active()
                .filter_map(|member| Some((member.session.clone(), member.waiting()?.must_resend)));
            waiting.collect()
        };
        for (session, must_resend) in waiting {
            let Some(nothing) = NOTHING.clone() else { continue };
            if must_resend {
                // A peer does not repeat what it has sent, unless it hears that all of it is gone.
                session.send_sync(document, false, &nothing.raw);
            }
            self.begin(&mut *engine, session.id).await;
            engine.receive(session.id, true, nothing, None).await;
        }
        for input in std::mem::take(&mut self.stash) {
            self.handle_input(&mut *engine, Box::new(input)).await;
        }
        engine.settle().await;
        // The time to answer begins when there is something to answer from.
        let answer_by = Deadline::now() + self.forward_timeout();
        for member in self.members().active_mut() {
            member.answer_by = member.answer_by.map(|_| answer_by);
        }
        self.next_answer = self.first_answer();
        engine
    }

    /// Works out when the room unloads.
    fn plan_unload(&self, waits: &mut Waits, is_durable: bool, idle_unload: Duration) {
        if self.members().has_active() {
            waits.idle_since = None;
        } else {
            waits.idle_since.get_or_insert_with(Deadline::now);
        }
        waits.is_evicted = self.handle.members.is_evicted();
        let idle_for = if waits.is_evicted { Duration::ZERO } else { idle_unload };
        // A document that waits for its disk stays for sessions that come.
        waits.unload = waits.idle_since.filter(|_| is_durable).map(|since| since + idle_for);
    }

    /// Handles an input and those that wait behind it, and answers them together.
    async fn handle_batch(&mut self, engine: &mut dyn Engine, first: Box<Input>) {
        let mut next = Some(first);
        let (mut senders, mut received) = (Vec::new(), Vec::new());
        for left in (0..BATCH).rev() {
            let Some(input) = next.take() else { break };
            senders.extend(input.sync_sender());
            received.extend(input.received_at());
            self.handle_input(engine, input).await;
            // What is received has to be handled.
            next = if left > 0 { self.inbox.try_recv() } else { None };
        }
        engine.settle().await;
        let seconds = &self.metrics().message_seconds;
        received.into_iter().for_each(|at| seconds.observe(seconds_since(at)));
        senders.into_iter().for_each(|id| self.measure(id));
    }

    /// Lets acknowledgements of the present heads wait until the room is woken or quiet.
    fn delay_acknowledgements(&mut self, engine: &dyn Engine, waits: &mut Waits) {
        if let Some(heads) = engine.heads() {
            self.inbox.announce(heads);
        }
        waits.quiet = Some(Deadline::now() + QUIET);
    }

    /// Handles the acknowledgements that are delayed. The next ones wake the room.
    async fn handle_delayed(&mut self, engine: &mut dyn Engine) {
        let delayed = self.inbox.stop_delaying();
        let senders = self.handle_all(engine, delayed).await;
        engine.settle().await;
        senders.into_iter().for_each(|id| self.measure(id));
    }

    /// Handles inputs, and returns the sessions that have sent sync messages.
    async fn handle_all(
        &mut self,
        engine: &mut dyn Engine,
        inputs: VecDeque<Box<Input>>,
    ) -> Vec<SessionId> {
        let senders = inputs.iter().filter_map(|input| input.sync_sender()).collect();
        for input in inputs {
            self.handle_input(engine, input).await;
        }
        senders
    }

    /// Does what is due by the clock. Returns how the state ends, if it does.
    fn handle_due(&mut self, engine: &mut dyn Engine, waits: &mut Waits) -> Option<End> {
        let now = Deadline::now();
        if waits.quiet.is_some_and(|at| at <= now) {
            waits.quiet = None;
            engine.rest();
        }
        if waits.unload.is_some_and(|at| at <= now) {
            return Some(End::Retire(if waits.is_evicted { "memory" } else { "idle" }));
        }
        if self.next_answer.is_some_and(|at| at <= now) {
            // The session that announced the document left before its changes were here: the
            // document is unknown from now on, and others are asked for it.
            if waits.was_empty && self.is_unanswered() {
                return Some(End::Reopen);
            }
            self.answer_the_unanswered();
            self.next_answer = self.first_answer();
        }
        None
    }

    /// Pauses after an engine has failed. What it has left is for the next one.
    async fn engine_failed(&mut self, failed: EngineFailed, started: Instant) -> End {
        let EngineFailed { is_panic, is_attributed } = failed;
        self.metrics().panics.inc_by(u64::from(is_panic));
        let has_left = self.handle.pending.hand_over(&self.shared.documents);
        if is_attributed || started.elapsed() > REOPEN.1 {
            self.backoff.reset();
        }
        self.members().engine_ended(true);
        for input in self.inbox.stop_delaying() {
            self.stash(*input, "room_failed");
        }
        self.lose_stash("room_failed");
        let stopping = self.shared.stopping.clone();
        tokio::select! {
            () = self.pause("room_failed") => End::Reopen,
            () = stopping.cancelled(), if !has_left => End::Stop,
        }
    }

    /// Ends the engine; its members wait for the next one. Returns `end`, unless the engine has
    /// failed and left something unsaved: then there has to be a next one.
    async fn end_engine(&mut self, mut engine: Box<dyn Engine>, end: End) -> End {
        Box::pin(self.handle_delayed(&mut *engine)).await;
        let closing = engine.close();
        tokio::pin!(closing);
        // On a disk that fails this takes as long as that does. Sessions that send meanwhile are
        // not blocked with all their other documents; they send it again afterwards.
        let closed = loop {
            tokio::select! {
                closed = &mut closing => break closed,
                Some(input) = self.inbox.recv() => {
                    self.stash(*input, "closing");
                    if self.stash.len() >= STASH {
                        self.lose_stash("closing");
                    }
                }
            }
        };
        let is_panic = closed.is_err_and(|failed| failed.is_panic);
        self.metrics().panics.inc_by(u64::from(is_panic));
        self.members().engine_ended(closed.is_err());
        if !self.handle.pending.hand_over(&self.shared.documents) {
            return end;
        }
        self.pause("room_failed").await;
        End::Reopen
    }

    /// Has the engine synchronize with a member.
    async fn begin(&mut self, engine: &mut dyn Engine, id: SessionId) {
        let (port, since, wants_durable) = {
            let mut members = self.members();
            let Some(member) = members.get_mut(id).filter(|member| member.port().is_none()) else {
                return;
            };
            let port = Port::new(member.session.clone(), self.ports.clone());
            member.state = MemberState::Synchronizing(port.clone());
            member.wants_durable = member.session.is_subscribed();
            (port, member.since, member.wants_durable)
        };
        self.is_durable_wanted |= wants_durable;
        engine.join(port).await;
        self.metrics().join_seconds.observe(seconds_since(since));
    }

    // A box, because a future has space for its arguments twice.
    async fn handle_input(&mut self, engine: &mut dyn Engine, input: Box<Input>) {
        self.record(&input);
        match *input {
            input @ Input::Ephemeral { .. } => self.pass_on(input),
            Input::Inspect { reply } => {
                let found = self.inspect_live(engine.report().await);
                // The operator may have given up.
                let _ = reply.send(found);
            }
            Input::Subscribe { from } => {
                if let Some(member) = self.members().get_mut(from.id) {
                    member.wants_durable = true;
                }
                self.is_durable_wanted = true;
            }
            Input::Leave { session } => {
                engine.leave(session);
                self.forget(session);
            }
            Input::Sync { from, request, message, permit: _permit } => {
                self.handle_sync(engine, &from, request, message).await;
            }
        }
    }

    async fn handle_sync(
        &mut self,
        engine: &mut dyn Engine,
        from: &Arc<Session>,
        request: bool,
        message: SyncMessage,
    ) {
        let document = self.document();
        let answer_by = Deadline::now() + self.forward_timeout();
        // A peer that has something of the document brings it, whatever the message's type.
        let request = request && !message.has_heads();
        let request_answer =
            |member: &mut Member| request.then(|| *member.answer_by.get_or_insert(answer_by));
        if let Some(by) = self.with_sender(from, request_answer) {
            self.next_answer = Some(self.next_answer.map_or(by, |next| next.min(by)));
        }
        self.begin(engine, from.id).await;
        if from.is_refused(document) {
            engine.reads_only(from.id).await;
        }
        let mut charge = None;
        if message.has_changes() && !from.may_write(document) {
            from.refuse_changes(document);
            self.report(Some(from), || What::Refused { reason: "read_only".to_owned() });
        } else if message.has_changes() {
            charge = self.charge(from, message.raw.len());
            if charge.is_none() {
                return;
            }
        }
        engine.receive(from.id, request, message, charge).await;
    }

    /// Charges bytes of changes; the charge is refunded unless they are stored. Closes a session
    /// that has had too many stored.
    fn charge(&self, from: &Session, bytes: usize) -> Option<Charge> {
        let config = self.shared.config.borrow();
        let mut charge = self.shared.quotas.charge(from.account.clone());
        if charge.bytes(bytes as u64, &config.limits) {
            return Some(charge);
        }
        from.close(CloseReason::StoredBytes(config.limits.stored_bytes));
        None
    }

    /// What an operator sees of the room.
    fn inspect_live(&self, engine: EngineReport) -> LiveDocument {
        let theirs: HashMap<SessionId, Vec<ChangeHash>> = engine.theirs.into_iter().collect();
        let members = self.members();
        let sessions = members.active().map(|member| {
            let heads = theirs.get(&member.session.id).map(Vec::as_slice);
            let waits = member.answer_by.is_some() && !member.is_answered();
            LiveSession { waits, ..LiveSession::of(&member.session, heads) }
        });
        LiveDocument {
            state: "live".to_owned(),
            saved: engine.heads.is_some().then(|| texts(&self.durable.0)),
            heads: engine.heads.as_deref().map(texts),
            changes: engine.changes,
            bytes: engine.bytes,
            sessions: sessions.collect(),
        }
    }

    async fn merge_bundle(&mut self, engine: &mut dyn Engine) {
        let document = self.document();
        let Some(snapshot) = self.shared.documents.seed(document) else {
            return;
        };
        match engine.merge(snapshot).await {
            Some(Ancestry::Newer) => info!(%document, "merged the new bundle's snapshot"),
            Some(Ancestry::Unrelated) => self.shared.documents.report_unrelated(document),
            Some(Ancestry::Contained) => {}
            None => {
                warn!(%document, "merging the new bundle's snapshot when the document is next \
                                  loaded")
            }
        }
    }
}
