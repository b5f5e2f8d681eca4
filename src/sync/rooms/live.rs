//! The task of one room: open the document, serve it, look for it if nobody has it, unload it.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, atomic::Ordering},
    time::{Duration, Instant},
};

use automerge::{
    Automerge,
    sync::{Message, State, SyncDoc},
};
use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant as Deadline, sleep, sleep_until},
};
use tracing::{debug, error, info, warn};

use super::{Entry, Handle, Input, Rooms, lock, seconds_since};
use crate::{
    backoff::Backoff,
    document_id::DocumentId,
    metrics::RoomMetrics,
    storage::documents::{Base, Opened, Relation},
    sync::{
        ephemera::Seen,
        peers::SessionId,
        room::{Engine, Port},
        session::Session,
        wire,
    },
};

/// Messages kept while a document is being loaded.
const STASH: usize = 64;
/// Pause before a document that could not be read, or whose engine failed, is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// A room of a document that nobody has stays for so long after presence passed through it.
const PRESENCE_LINGERS: Duration = Duration::from_secs(10);
/// A time that does not come, for timers that are not set.
const FAR: Duration = Duration::from_secs(3600);

/// What a peer without a document says first: an automerge sync message without heads.
static NOTHING: LazyLock<Bytes> = LazyLock::new(|| {
    let message = Automerge::new().generate_sync_message(&mut State::new());
    message.map_or_else(Bytes::new, |message| message.encode().into())
});

pub(super) struct Room {
    rooms: Arc<Rooms>,
    handle: Arc<Handle>,
    inbox: mpsc::Receiver<Input>,
    members: HashMap<SessionId, Member>,
    stash: Vec<Input>,
    seen: Seen,
    presence_until: Option<Deadline>,
    backoff: Backoff,
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
    /// What it sent was lost.
    lost: bool,
    measured: bool,
}

impl Member {
    fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            since: Instant::now(),
            port: None,
            asks: None,
            begin_anew: false,
            lost: false,
            measured: false,
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
}

impl Room {
    pub(super) fn new(
        rooms: Arc<Rooms>,
        handle: Arc<Handle>,
        inbox: mpsc::Receiver<Input>,
        waiting: &[SessionId],
    ) -> Self {
        let members = waiting
            .iter()
            .filter_map(|id| Some((*id, rooms.shared.peers.get(*id)?)))
            .map(|(id, session)| (id, Member { begin_anew: true, ..Member::new(session) }))
            .collect();
        Self {
            rooms,
            handle,
            inbox,
            members,
            stash: Vec::new(),
            seen: Seen::default(),
            presence_until: None,
            backoff: Backoff::new(REOPEN.0, REOPEN.1),
        }
    }

    pub(super) async fn run(mut self) {
        let metrics = self.metrics().clone();
        loop {
            let opening = InState::new(&metrics, "opening");
            let Some(opened) = self.open().await else {
                return self.stopped().await;
            };
            let is_known = !opened.heads.is_empty() || self.stash.iter().any(brings_heads);
            let end = if is_known {
                drop(opening);
                let _live = InState::new(&metrics, "live");
                self.live(opened).await
            } else {
                self.unknown().await
            };
            match end {
                End::Reopen => {}
                End::Stop => return self.stopped().await,
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

    fn document(&self) -> DocumentId {
        self.handle.document
    }

    /// Load the document, however often it takes. None if the relay stops first.
    async fn open(&mut self) -> Option<Opened> {
        let documents = self.rooms.shared.documents.clone();
        let stopping = self.rooms.stopping.clone();
        let document = self.document();
        loop {
            let open = documents.open(document);
            tokio::pin!(open);
            let opened = loop {
                tokio::select! {
                    opened = &mut open => break opened,
                    Some(input) = self.inbox.recv(), if self.stash.len() < STASH => {
                        self.stash.push(input);
                    }
                }
            };
            match opened {
                // What lies underneath has changed while it was read.
                Ok(_) if self.takes_bundle_change() => {}
                Ok(opened) => return Some(opened),
                Err(error) => {
                    error!(%document, %error, "the document cannot be read; it is tried again");
                    self.lose_stash("unreadable");
                    tokio::select! {
                        () = self.pause("unreadable") => {}
                        () = stopping.cancelled() => return None,
                    }
                }
            }
        }
    }

    /// Wait a while; what comes meanwhile is lost, and its senders begin anew afterwards.
    async fn pause(&mut self, why: &'static str) {
        let pause = sleep(self.backoff.pause());
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                Some(input) = self.inbox.recv() => {
                    self.stash.push(input);
                    self.lose_stash(why);
                }
            }
        }
    }

    /// Whether the served bundle has changed since this was last asked.
    fn takes_bundle_change(&self) -> bool {
        self.handle.bundle_changed.swap(false, Ordering::Relaxed)
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
            match input {
                Input::Sync { from, .. } => {
                    self.rooms.shared.metrics.sessions.dropped.with_label_values(&[why]).inc();
                    let member = self.member(&from);
                    (member.begin_anew, member.lost) = (true, true);
                }
                Input::Ephemeral { .. } => self.pass_on(input),
            }
        }
    }

    fn member(&mut self, session: &Arc<Session>) -> &mut Member {
        self.members.entry(session.id).or_insert_with(|| Member::new(session.clone()))
    }

    fn forget(&mut self, session: SessionId) {
        self.members.remove(&session);
        self.seen.forget(session);
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
        if !self.seen.is_new(from.id, &author, &session, count) {
            let dropped = &self.rooms.shared.metrics.sessions.dropped;
            return dropped.with_label_values(&["ephemeral_seen"]).inc();
        }
        for (id, member) in &self.members {
            if *id != from.id {
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

    /// Serve the document until nobody follows it.
    async fn live(&mut self, opened: Opened) -> End {
        let shared = &self.rooms.shared;
        let (documents, document) = (shared.documents.clone(), self.document());
        let stopping = self.rooms.stopping.clone();
        let mut config = shared.config.clone();
        let mut base = opened.base.clone();
        let mut engine = (shared.engine)(documents, document, opened).await;
        debug!(%document, "live");

        for id in self.gone() {
            self.forget(id);
        }
        let again = self.members.iter().filter(|(_, member)| member.begin_anew);
        let again: Vec<(SessionId, bool)> = again.map(|(id, member)| (*id, member.lost)).collect();
        for (id, lost) in again {
            if lost && let Some(member) = self.members.get(&id) {
                // A peer does not repeat what it has sent, unless it hears that all of it is gone.
                member.session.send_sync(document, false, &NOTHING);
            }
            self.begin(&mut engine, id).await;
            engine.receive(id, true, NOTHING.clone()).await;
        }
        for input in std::mem::take(&mut self.stash) {
            self.take_in(&mut engine, &mut base, input).await;
        }
        let started = Instant::now();
        let handle = self.handle.clone();
        let mut idle_since = None;
        loop {
            if self.members.is_empty() {
                idle_since.get_or_insert_with(Deadline::now);
            } else {
                idle_since = None;
            }
            let idle_unload = config.borrow_and_update().sync.idle_unload.0;
            let unload = idle_since.map_or_else(far, |since| since + idle_unload);
            let next_answer = self.next_answer();
            let failed = engine.failed();
            tokio::select! {
                input = self.inbox.recv() => match input {
                    Some(input) => self.take_in(&mut engine, &mut base, input).await,
                    None => return End::Stop,
                },
                () = handle.news.notified() => {
                    for id in self.gone() {
                        engine.leave(id);
                        self.forget(id);
                    }
                    if self.takes_bundle_change() {
                        self.merge_bundle(&mut engine, &mut base).await;
                    }
                }
                () = sleep_until(next_answer) => {
                    // Whoever brought the document left before it was here: ask others for it.
                    if self.is_unanswered() {
                        engine.close().await;
                        for member in self.members.values_mut() {
                            member.begin_anew |= member.port.take().is_some();
                        }
                        return End::Reopen;
                    }
                    self.answer_the_unanswered();
                }
                () = sleep_until(unload) => {
                    engine.close().await;
                    return End::Retire("idle");
                }
                () = failed => {
                    self.metrics().panics.inc();
                    drop(engine);
                    if started.elapsed() > REOPEN.1 {
                        self.backoff.reset();
                    }
                    for member in self.members.values_mut() {
                        let took_part = member.port.take().is_some();
                        member.begin_anew |= took_part;
                        member.lost |= took_part;
                    }
                    tokio::select! {
                        () = self.pause("room_failed") => return End::Reopen,
                        () = stopping.cancelled() => return End::Stop,
                    }
                }
                _ = config.changed() => {}
                () = stopping.cancelled() => {
                    // Sessions have ended by now: what they sent is in the mailbox.
                    while let Ok(input) = self.inbox.try_recv() {
                        self.take_in(&mut engine, &mut base, input).await;
                    }
                    engine.close().await;
                    return End::Stop;
                }
            }
        }
    }

    /// Let a member take part in synchronising.
    async fn begin(&mut self, engine: &mut Box<dyn Engine>, id: SessionId) {
        let document = self.handle.document;
        let Some(member) = self.members.get_mut(&id) else { return };
        (member.begin_anew, member.lost) = (false, false);
        if member.port.is_none() {
            let port = Port::new(member.session.clone(), document);
            member.port = Some(port.clone());
            engine.join(port).await;
            self.rooms.shared.metrics.rooms.join_seconds.observe(seconds_since(member.since));
        }
    }

    async fn take_in(
        &mut self,
        engine: &mut Box<dyn Engine>,
        base: &mut Option<Base>,
        input: Input,
    ) {
        match input {
            Input::Ephemeral { .. } => self.pass_on(input),
            Input::Sync { from, request, data, held: _held } => {
                let answer_by = Deadline::now() + self.forward_timeout();
                let member = self.member(&from);
                if request {
                    member.asks.get_or_insert(answer_by);
                }
                self.begin(engine, from.id).await;
                if base.is_some() && brings_changes(&data) {
                    self.save_base(base).await;
                }
                engine.receive(from.id, request, data).await;
                self.measure(from.id);
                if !self.is_here(from.id) {
                    engine.leave(from.id);
                    self.forget(from.id);
                }
            }
        }
    }

    fn forward_timeout(&self) -> Duration {
        self.rooms.shared.config.borrow().sync.forward_timeout.0
    }

    /// The bundle may be gone tomorrow: what is built on it must not be without it.
    async fn save_base(&self, base: &mut Option<Base>) {
        if let Some(base) = base.take() {
            self.rooms.shared.documents.save(&base.key, base.data).await;
        }
    }

    async fn merge_bundle(&mut self, engine: &mut Box<dyn Engine>, base: &mut Option<Base>) {
        let document = self.document();
        let Some(snapshot) = self.rooms.shared.documents.underneath(document) else {
            return;
        };
        self.save_base(base).await;
        match engine.merge(snapshot).await {
            Some(Relation::Newer) => info!(%document, "merged the new bundle's snapshot"),
            Some(Relation::Unrelated) => self.rooms.shared.documents.report_unrelated(document),
            Some(Relation::Contained) => {}
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

    fn next_answer(&self) -> Deadline {
        self.members.values().filter_map(|member| member.asks).min().unwrap_or_else(far)
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
                    member.session.send_unavailable(document);
                }
            }
        }
        late.into_iter().for_each(|id| self.measure(id));
    }

    /// Nobody has brought the document: ask peers that may have it, answer those who wait.
    async fn unknown(&mut self) -> End {
        self.handle.unknown.store(true, Ordering::Relaxed);
        self.ask_the_lost();
        let stopping = self.rooms.stopping.clone();
        let end = tokio::select! {
            end = self.look_for_it() => end,
            () = stopping.cancelled() => End::Stop,
        };
        lock(&self.handle.asked).clear();
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
            for member in self.members.values_mut() {
                match member.asks {
                    Some(by) if asked_out || by <= now => {
                        member.asks = None;
                        member.session.send_unavailable(self.handle.document);
                        let requests = &self.rooms.shared.metrics.rooms.requests;
                        requests.with_label_values(&["unavailable"]).inc();
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
                    if self.takes_bundle_change() {
                        return self.is_found();
                    }
                }
                () = sleep_until(next.unwrap_or(now)) => {}
                input = self.inbox.recv() => match input {
                    None => return End::Stop,
                    Some(input) if brings_heads(&input) => {
                        self.stash.push(input);
                        return self.is_found();
                    }
                    Some(input) => self.note_unknown(input),
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
                member.session.send_sync(document, true, &NOTHING);
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
        match input {
            Input::Ephemeral { .. } => self.pass_on(input),
            Input::Sync { from, .. } if !self.is_here(from.id) => {}
            Input::Sync { from, request, held: _held, .. } => {
                let member = self.member(&from);
                member.begin_anew = true;
                if request && member.asks.is_none() {
                    let by = Deadline::now() + self.forward_timeout();
                    self.member(&from).asks = Some(by);
                    self.ask_others(&from);
                }
            }
        }
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
            peer.send_sync(document, true, &NOTHING);
            self.rooms.shared.metrics.rooms.requests.with_label_values(&["passed_on"]).inc();
        }
    }

    /// Leave the directory. False if somebody came meanwhile, and the room goes on.
    async fn retire(&mut self, reason: &'static str) -> bool {
        self.inbox.close();
        // Until all who were about to send have done so, or found the mailbox closed.
        while let Some(input) = self.inbox.recv().await {
            self.stash.push(input);
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
            "unknown" => !self.stash.is_empty(),
            _ => !self.stash.is_empty() || !self.members.is_empty(),
        } || self.takes_bundle_change();
        if is_wanted {
            let (handle, inbox) = Handle::new(document);
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
        self.metrics().unloaded.with_label_values(&[reason]).inc();
        for member in self.members.values() {
            member.session.wait_for(document);
        }
        if self.members.is_empty() {
            directory.remove(&document);
        } else {
            directory.insert(document, Entry::Waiting(self.members.keys().copied().collect()));
            self.metrics().waiting.inc();
        }
        self.handle.retired.cancel();
        true
    }

    /// The relay stops: nobody comes any more.
    async fn stopped(self) {
        lock(&self.rooms.directory).remove(&self.handle.document);
        self.metrics().unloaded.with_label_values(&["stop"]).inc();
        self.handle.retired.cancel();
    }
}

fn far() -> Deadline {
    Deadline::now() + FAR
}

fn brings_heads(input: &Input) -> bool {
    match input {
        Input::Sync { data, .. } => wire::heads_in(data).is_some_and(|heads| heads > 0),
        _ => false,
    }
}

/// Whether a sync message brings changes; one that does not decode brings none.
fn brings_changes(data: &[u8]) -> bool {
    Message::decode(data).is_ok_and(|message| !message.changes.is_empty())
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
