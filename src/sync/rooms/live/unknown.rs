//! A room whose document nobody has brought: ask peers that may have it, answer those who wait.

use tokio::sync::OwnedSemaphorePermit;

use super::*;

/// How long the first request for a document that nobody has waits for somebody to bring it. Where one client creates a document
/// and another looks for it at once, the request often arrives a few milliseconds before the document.
const GRACE: Duration = Duration::from_millis(100);

/// The time in which a request for an unknown document is not answered yet.
pub(super) struct Grace {
    until: Deadline,
    /// One of the relay's places for documents in this time; given back when it is over.
    place: Option<OwnedSemaphorePermit>,
}

impl Grace {
    /// The earliest time for an answer; at `now` or before, the time is over.
    fn earliest_answer(&mut self, now: Deadline) -> Deadline {
        if self.until <= now {
            self.place = None;
        }
        self.until
    }
}

impl Room {
    /// Nobody has brought the document: ask peers that may have it, answer those who wait.
    pub(super) async fn unknown(&mut self) -> End {
        self.handle.unknown.store(true, Ordering::Relaxed);
        self.ask_the_lost();
        // Those who asked an engine in vain have not had others asked for them.
        let asking = self.members.values().filter(|member| member.asks.is_some());
        let asking: Vec<Arc<Session>> = asking.map(|member| member.session.clone()).collect();
        for session in asking {
            self.look_for(&session, Instant::now());
        }
        let stopping = self.rooms.stopping.clone();
        let end = tokio::select! {
            end = self.look_for_it() => end,
            () = stopping.cancelled() => End::Stop,
        };
        lock(&self.handle.asked).clear();
        self.grace = None;
        self.handle.unknown.store(false, Ordering::Relaxed);
        end
    }

    async fn look_for_it(&mut self) -> End {
        for input in std::mem::take(&mut self.stash) {
            self.note_unknown(input);
        }
        let is_asking = !lock(&self.handle.asked).is_empty();
        let until = is_asking.then(|| Deadline::now() + self.forward_timeout());
        loop {
            let asked_out = lock(&self.handle.asked).values().all(|answered| *answered);
            let recovers = !asked_out && until.is_some_and(|until| until > Deadline::now());
            let now = Deadline::now();
            let waits =
                [self.presence_until, until].into_iter().flatten().filter(|until| *until > now);
            let (mut open, mut next) = (false, waits.min());
            let earliest = self.grace.as_mut().map_or(now, |grace| grace.earliest_answer(now));
            for member in self.members.values_mut() {
                let by = member.asks.map(|by| if asked_out { now } else { by }.max(earliest));
                match by {
                    Some(by) if by <= now => {
                        member.asks = None;
                        let document = self.handle.document;
                        self.rooms.followers.tell(document, Some(&member.session), unavailable);
                        member.session.send_unavailable(document);
                        let is_probe = document == self.rooms.shared.probe;
                        let outcome = if is_probe { "probe" } else { "unavailable" };
                        let requests = &self.rooms.shared.metrics.rooms.requests;
                        requests.with_label_values(&[outcome]).inc();
                    }
                    Some(by) => {
                        open = true;
                        next = Some(next.map_or(by, |next| next.min(by)));
                    }
                    None => {}
                }
            }
            let lingers = self.presence_until.is_some_and(|until| until > now);
            if !open && !lingers && !recovers && self.inbox.is_empty() {
                return End::Retire("unknown");
            }
            let handle = self.handle.clone();
            tokio::select! {
                () = handle.answer.notified() => {}
                () = handle.news.notified() => {
                    for id in self.gone() {
                        self.forget(id);
                    }
                    if self.is_to_look_again() {
                        return self.is_found();
                    }
                }
                () = sleep_until(next.unwrap_or(now)) => {}
                input = self.inbox.recv() => match input {
                    None => return End::Stop,
                    Some(input) if brings_heads(self.handle.document, &input) => {
                        self.stash.push(*input);
                        return self.is_found();
                    }
                    Some(input) => self.note_unknown(*input),
                },
            }
        }
    }

    /// Members may hold what was lost before it was durable: they think that it is here.
    fn ask_the_lost(&mut self) {
        let document = self.document();
        for (id, member) in &mut self.members {
            if std::mem::take(&mut member.lost) {
                lock(&self.handle.asked).insert(*id, false);
                ask_for(&member.session, document);
            }
        }
    }

    /// The document is there now: those who wait for it begin when it is open.
    fn is_found(&mut self) -> End {
        for member in self.members.values_mut() {
            member.begin_anew = true;
            if member.asks.is_some() {
                let requests = &self.rooms.shared.metrics.rooms.requests;
                requests.with_label_values(&["found"]).inc();
            }
        }
        End::Reopen
    }

    fn note_unknown(&mut self, input: Input) {
        self.note(&input);
        match input {
            // Who asked may have gone.
            Input::Look { reply } => _ = reply.send(self.look("unknown")),
            Input::Ephemeral { .. } => self.pass_on(input),
            // What is durable is told when the document is here.
            Input::Subscribed { .. } => {}
            Input::Sync { from, .. } if !self.is_here(from.id) => {}
            Input::Sync { from, request, held, .. } => {
                let member = self.member(&from);
                member.begin_anew = true;
                if request && member.asks.is_none() {
                    self.look_for(&from, held.since());
                }
            }
        }
    }

    /// Let a session that asked at `since` wait for the answers of others.
    fn look_for(&mut self, requester: &Arc<Session>, since: Instant) {
        if self.grace.is_none() && self.document() != self.rooms.shared.probe {
            let place = self.rooms.in_grace.clone().try_acquire_owned().ok();
            let length = if place.is_some() { GRACE } else { Duration::ZERO };
            self.grace = Some(Grace { until: Deadline::from_std(since) + length, place });
        }
        let by = Deadline::now() + self.forward_timeout();
        self.member(requester).asks = Some(by);
        self.ask_others(requester);
    }

    /// Pass a request on to peers that share a document with the requester.
    fn ask_others(&self, requester: &Arc<Session>) {
        let config = self.rooms.shared.config.borrow().clone();
        if !config.forwards_requests() {
            return;
        }
        let document = self.document();
        let most = config.sync.forward_peers.saturating_sub(lock(&self.handle.asked).len());
        let is_member = |id| self.members.contains_key(&id);
        for peer in self.rooms.to_be_asked(document, requester, most, is_member) {
            lock(&self.handle.asked).insert(peer.id, false);
            ask_for(&peer, document);
            self.rooms.shared.metrics.rooms.requests.with_label_values(&["passed_on"]).inc();
        }
    }
}

/// Ask a peer for a document that the relay does not have.
fn ask_for(peer: &Session, document: DocumentId) {
    if let Some(nothing) = &*NOTHING {
        peer.send_sync(document, true, &nothing.raw);
    }
}

/// What is told of a session that heard that the document is not here.
pub(super) fn unavailable() -> What {
    What::Sent { kind: "doc-unavailable".to_owned(), bytes: 0 }
}
