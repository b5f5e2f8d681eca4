//! The task of one room: open the document, serve it, look for it if nobody has it, unload it.

mod refused;
mod serve;
mod unknown;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use automerge::ChangeHash;
use tokio::{
    sync::mpsc,
    time::{Instant as Deadline, sleep, sleep_until},
};
use tracing::{debug, error, info, warn};

use self::unknown::Grace;
use super::{Entry, Handle, Input, NOTHING, NoMemory, Rooms, Waiting, seconds_since};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId, lock::lock, session_id::SessionId},
    document::compare::Ancestry,
    limits::turns::Payer,
    observe::metrics::RoomMetrics,
    storage::documents::Opened,
    sync::close_reason::CloseReason,
    sync::{
        follow::What,
        look::{LiveDocument, LiveSession, texts},
        room::{Engine, Port},
        session::Session,
    },
};

/// Messages kept while a document is being loaded.
const STASH: usize = 64;
/// Pause before a document that could not be read, or whose engine failed, is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// Pause before a room begins with what one left whose task has panicked.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// A room of a document that nobody has stays for so long after presence passed through it.
const PRESENCE_LINGERS: Duration = Duration::from_secs(10);

pub(super) struct Room {
    rooms: Arc<Rooms>,
    handle: Arc<Handle>,
    inbox: mpsc::Receiver<Box<Input>>,
    members: HashMap<SessionId, Member>,
    stash: Vec<Input>,
    presence_until: Option<Deadline>,
    backoff: Backoff,
    /// The durable heads as they were last told, and when.
    durable: (Vec<ChangeHash>, u64),
    someone_wants_durable: bool,
    /// No member that asks is to be answered before this.
    next_answer: Option<Deadline>,
    /// Since the first request for the document, while nobody has it.
    grace: Option<Grace>,
}

/// A session in this room.
struct Member {
    session: Arc<Session>,
    since: Instant,
    /// The engine's way to it, once it takes part in synchronising and not in presence alone.
    port: Option<Port>,
    /// It asked for the document and has had no answer.
    asks: Option<Deadline>,
    /// It takes part, and the next engine is to begin with it.
    begin_anew: bool,
    /// It was here when there was no room, and has taken no part since.
    waited: bool,
    /// What it sent was lost.
    lost: bool,
    measured: bool,
    /// It is to hear which heads are durable.
    wants_durable: bool,
}

impl Member {
    fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            since: Instant::now(),
            port: None,
            asks: None,
            begin_anew: false,
            waited: false,
            lost: false,
            measured: false,
            wants_durable: false,
        }
    }
}

/// Why a phase of the room ended.
enum End {
    /// Nobody is here and all is durable, or nobody has the document.
    Retire(&'static str),
    /// Open the document again.
    Reopen,
    /// The relay is stopping.
    Stop,
    /// There is no memory for the document.
    Refuse,
}

impl Room {
    pub(super) fn new(
        rooms: Arc<Rooms>,
        handle: Arc<Handle>,
        inbox: mpsc::Receiver<Box<Input>>,
        waiting: &[Waiting],
    ) -> Self {
        let members = waiting
            .iter()
            .filter_map(|waiting| Some((waiting, rooms.shared.peers.get(waiting.session)?)))
            .map(|(waiting, session)| {
                let lost = waiting.lost;
                let member =
                    Member { begin_anew: true, waited: true, lost, ..Member::new(session) };
                (waiting.session, member)
            })
            .collect();
        Self {
            rooms,
            handle,
            inbox,
            members,
            stash: Vec::new(),
            presence_until: None,
            backoff: Backoff::new(REOPEN.0, REOPEN.1),
            durable: (Vec::new(), 0),
            someone_wants_durable: false,
            next_answer: None,
            grace: None,
        }
    }

    pub(super) async fn run(mut self) {
        let metrics = self.metrics().clone();
        if !self.handle.pending.is_empty() {
            self.wait("room_failed", AFTER_PANIC).await;
        }
        loop {
            let opening = InState::new(&metrics, "opening");
            // Each phase in a box: a room keeps memory for the one it is in.
            let opened = match Box::pin(self.open()).await {
                Ok(opened) => opened,
                Err(End::Refuse) => return self.refuse(),
                Err(_) => {
                    self.stopped("stop");
                    return;
                }
            };
            self.tell(None, || What::Opened { heads: texts(&opened.heads) });
            let end = if opened.is_deleted {
                self.not_taken("deleted")
            } else if opened.is_blocked {
                self.not_taken("blocked")
            } else if let Some(limit) = &opened.too_large {
                let document = self.document();
                error!(%document, "the document is larger than one may be, and stays on the disk: {limit}");
                self.not_taken("too_large")
            } else if self.has_no_space(&opened) {
                Box::pin(self.wait_for_space()).await
            } else if !opened.heads.is_empty()
                || !self.handle.pending.is_empty()
                || self.is_created()
            {
                drop(opening);
                let _live = InState::new(&metrics, "live");
                self.handle.has_engine.store(true, Ordering::Relaxed);
                let end = Box::pin(self.live(opened)).await;
                self.handle.has_engine.store(false, Ordering::Relaxed);
                end
            } else {
                Box::pin(self.unknown()).await
            };
            match end {
                End::Reopen => {}
                End::Stop | End::Refuse => {
                    self.stopped("stop");
                    return;
                }
                End::Retire(reason) => {
                    if self.retire(reason).await {
                        return;
                    }
                }
            }
        }
    }

    fn metrics(&self) -> &RoomMetrics {
        &self.rooms.shared.metrics.rooms
    }

    /// Tell whoever follows the document.
    fn tell(&self, session: Option<&Session>, what: impl FnOnce() -> What) {
        self.rooms.followers.tell(self.handle.document, session, what);
    }

    /// Note a message that came: in what the room costs, and for whoever follows.
    fn note(&self, input: &Input) {
        let (from, kind, bytes, heads, brings_changes) = match input {
            Input::Sync { from, request, message, .. } => {
                let kind = if *request { "request" } else { "sync" };
                let heads = message.message.heads.len();
                (from, kind, message.raw.len(), heads, message.has_changes())
            }
            Input::Ephemeral { from, data, .. } => (from, "ephemeral", data.len(), 0, false),
            Input::Subscribed { .. } | Input::Look { .. } => return,
        };
        self.handle.usage.message(bytes);
        let kind = || kind.to_owned();
        self.tell(Some(from), || What::Received { kind: kind(), bytes, heads, brings_changes });
    }

    /// What an operator sees of the room while it has no engine.
    fn look(&self, state: &str) -> LiveDocument {
        let sessions = self.members.values().map(|member| LiveSession {
            waits: member.asks.is_some(),
            ..LiveSession::of(&member.session, None)
        });
        let (state, sessions) = (state.to_owned(), sessions.collect());
        LiveDocument { state, sessions, ..LiveDocument::default() }
    }

    fn document(&self) -> DocumentId {
        self.handle.document
    }

    /// Load the document, however often it takes.
    ///
    /// # Errors
    /// The relay stops first, or has no memory for it.
    async fn open(&mut self) -> Result<Opened, End> {
        let rooms = self.rooms.clone();
        let stopping = self.rooms.stopping.clone();
        let document = self.document();
        if document == rooms.shared.probe {
            return Ok(Opened::default());
        }
        // What is not taken needs no memory.
        if let Some(refused) = rooms.shared.documents.refused(document) {
            return Ok(refused);
        }
        let opener = self.opener();
        let payer = opener.as_deref().map_or(Payer::Document(document), Session::payer);
        let mut unreadable = None;
        let has_pending = !self.handle.pending.is_empty();
        let mut is_needed = has_pending;
        loop {
            let open = async {
                // What waits to be saved takes memory until it is.
                let place = if has_pending {
                    Ok(rooms.loading.take(payer.clone()).await)
                } else {
                    rooms.find_place(&payer).await
                };
                match place {
                    Ok(_place) => Ok(rooms.shared.documents.open(document).await),
                    Err(NoMemory) => Err(End::Refuse),
                }
            };
            tokio::pin!(open);
            let opened = loop {
                tokio::select! {
                    opened = &mut open => break opened?,
                    Some(input) = self.inbox.recv(), if self.stash.len() < STASH => {
                        self.put_by(*input, "opening");
                    }
                    // Only changes that somebody has sent are worth a wait for the disk.
                    () = stopping.cancelled(), if !is_needed => {
                        while let Ok(input) = self.inbox.try_recv() {
                            self.put_by(*input, "opening");
                        }
                        is_needed = self.stash.iter().any(brings_changes);
                        if !is_needed {
                            return Err(End::Stop);
                        }
                    }
                }
            };
            match opened {
                // What lies underneath has changed while it was read.
                Ok(_) if self.is_to_look_again() => {}
                Ok(opened) => {
                    if let Some(opener) = opener {
                        opener.charge(opened.took, 1);
                    }
                    return Ok(opened);
                }
                Err(error) => {
                    error!(%document, "the document cannot be read; it is tried again: {error}");
                    unreadable.get_or_insert_with(|| rooms.shared.documents.unreadable(&error));
                    self.lose_stash("unreadable");
                    let text = format!("{document} cannot be read here for now; it is tried again");
                    self.members.values().for_each(|member| member.session.send_error(&text));
                    tokio::select! {
                        () = self.pause("unreadable") => {}
                        () = stopping.cancelled(), if !has_pending => return Err(End::Stop),
                    }
                }
            }
        }
    }

    /// The session because of which the document is opened, if it is one.
    fn opener(&self) -> Option<Arc<Session>> {
        let members = lock(&self.handle.members);
        let mut ids = members.iter();
        let only = ids.next().filter(|_| ids.next().is_none())?;
        self.rooms.shared.peers.get(*only)
    }

    /// Wait a while; what comes meanwhile is lost, and its senders begin anew afterwards.
    async fn pause(&mut self, why: &'static str) {
        let pause = self.backoff.pause();
        self.wait(why, pause).await;
    }

    async fn wait(&mut self, why: &'static str, pause: Duration) {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                Some(input) = self.inbox.recv() => {
                    self.put_by(*input, why);
                    self.lose_stash(why);
                }
            }
        }
    }

    /// Keep what comes for later; whoever looks is answered at once.
    fn put_by(&mut self, input: Input, state: &str) {
        match input {
            // Who asked may have gone.
            Input::Look { reply } => _ = reply.send(self.look(state)),
            input => self.stash.push(input),
        }
    }

    /// Whether the served bundle has changed since this was last asked.
    fn takes_bundle_change(&self) -> bool {
        self.handle.bundle_changed.swap(false, Ordering::Relaxed)
    }

    /// Whether what is stored has changed beside the room since this was last asked.
    fn takes_reopen(&self) -> bool {
        self.handle.reopen.swap(false, Ordering::Relaxed)
    }

    /// Whether what was found of the document, or that nothing was, is not true any more.
    fn is_to_look_again(&self) -> bool {
        self.takes_bundle_change() | self.takes_reopen()
    }

    /// The sessions that have ended since this was last asked.
    fn gone(&self) -> Vec<SessionId> {
        std::mem::take(&mut *lock(&self.handle.gone))
    }

    fn is_here(&self, session: SessionId) -> bool {
        lock(&self.handle.members).contains(&session)
    }

    fn lose_stash(&mut self, why: &'static str) {
        for input in std::mem::take(&mut self.stash) {
            match &input {
                Input::Sync { from, .. } if !self.is_here(from.id) => {}
                Input::Sync { from, .. } => {
                    self.refused(from, why);
                    let member = self.member(from);
                    (member.begin_anew, member.lost) = (true, true);
                }
                Input::Ephemeral { .. } => self.pass_on(input),
                Input::Subscribed { .. } | Input::Look { .. } => {}
            }
        }
    }

    /// Count a message that is not taken, and tell whoever follows.
    fn refused(&self, from: &Session, why: &'static str) {
        self.rooms.shared.metrics.sessions.dropped.with_label_values(&[why]).inc();
        self.tell(Some(from), || What::Refused { reason: why.to_owned() });
    }

    fn member(&mut self, session: &Arc<Session>) -> &mut Member {
        let (followers, document) = (&self.rooms.followers, self.handle.document);
        self.members.entry(session.id).or_insert_with(|| {
            followers.tell(document, Some(session), || What::Joined);
            Member::new(session.clone())
        })
    }

    fn forget(&mut self, session: SessionId) {
        if let Some(member) = self.members.remove(&session) {
            self.tell(Some(&member.session), || What::Left);
        }
        lock(&self.handle.mailbox.seen).forget(session);
    }

    /// Pass an ephemeral message on to everybody else here.
    fn pass_on(&mut self, input: Input) {
        let Input::Ephemeral { from, author, session, count, data, held: _held } = input else {
            return;
        };
        self.presence_until = Some(Deadline::now() + PRESENCE_LINGERS);
        if self.is_here(from.id) {
            self.member(&from);
        }
        let by = (from.id, &from.access.principal);
        if !lock(&self.handle.mailbox.seen).is_new(by, &author, &session, count) {
            return self.refused(&from, "ephemeral_seen");
        }
        for (id, member) in &self.members {
            if *id != from.id {
                self.handle.usage.message(data.len());
                self.tell(Some(&member.session), || What::Sent {
                    kind: "ephemeral".to_owned(),
                    bytes: data.len(),
                });
                member.session.send_ephemeral(
                    &author,
                    self.handle.document,
                    count,
                    &session,
                    &data,
                );
            }
        }
    }

    /// Whether somebody brings something of the document.
    fn is_brought(&self) -> bool {
        self.stash.iter().any(|input| brings_heads(self.document(), input))
    }

    /// Whether somebody brings the document, which is new, and may make one more. The first who may
    /// is charged for it, once; the charge is refunded unless something of the document is stored.
    fn is_created(&mut self) -> bool {
        if self.handle.pending.holds_creation() {
            return self.is_brought();
        }
        let shared = &self.rooms.shared;
        let limits = shared.config.borrow().limits.clone();
        let document = self.document();
        while let Some(Input::Sync { from, .. }) =
            self.stash.iter().find(|input| brings_heads(document, input))
        {
            let mut charge = shared.principals.charge(from.account.clone());
            if charge.documents(1, &limits) {
                self.handle.pending.hold_creation(charge);
                return true;
            }
            from.close(CloseReason::NewDocuments(limits.new_documents));
            let closed = from.id;
            self.stash.retain(|input| sender(input) != Some(closed));
        }
        false
    }

    fn forward_timeout(&self) -> Duration {
        self.rooms.shared.config.borrow().sync.forward_timeout.0
    }

    /// Leave the directory. False if somebody came meanwhile, and the room goes on.
    async fn retire(&mut self, reason: &'static str) -> bool {
        self.inbox.close();
        // Until all who were about to send have done so, or found the mailbox closed.
        while let Some(input) = self.inbox.recv().await {
            self.put_by(*input, reason);
        }
        let document = self.document();
        let rooms = self.rooms.clone();
        let mut directory = lock(&rooms.directory);
        for id in self.gone() {
            self.forget(id);
        }
        let here = lock(&self.handle.members).clone();
        self.members.retain(|id, _| here.contains(id));
        let is_wanted = match reason {
            "unknown" | "deleted" | "blocked" | "too_large" => !self.stash.is_empty(),
            _ => !self.stash.is_empty() || !self.members.is_empty(),
        } || self.is_to_look_again();
        if is_wanted {
            let (handle, inbox) = Handle::new(document, self.handle.kept(), self.rooms.share());
            *lock(&handle.members) = here;
            for member in self.members.values_mut() {
                member.begin_anew = true;
                member.port = None;
            }
            directory.insert(document, Entry::Live(handle.clone()));
            let retired = std::mem::replace(&mut self.handle, handle);
            self.inbox = inbox;
            retired.retired.cancel();
            return false;
        }
        if document != rooms.shared.probe {
            self.metrics().unloaded.with_label_values(&[reason]).inc();
        }
        self.tell(None, || What::Unloaded { reason: reason.to_owned() });
        for member in self.members.values() {
            member.session.wait_for(document);
        }
        if self.members.is_empty() {
            directory.remove(&document);
        } else {
            let waiting = self.members.iter();
            let waiting =
                waiting.map(|(session, member)| Waiting { session: *session, lost: member.lost });
            directory.insert(document, Entry::Waiting(waiting.collect()));
            self.metrics().waiting.inc();
        }
        self.handle.retired.cancel();
        true
    }

    /// There is no memory for the document: who wants it is to come again.
    fn refuse(self) {
        for session in self.stopped("memory") {
            session.close(CloseReason::Memory);
        }
    }

    /// Leave the directory for good: the relay stops, or those who came are refused. Returns who is here.
    fn stopped(self, reason: &str) -> Vec<Arc<Session>> {
        let mut directory = lock(&self.rooms.directory);
        directory.remove(&self.handle.document);
        let members = lock(&self.handle.members).clone();
        drop(directory);
        self.metrics().unloaded.with_label_values(&[reason]).inc();
        self.tell(None, || What::Unloaded { reason: reason.to_owned() });
        self.handle.retired.cancel();
        members.into_iter().filter_map(|id| self.rooms.shared.peers.get(id)).collect()
    }
}

fn sender(input: &Input) -> Option<SessionId> {
    match input {
        Input::Sync { from, .. } => Some(from.id),
        Input::Ephemeral { .. } | Input::Subscribed { .. } | Input::Look { .. } => None,
    }
}

/// Whether a message tells of something of the document, from one who may bring it.
fn brings_heads(document: DocumentId, input: &Input) -> bool {
    match input {
        Input::Sync { from, message, .. } => message.has_heads() && from.may_write(document),
        Input::Ephemeral { .. } | Input::Subscribed { .. } | Input::Look { .. } => false,
    }
}

fn brings_changes(input: &Input) -> bool {
    matches!(input, Input::Sync { message, .. } if message.has_changes())
}

/// Counts a room in a state for as long as it lives.
struct InState {
    gauge: prometheus::IntGauge,
}

impl InState {
    fn new(metrics: &RoomMetrics, state: &str) -> Self {
        let gauge = metrics.rooms.with_label_values(&[state]);
        gauge.inc();
        Self { gauge }
    }
}

impl Drop for InState {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
