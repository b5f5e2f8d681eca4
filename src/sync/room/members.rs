//! Who is in a room, and what each member is waiting for.
//!
//! A session enters through the directory, before it sends anything; it leaves by a message in the
//! mailbox, after everything that it sent. Only the room's task removes members.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use tokio::time::Instant as Deadline;

use super::port::Port;
use crate::{
    base::{lock::lock, session_id::SessionId},
    sync::{peers::Peers, session::Session},
};

/// The members of one room.
#[derive(Default)]
pub struct Members(Mutex<Table>);

/// The members, while they are locked.
#[derive(Default)]
pub(crate) struct Table {
    members: HashMap<SessionId, Member>,
    /// Memory is short, and nobody was in the room: it is to unload unless a session enters.
    is_evicted: bool,
}

/// A session in a room.
pub(crate) struct Member {
    pub(crate) session: Arc<Session>,
    /// When its first message was handled.
    pub(crate) since: Instant,
    pub(crate) state: MemberState,
    /// It has requested the document, and is answered at this time at the latest.
    pub(crate) answer_by: Option<Deadline>,
    /// The time to its first answer has been recorded.
    pub(crate) is_measured: bool,
    /// It is to hear which heads are durable.
    pub(crate) wants_durable: bool,
}

/// What a member takes part in.
pub(crate) enum MemberState {
    /// It has entered, and nothing that it sent has been handled.
    Entered,
    /// It has sent presence alone.
    Present,
    /// It takes part as soon as there is an engine.
    Waiting(Waiting),
    /// The engine synchronizes the document with it.
    Synchronizing(Port),
}

/// A member without an engine.
#[derive(Clone, Copy, Default)]
pub(crate) struct Waiting {
    /// Something that it sent was lost: it is asked to send everything again.
    pub(crate) must_resend: bool,
    /// It was told that the document is unavailable, and has sent nothing since.
    pub(crate) was_told_unavailable: bool,
}

/// A session that waits for a document that has no room.
#[derive(Clone, Copy)]
pub(crate) struct WithoutRoom {
    pub(crate) session: SessionId,
    /// Something that it sent was lost: it is asked to send everything again.
    pub(crate) must_resend: bool,
}

impl Members {
    /// The members of a new room: sessions that have waited for it. Those that have ended are left
    /// out.
    pub(crate) fn of_waiting(waiting: &[WithoutRoom], peers: &Peers) -> Self {
        let members = waiting.iter().filter_map(|WithoutRoom { session, must_resend }| {
            let mut member = Member::new(peers.get(*session)?);
            let waiting = Waiting { must_resend: *must_resend, was_told_unavailable: true };
            member.state = MemberState::Waiting(waiting);
            Some((*session, member))
        });
        Self(Mutex::new(Table { members: members.collect(), is_evicted: false }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }

    /// Adds a session, unless it is a member. The room is not evicted.
    pub(crate) fn enter(&self, session: &Arc<Session>) {
        let mut table = self.lock();
        table.is_evicted = false;
        table.members.entry(session.id).or_insert_with(|| Member::new(session.clone()));
    }

    /// Has the room unload unless a session enters. Returns whether there is no member.
    pub(crate) fn evict(&self) -> bool {
        let mut table = self.lock();
        table.is_evicted |= table.members.is_empty();
        table.is_evicted
    }

    /// Whether the room is to unload because memory is short.
    pub(crate) fn is_evicted(&self) -> bool {
        self.lock().is_evicted
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.lock().members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some members, at most `most`.
    pub(crate) fn some(&self, most: usize) -> Vec<SessionId> {
        self.lock().members.keys().take(most).copied().collect()
    }

    /// The sessions of all members.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().members.values().map(|member| member.session.clone()).collect()
    }

    /// The session that is the only member.
    pub(crate) fn only(&self) -> Option<Arc<Session>> {
        let table = self.lock();
        let mut members = table.members.values();
        members.next().filter(|_| members.next().is_none()).map(|member| member.session.clone())
    }

    /// Calls `work` with a member's port, if the engine synchronizes with it.
    pub(crate) fn with_port<T>(
        &self,
        session: SessionId,
        work: impl FnOnce(&Port) -> T,
    ) -> Option<T> {
        self.lock().members.get(&session)?.port().map(work)
    }
}

impl Table {
    pub(crate) fn get_mut(&mut self, session: SessionId) -> Option<&mut Member> {
        self.members.get_mut(&session)
    }

    /// Whether a session is a member that has sent something, or has waited for the document.
    pub(crate) fn is_active(&self, session: SessionId) -> bool {
        self.members.get(&session).is_some_and(Member::is_active)
    }

    /// The members that have sent something, or have waited for the document.
    pub(crate) fn active(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.is_active())
    }

    /// The members that have sent something, or have waited for the document.
    pub(crate) fn active_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.members.values_mut().filter(|member| member.is_active())
    }

    /// Whether a member has sent something, or has waited for the document.
    pub(crate) fn has_active(&self) -> bool {
        self.active().next().is_some()
    }

    /// The member that a handled message comes from, and whether it is the first one that was
    /// handled.
    pub(crate) fn activate(&mut self, session: &Arc<Session>) -> (&mut Member, bool) {
        let member = match self.members.entry(session.id) {
            Entry::Occupied(member) => member.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(Member::new(session.clone())),
        };
        let is_first = !member.is_active();
        if is_first {
            member.state = MemberState::Present;
            member.since = Instant::now();
        }
        (member, is_first)
    }

    /// Removes a session that has left.
    pub(crate) fn remove(&mut self, session: SessionId) -> Option<Member> {
        self.members.remove(&session)
    }

    /// The engine has ended: those that it has synchronized with wait for the next one.
    pub(crate) fn engine_ended(&mut self, must_resend: bool) {
        for member in self.members.values_mut() {
            if matches!(member.state, MemberState::Synchronizing(_)) {
                member.state =
                    MemberState::Waiting(Waiting { must_resend, was_told_unavailable: false });
            }
        }
    }

    /// All active members take part with the next engine.
    pub(crate) fn await_engine(&mut self) {
        self.active_mut().for_each(Member::await_engine);
    }

    /// The active members, as sessions that wait without a room.
    pub(crate) fn without_room(&self) -> Vec<WithoutRoom> {
        let active = self.active().map(|member| WithoutRoom {
            session: member.session.id,
            must_resend: member.must_resend(),
        });
        active.collect()
    }
}

impl Member {
    fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            since: Instant::now(),
            state: MemberState::Entered,
            answer_by: None,
            is_measured: false,
            wants_durable: false,
        }
    }

    /// Whether something that it sent was handled, or it has waited for the document.
    pub(crate) fn is_active(&self) -> bool {
        !matches!(self.state, MemberState::Entered)
    }

    /// Its port, if the engine synchronizes with it.
    pub(crate) fn port(&self) -> Option<&Port> {
        match &self.state {
            MemberState::Synchronizing(port) => Some(port),
            _ => None,
        }
    }

    /// What it waits for, if it waits for an engine.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        match self.state {
            MemberState::Waiting(waiting) => Some(waiting),
            _ => None,
        }
    }

    fn must_resend(&self) -> bool {
        self.waiting().is_some_and(|waiting| waiting.must_resend)
    }

    /// It takes part with the next engine.
    pub(crate) fn await_engine(&mut self) {
        self.update_waiting(|_| {});
    }

    /// It takes part with the next engine; `update` changes what is known of the wait.
    pub(crate) fn update_waiting(&mut self, update: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting().unwrap_or_default();
        update(&mut waiting);
        self.state = MemberState::Waiting(waiting);
    }

    /// Whether the engine has sent it something of the document.
    pub(crate) fn is_answered(&self) -> bool {
        self.port().is_some_and(Port::is_answered)
    }
}
