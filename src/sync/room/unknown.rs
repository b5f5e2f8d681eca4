//! A room whose document nobody has brought: asks peers that may have it, and answers those who
//! wait.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::{Instant as Deadline, sleep_until};

use super::{
    directory::AskedRelays,
    grace::Grace,
    input::Input,
    shared::NOTHING,
    state::{End, Room, unavailable},
};
use crate::{
    base::{document_id::DocumentId, lock::lock},
    storage::relay_message::{RelayMessage, Wanted, question},
    sync::session::Session,
};

/// The most documents by which another relay finds whom to ask.
const MAX_COMMON: usize = 32;
/// How long other relays may take to answer. A document that they find later arrives later.
const RELAYS_ANSWER_WITHIN: Duration = Duration::from_millis(500);

impl Room {
    /// Looks for a document that nobody has brought, and answers those who wait.
    pub(super) async fn unknown(&mut self) -> End {
        self.handle.is_unknown.store(true, Ordering::Relaxed);
        self.ask_for_lost();
        // For those who requested it of an engine that had no document, nobody was asked yet.
        let requesting: Vec<Arc<Session>> = {
            let members = self.members();
            let requesting = members.active().filter(|member| member.answer_by.is_some());
            requesting.map(|member| member.session.clone()).collect()
        };
        for session in requesting {
            self.look_for(&session, Instant::now());
        }
        let stopping = self.shared.stopping.clone();
        let end = tokio::select! {
            end = self.look_until_found() => end,
            () = stopping.cancelled() => End::Stop,
        };
        lock(&self.handle.asked).clear();
        self.handle.forget_relays();
        self.grace = None;
        self.handle.is_unknown.store(false, Ordering::Relaxed);
        end
    }

    async fn look_until_found(&mut self) -> End {
        for input in std::mem::take(&mut self.stash) {
            self.handle_unknown(input);
        }
        let is_asking = !lock(&self.handle.asked).is_empty();
        let until = is_asking.then(|| Deadline::now() + self.forward_timeout());
        let handle = self.handle.clone();
        loop {
            if handle.take_stored().is_some() {
                return self.found();
            }
            let now = Deadline::now();
            let relays_until = handle.relays_answer_until().filter(|until| *until > now);
            let all_lack_it =
                relays_until.is_none() && lock(&handle.asked).values().all(|answered| *answered);
            let recovers = !all_lack_it && until.is_some_and(|until| until > now);
            let next_answer = self.answer_due(now, all_lack_it);
            let lingers = self.presence_until.is_some_and(|until| until > now);
            if next_answer.is_none() && !lingers && !recovers && self.inbox.is_empty() {
                return End::Retire("unknown");
            }
            let waits = [self.presence_until, until, relays_until].into_iter().flatten();
            let waits = waits.filter(|until| *until > now);
            let next = waits.chain(next_answer).min().unwrap_or(now);
            tokio::select! {
                () = handle.answer.notified() => {}
                () = handle.news.notified() => if handle.take_outdated() | handle.take_stored().is_some() {
                    return self.found();
                },
                () = sleep_until(next) => {}
                input = self.inbox.recv() => match input {
                    None => return End::Stop,
                    Some(input) if input.brings_heads(self.document()) => {
                        self.stash.push(*input);
                        return self.found();
                    }
                    Some(input) => self.handle_unknown(*input),
                },
            }
        }
    }

    /// Answers the members whose time is over, or all if everybody who was asked lacks the
    /// document. Returns when the next one is to be answered.
    fn answer_due(&mut self, now: Deadline, all_lack_it: bool) -> Option<Deadline> {
        let document = self.document();
        let earliest = self.grace.as_mut().map_or(now, |grace| grace.earliest_answer(now));
        let mut next = None;
        for member in self.members().active_mut() {
            let Some(by) = member.answer_by else { continue };
            let by = if all_lack_it { now } else { by }.max(earliest);
            if by > now {
                next = Some(next.map_or(by, |next: Deadline| next.min(by)));
                continue;
            }
            member.answer_by = None;
            self.report(Some(&member.session), unavailable);
            member.session.send_unavailable(document);
            let outcome = if document == self.shared.probe { "probe" } else { "unavailable" };
            self.metrics().requests.with_label_values(&[outcome]).inc();
        }
        next
    }

    /// Asks members for what they have sent and what was lost before it was durable: they assume
    /// that it is here.
    fn ask_for_lost(&mut self) {
        let document = self.document();
        for member in self.members().active_mut() {
            if member.waiting().is_some_and(|waiting| waiting.must_resend) {
                member.update_waiting(|waiting| waiting.must_resend = false);
                lock(&self.handle.asked).insert(member.session.id, false);
                ask_for(&member.session, document);
            }
        }
    }

    /// The document is there now: the members that wait for it take part when it is open.
    fn found(&mut self) -> End {
        for member in self.members().active_mut() {
            member.await_engine();
            if member.answer_by.is_some() {
                self.metrics().requests.with_label_values(&["found"]).inc();
            }
        }
        End::Reopen
    }

    fn handle_unknown(&mut self, input: Input) {
        self.record(&input);
        match input {
            // The operator may have given up.
            Input::Inspect { reply } => _ = reply.send(self.inspect("unknown")),
            Input::Ephemeral { .. } => self.pass_on(input),
            // Durable heads are announced when the document is here.
            Input::Subscribe { .. } => {}
            Input::Leave { session } => self.forget(session),
            Input::Sync { from, request, permit, .. } => {
                let is_waiting = self.with_sender(&from, |member| {
                    member.await_engine();
                    member.answer_by.is_some()
                });
                if request && !is_waiting {
                    self.look_for(&from, permit.since());
                }
            }
        }
    }

    /// Has a session that requested the document at `since` wait for the answers of others.
    fn look_for(&mut self, requester: &Arc<Session>, since: Instant) {
        if self.grace.is_none() && self.document() != self.shared.probe {
            let permit = self.shared.in_grace.clone().try_acquire_owned().ok();
            self.grace = Some(Grace::new(since, permit));
        }
        let by = Deadline::now() + self.forward_timeout();
        self.with_sender(requester, |member| member.answer_by = Some(by));
        self.ask_others(requester);
    }

    /// Passes a request on to peers that share a document with the requester, here and at other
    /// relays.
    fn ask_others(&self, requester: &Arc<Session>) {
        let config = self.shared.config.borrow().clone();
        if !config.forwards_requests() {
            return;
        }
        let document = self.document();
        let most = config.sync.forward_peers.saturating_sub(lock(&self.handle.asked).len());
        let is_member = |id| self.members().is_active(id);
        let common = self.shared.directory().documents_of(requester.id);
        self.ask_relays(&common);
        let requester = Some(requester.id);
        for peer in self.shared.choose_to_ask(document, common, requester, most, is_member) {
            lock(&self.handle.asked).insert(peer.id, false);
            ask_for(&peer, document);
            self.metrics().requests.with_label_values(&["passed_on"]).inc();
        }
    }
}

impl Room {
    /// Asks the other relays, once: those who have one of these documents open are asked there.
    fn ask_relays(&self, common: &[DocumentId]) {
        let (document, Some(others)) = (self.document(), &self.shared.others) else { return };
        let common = common.iter().filter(|id| **id != document).take(MAX_COMMON);
        let common: Vec<u8> = common.flat_map(|id| *id.as_bytes()).collect();
        if common.is_empty() || self.handle.relays_answer_until().is_some() {
            return;
        }
        let document = *document.as_bytes();
        let (bytes, question) = (common.len(), question());
        let wanted = || RelayMessage::Wanted(Wanted { document, common, question });
        if others.tell(bytes, wanted) {
            let until = Deadline::now() + RELAYS_ANSWER_WITHIN;
            self.handle.asked_relays(AskedRelays { question, left: others.count(), until });
        }
    }
}

/// Asks a peer for a document that the relay does not have.
pub(in crate::sync) fn ask_for(peer: &Session, document: DocumentId) {
    if let Some(nothing) = &*NOTHING {
        peer.send_sync(document, true, &nothing.raw);
    }
}
