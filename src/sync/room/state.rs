//! What the task of a room knows, and what its states have in common.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use automerge::ChangeHash;
use tokio::time::{Instant as Deadline, sleep};

use super::{
    directory::RoomHandle,
    grace::Grace,
    input::Input,
    mailbox::Inbox,
    members::{Member, Table},
    port::PortRoom,
    shared::Shared,
};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId, lock::lock, session_id::SessionId},
    observe::metrics::RoomMetrics,
    sync::{
        events::What,
        report::{LiveDocument, LiveSession},
        session::Session,
    },
};

/// Messages kept while a document is being loaded.
pub(super) const STASH: usize = 64;
/// Shortest and longest pause before a document is opened again that could not be read, or whose
/// engine failed.
pub(super) const REOPEN: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(60));

/// What the task of a room knows.
pub(crate) struct Room {
    pub(super) shared: Arc<Shared>,
    pub(super) handle: Arc<RoomHandle>,
    pub(super) inbox: Inbox,
    /// What the ports of all members have in common.
    pub(super) ports: Arc<PortRoom>,
    /// What was received while there was no engine. A session's leaving is in it only behind a
    /// message of that session.
    pub(super) stash: Vec<Input>,
    /// The room of an unknown document stays until then.
    pub(super) presence_until: Option<Deadline>,
    pub(super) backoff: Backoff,
    /// The durable heads as they were last announced, and when.
    pub(super) durable: (Vec<ChangeHash>, u64),
    /// A member wants to hear which heads are durable.
    pub(super) is_durable_wanted: bool,
    /// No member that requests the document is to be answered before this.
    pub(super) next_answer: Option<Deadline>,
    /// Since the first request for the document, while nobody has it.
    pub(super) grace: Option<Grace>,
}

/// Why a state of the room ended.
pub(super) enum End {
    /// Nobody is here and all is durable, or nobody has the document.
    Retire(&'static str),
    /// The document is to be opened again.
    Reopen,
    /// The relay is stopping.
    Stop,
    /// There is no memory for the document.
    NoMemory,
}

impl Room {
    pub(crate) fn new(shared: Arc<Shared>, handle: Arc<RoomHandle>, inbox: Inbox) -> Self {
        let ports = PortRoom {
            document: handle.document,
            news: handle.news.clone(),
            usage: handle.usage.clone(),
            followers: shared.followers.clone(),
            applied: shared.metrics.rooms.changes.clone(),
        };
        Self {
            shared,
            handle,
            inbox,
            ports: Arc::new(ports),
            stash: Vec::new(),
            presence_until: None,
            backoff: Backoff::new(REOPEN.0, REOPEN.1),
            durable: (Vec::new(), 0),
            is_durable_wanted: false,
            next_answer: None,
            grace: None,
        }
    }

    pub(super) fn metrics(&self) -> &RoomMetrics {
        &self.shared.metrics.rooms
    }

    pub(super) fn document(&self) -> DocumentId {
        self.handle.document
    }

    /// The members, locked.
    pub(super) fn members(&self) -> MutexGuard<'_, Table> {
        self.handle.members.lock()
    }

    /// Reports an event to those who follow the document.
    pub(super) fn report(&self, session: Option<&Session>, what: impl FnOnce() -> What) {
        self.shared.followers.report(self.handle.document, session, what);
    }

    /// Adds a message that was received to what the room costs, and reports it.
    pub(super) fn record(&self, input: &Input) {
        let (from, kind, bytes, heads, brings_changes) = match input {
            Input::Sync { from, request, message, .. } => {
                let kind = if *request { "request" } else { "sync" };
                let heads = message.message.heads.len();
                (from, kind, message.raw.len(), heads, message.has_changes())
            }
            Input::Ephemeral { from, data, .. } => (from, "ephemeral", data.len(), 0, false),
            Input::Subscribe { .. } | Input::Leave { .. } | Input::Inspect { .. } => return,
        };
        self.handle.usage.message(bytes);
        let kind = || kind.to_owned();
        self.report(Some(from), || What::Received { kind: kind(), bytes, heads, brings_changes });
    }

    /// What an operator sees of the room while it has no engine.
    pub(super) fn inspect(&self, state: &str) -> LiveDocument {
        let members = self.members();
        let sessions = members.active().map(|member| LiveSession {
            waits: member.answer_by.is_some(),
            ..LiveSession::of(&member.session, None)
        });
        let (state, sessions) = (state.to_owned(), sessions.collect());
        LiveDocument { state, sessions, ..LiveDocument::default() }
    }

    /// Waits longer each time; what is received meanwhile is lost.
    pub(super) async fn pause(&mut self, why: &'static str) {
        let pause = self.backoff.pause();
        self.wait(why, pause).await;
    }

    /// Waits for `pause`; what is received meanwhile is lost, and its senders are to send it again.
    pub(super) async fn wait(&mut self, why: &'static str, pause: Duration) {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                Some(input) = self.inbox.recv() => {
                    self.stash(*input, why);
                    self.lose_stash(why);
                }
            }
        }
    }

    /// Keeps an input for later. An operator is answered at once, and a session that has left is
    /// forgotten at once, unless a message of it is kept.
    pub(super) fn stash(&mut self, input: Input, state: &str) {
        match input {
            // The operator may have given up.
            Input::Inspect { reply } => _ = reply.send(self.inspect(state)),
            Input::Leave { session } if !self.stash.iter().any(|kept| kept.is_from(session)) => {
                self.forget(session);
            }
            input => self.stash.push(input),
        }
    }

    /// Drops what was kept. Its senders are to send it again.
    pub(super) fn lose_stash(&mut self, why: &'static str) {
        let stash = std::mem::take(&mut self.stash);
        let left = left_in(&stash);
        for input in stash {
            match &input {
                Input::Sync { from, .. } if left.contains(&from.id) => {}
                Input::Sync { from, .. } => {
                    self.report_refused(from, why);
                    let lost = |member: &mut Member| {
                        member.update_waiting(|waiting| waiting.must_resend = true);
                    };
                    self.with_sender(from, lost);
                }
                Input::Ephemeral { .. } => self.pass_on(input),
                Input::Leave { session } => self.forget(*session),
                Input::Subscribe { .. } | Input::Inspect { .. } => {}
            }
        }
    }

    /// Counts a message that was refused, and reports it.
    pub(super) fn report_refused(&self, from: &Session, why: &'static str) {
        self.shared.metrics.sessions.dropped.with_label_values(&[why]).inc();
        self.report(Some(from), || What::Refused { reason: why.to_owned() });
    }

    /// Calls `work` with the member that a message is from, and reports its first message.
    pub(super) fn with_sender<T>(
        &self,
        session: &Arc<Session>,
        work: impl FnOnce(&mut Member) -> T,
    ) -> T {
        let mut members = self.members();
        let (member, is_first) = members.activate(session);
        if is_first {
            self.report(Some(session), || What::Joined);
        }
        work(member)
    }

    /// Removes a member that has left.
    pub(super) fn forget(&mut self, session: SessionId) {
        let removed = self.members().remove(session);
        if let Some(member) = removed.filter(Member::is_active) {
            self.report(Some(&member.session), || What::Left);
        }
        lock(self.handle.mailbox.seen()).forget(session);
    }

    /// Whether a message that was kept brings something of the document.
    pub(super) fn is_brought(&self) -> bool {
        self.stash.iter().any(|input| input.brings_heads(self.document()))
    }

    /// How long a request for a document that nobody has waits for an answer.
    pub(super) fn forward_timeout(&self) -> Duration {
        self.shared.config.borrow().sync.forward_timeout.0
    }
}

/// The sessions whose leaving is among these inputs.
pub(super) fn left_in(inputs: &[Input]) -> Vec<SessionId> {
    let left = inputs.iter().filter_map(|input| match input {
        Input::Leave { session } => Some(*session),
        _ => None,
    });
    left.collect()
}

/// The event of a session that was told that the document is unavailable.
pub(super) fn unavailable() -> What {
    What::Sent { kind: "doc-unavailable".to_owned(), bytes: 0 }
}
