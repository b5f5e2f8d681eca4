//! A room whose document is here: its engine, and the sessions that take part.

use super::{unknown::unavailable, *};
use crate::{
    limits::Charge,
    sync::close_reason::CloseReason,
    sync::{
        look::EngineLook,
        room::{EngineFailed, Start, Watched},
    },
};

/// Messages that are taken in before they are answered: answers to one document's edits go out together.
const BATCH: usize = 64;
/// After so long without a message a room keeps as little memory as can be.
const QUIET: Duration = Duration::from_millis(1500);

impl Room {
    /// Serve the document until nobody follows it.
    pub(super) async fn live(&mut self, opened: Opened) -> End {
        let shared = &self.rooms.shared;
        let document = self.document();
        let stopping = self.rooms.stopping.clone();
        let mut config = shared.config.clone();
        let was_empty = opened.heads.is_empty();
        let start = Start {
            documents: shared.documents.clone(),
            document,
            opened,
            usage: self.handle.usage.clone(),
            pending: self.handle.pending.clone(),
        };
        let mut engine = (shared.engine)(start).await;
        debug!(%document, "live");

        for id in self.gone() {
            self.forget(id);
        }
        let again = self.members.iter().filter(|(_, member)| member.begin_anew);
        let again: Vec<(SessionId, bool)> = again.map(|(id, member)| (*id, member.lost)).collect();
        for (id, lost) in again {
            let Some(nothing) = NOTHING.clone() else { continue };
            if lost && let Some(member) = self.members.get(&id) {
                // A peer does not repeat what it has sent, unless it hears that all of it is gone.
                member.session.send_sync(document, false, &nothing.raw);
            }
            self.begin(&mut engine, id).await;
            engine.receive(id, true, nothing, None).await;
        }
        for input in std::mem::take(&mut self.stash) {
            self.take_in(&mut engine, input).await;
        }
        engine.settle().await;
        // The time to answer begins when there is something to answer from.
        let answer_by = Deadline::now() + self.forward_timeout();
        for asks in self.members.values_mut().filter_map(|member| member.asks.as_mut()) {
            *asks = answer_by;
        }
        self.next_answer = self.first_answer();
        let started = Instant::now();
        let handle = self.handle.clone();
        let mut idle_since = None;
        let mut quiet = Some(Deadline::now() + QUIET);
        loop {
            self.tell_durable(&*engine);
            if self.members.is_empty() {
                idle_since.get_or_insert_with(Deadline::now);
            } else {
                idle_since = None;
            }
            let idle_unload = config.borrow_and_update().sync.idle_unload.0;
            // A document that waits for its disk is still here for whoever comes.
            let sent_away = handle.sent_away.load(Ordering::Relaxed);
            let idle_for = if sent_away { Duration::ZERO } else { idle_unload };
            let unload = idle_since.filter(|_| engine.is_durable()).map(|since| since + idle_for);
            let next = [self.next_answer, unload, quiet].into_iter().flatten().min();
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
                        let mut next = Some(input);
                        let mut from = Vec::new();
                        let mut came = Vec::new();
                        for _ in 0..BATCH {
                            let Some(input) = next else { break };
                            from.extend(sender(&input));
                            came.extend(came_at(&input));
                            self.take_in(&mut engine, *input).await;
                            next = self.inbox.try_recv().ok();
                        }
                        engine.settle().await;
                        let seconds = &self.rooms.shared.metrics.rooms.message_seconds;
                        came.into_iter().for_each(|at| seconds.observe(seconds_since(at)));
                        quiet = Some(Deadline::now() + QUIET);
                        from.into_iter().for_each(|id| self.measure(id));
                    }
                    None => return End::Stop,
                },
                worked = engine.work() => if let Err(EngineFailed { is_panic, is_mended }) = worked {
                    self.metrics().panics.inc_by(u64::from(is_panic));
                    drop(engine);
                    let has_left = self.handle.pending.hand_over(&self.rooms.shared.documents);
                    if is_mended || started.elapsed() > REOPEN.1 {
                        self.backoff.reset();
                    }
                    for member in self.members.values_mut() {
                        let took_part = member.port.take().is_some();
                        member.begin_anew |= took_part;
                        member.lost |= took_part;
                    }
                    tokio::select! {
                        () = self.pause("room_failed") => return End::Reopen,
                        () = stopping.cancelled(), if !has_left => return End::Stop,
                    }
                },
                () = handle.news.notified() => {
                    for id in self.gone() {
                        engine.leave(id);
                        self.forget(id);
                    }
                    engine.resume();
                    engine.settle().await;
                    if self.takes_reopen() {
                        return self.end_engine(engine, End::Reopen).await;
                    }
                    if self.takes_bundle_change() {
                        self.merge_bundle(&mut engine).await;
                    }
                }
                () = due => {
                    let now = Deadline::now();
                    if quiet.is_some_and(|at| at <= now) {
                        quiet = None;
                        engine.rest();
                    }
                    if unload.is_some_and(|at| at <= now) {
                        let end = End::Retire(if sent_away { "memory" } else { "idle" });
                        return self.end_engine(engine, end).await;
                    }
                    if self.next_answer.is_some_and(|at| at <= now) {
                        // Whoever brought the document left before it was here: ask others for it.
                        if was_empty && self.is_unanswered() {
                            // From here on the document is unknown.
                            return self.end_engine(engine, End::Reopen).await;
                        }
                        self.answer_the_unanswered();
                        self.next_answer = self.first_answer();
                    }
                }
                _ = config.changed() => {}
                () = stopping.cancelled() => {
                    // Sessions have ended by now: what they sent is in the mailbox.
                    while let Ok(input) = self.inbox.try_recv() {
                        self.take_in(&mut engine, *input).await;
                    }
                    return self.end_engine(engine, End::Stop).await;
                }
            }
        }
    }

    /// End the engine; its members begin anew with the next one. Returns `end`, unless the engine
    /// has failed and left something unsaved: then there has to be a next one.
    async fn end_engine(&mut self, engine: Box<dyn Engine>, end: End) -> End {
        let closing = engine.close();
        tokio::pin!(closing);
        // On a disk that fails this takes as long as that does: who sends meanwhile is not kept waiting with all its other
        // documents, and sends it again afterwards.
        loop {
            tokio::select! {
                () = &mut closing => break,
                Some(input) = self.inbox.recv() => {
                    self.put_by(*input, "closing");
                    if self.stash.len() >= STASH {
                        self.lose_stash("closing");
                    }
                }
            }
        }
        for member in self.members.values_mut() {
            member.begin_anew |= member.port.take().is_some();
        }
        if !self.handle.pending.hand_over(&self.rooms.shared.documents) {
            return end;
        }
        self.pause("room_failed").await;
        End::Reopen
    }

    /// Let a member take part in synchronising.
    async fn begin(&mut self, engine: &mut Box<dyn Engine>, id: SessionId) {
        let document = self.handle.document;
        let Some(member) = self.members.get_mut(&id) else { return };
        (member.begin_anew, member.waited, member.lost) = (false, false, false);
        if member.port.is_none() {
            let port = Port::new(
                member.session.clone(),
                document,
                self.handle.news.clone(),
                Watched {
                    usage: self.handle.usage.clone(),
                    followers: self.rooms.followers.clone(),
                    applied: self.rooms.shared.metrics.rooms.changes.clone(),
                },
            );
            member.port = Some(port.clone());
            member.wants_durable = member.session.is_subscribed();
            self.someone_wants_durable |= member.wants_durable;
            engine.join(port).await;
            self.rooms.shared.metrics.rooms.join_seconds.observe(seconds_since(member.since));
        }
    }

    async fn take_in(&mut self, engine: &mut Box<dyn Engine>, input: Input) {
        self.note(&input);
        match input {
            Input::Ephemeral { .. } => self.pass_on(input),
            Input::Look { reply } => {
                let found = self.look_at(engine.look().await);
                // Who asked may have gone.
                let _ = reply.send(found);
            }
            Input::Subscribed { from } => {
                if let Some(member) = self.members.get_mut(&from.id) {
                    member.wants_durable = true;
                    self.someone_wants_durable = true;
                }
            }
            Input::Sync { from, request, message, held: _held } => {
                let answer_by = Deadline::now() + self.forward_timeout();
                let member = self.member(&from);
                // Who has something of the document brings it, whatever the message says of itself.
                let request = request && !message.has_heads();
                if request {
                    let by = *member.asks.get_or_insert(answer_by);
                    self.next_answer = Some(self.next_answer.map_or(by, |next| next.min(by)));
                }
                self.begin(engine, from.id).await;
                if from.is_refused(self.document()) {
                    engine.reads_only(from.id).await;
                }
                let mut charge = None;
                if message.has_changes() && !from.may_write(self.document()) {
                    from.refuse_changes(self.document());
                    self.tell(Some(&from), || What::Refused { reason: "read_only".to_owned() });
                } else if message.has_changes() {
                    charge = self.charge(&from, message.raw.len());
                    if charge.is_none() {
                        return;
                    }
                }
                engine.receive(from.id, request, message, charge).await;
                if !self.is_here(from.id) {
                    engine.leave(from.id);
                    self.forget(from.id);
                }
            }
        }
    }

    /// Charge bytes of changes, which is refunded unless they are stored. A session that has had
    /// too many stored is closed.
    fn charge(&self, from: &Session, bytes: usize) -> Option<Charge> {
        let shared = &self.rooms.shared;
        let config = shared.config.borrow();
        let mut charge = shared.principals.charge(from.account.clone());
        if charge.bytes(bytes as u64, &config.limits) {
            return Some(charge);
        }
        from.close(CloseReason::StoredBytes(config.limits.stored_bytes));
        None
    }

    /// Tell those who want to hear it which heads are durable, when these have changed or somebody is new.
    fn tell_durable(&mut self, engine: &dyn Engine) {
        let Some(heads) = engine.durable_heads() else { return };
        let has_changed = self.durable.0 != heads;
        if has_changed {
            self.durable = (heads.to_vec(), self.rooms.timestamp());
            self.tell(None, || What::Saved { heads: texts(&self.durable.0) });
        }
        if !std::mem::take(&mut self.someone_wants_durable) && !has_changed {
            return;
        }
        let (heads, told_at) = &self.durable;
        let shared = &self.rooms.shared;
        for member in self.members.values_mut() {
            let wants = std::mem::take(&mut member.wants_durable) || has_changed;
            if wants && !heads.is_empty() && member.port.is_some() && member.session.is_subscribed()
            {
                let (document, storage_id) = (self.handle.document, &shared.storage_id);
                self.rooms.followers.tell(document, Some(&member.session), || What::Sent {
                    kind: "remote-heads-changed".to_owned(),
                    bytes: 0,
                });
                member.session.send_durable(document, storage_id, heads, *told_at);
            }
        }
    }

    /// What an operator sees of the room.
    fn look_at(&self, engine: EngineLook) -> LiveDocument {
        let theirs: HashMap<SessionId, Vec<ChangeHash>> = engine.theirs.into_iter().collect();
        let sessions = self.members.values().map(|member| {
            let heads = theirs.get(&member.session.id).map(Vec::as_slice);
            let is_answered = member.port.as_ref().is_some_and(Port::is_answered);
            let waits = member.asks.is_some() && !is_answered;
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

    async fn merge_bundle(&mut self, engine: &mut Box<dyn Engine>) {
        let document = self.document();
        let Some(snapshot) = self.rooms.shared.documents.seed(document) else {
            return;
        };
        match engine.merge(snapshot).await {
            Some(Ancestry::Newer) => info!(%document, "merged the new bundle's snapshot"),
            Some(Ancestry::Unrelated) => self.rooms.shared.documents.report_unrelated(document),
            Some(Ancestry::Contained) => {}
            None => {
                warn!(%document, "the new bundle's snapshot is merged when the document is next loaded")
            }
        }
    }

    /// Note how long a member waited for its first answer, once.
    fn measure(&mut self, id: SessionId) {
        if let Some(member) = self.members.get_mut(&id)
            && !member.measured
            && member.port.as_ref().is_some_and(Port::is_answered)
        {
            member.measured = true;
            let seconds = seconds_since(member.since);
            self.rooms.shared.metrics.rooms.sync_seconds.observe(seconds);
        }
    }

    fn first_answer(&self) -> Option<Deadline> {
        self.members.values().filter_map(|member| member.asks).min()
    }

    /// Whether all who take part have asked in vain: the engine has no document, and nobody brings one.
    fn is_unanswered(&self) -> bool {
        let mut taking_part = self.members.values().filter_map(|m| Some((m, m.port.as_ref()?)));
        taking_part.all(|(member, port)| member.asks.is_some() && !port.is_answered())
    }

    /// Tell those whose time is over that the document is not there, if they were sent nothing of it.
    fn answer_the_unanswered(&mut self) {
        let (now, document) = (Deadline::now(), self.handle.document);
        let mut late = Vec::new();
        for (id, member) in &mut self.members {
            if member.asks.is_some_and(|by| by <= now) {
                member.asks = None;
                late.push(*id);
                if !member.port.as_ref().is_some_and(Port::is_answered) {
                    self.rooms.followers.tell(document, Some(&member.session), unavailable);
                    member.session.send_unavailable(document);
                }
            }
        }
        late.into_iter().for_each(|id| self.measure(id));
    }
}

/// When a sync message came.
fn came_at(input: &Input) -> Option<Instant> {
    match input {
        Input::Sync { held, .. } => Some(held.since()),
        Input::Ephemeral { .. } | Input::Subscribed { .. } | Input::Look { .. } => None,
    }
}
