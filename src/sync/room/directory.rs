//! Which rooms there are, and which sessions are in them.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{sync::Notify, time::Instant as Deadline};
use tokio_util::sync::CancellationToken;

use super::{
    mailbox::{Inbox, Mailbox, mailbox},
    members::{Members, WithoutRoom},
    pending::Pending,
    seen::Seen,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    observe::usage::Usage,
    storage::live::News,
    sync::session::Session,
};

/// Every document that a session has mentioned, while somebody is interested in it.
#[derive(Default)]
pub struct Directory {
    entries: HashMap<DocumentId, Entry>,
    /// The documents in whose rooms each session is.
    documents: HashMap<SessionId, HashSet<DocumentId>>,
}

/// What there is of a document.
pub(crate) enum Entry {
    /// A room.
    Live(Arc<RoomHandle>),
    /// Nobody has the document, or nobody may have it. These sessions are told when that changes.
    Waiting(Vec<WithoutRoom>),
}

/// What the directory and a room's task share.
pub struct RoomHandle {
    /// The document.
    pub document: DocumentId,
    /// The way into the room.
    pub mailbox: Mailbox,
    /// Who is in it.
    pub members: Arc<Members>,
    /// What it costs.
    pub usage: Usage,
    /// What was received of the document and is not durable.
    pub(crate) pending: Arc<Pending>,
    /// Nobody has brought the document yet.
    pub(crate) is_unknown: AtomicBool,
    /// The document is in memory, perhaps with changes that are not durable.
    pub(crate) has_engine: AtomicBool,
    /// The sessions that were asked for the document, and whether they have answered that they
    /// lack it.
    pub(crate) asked: Mutex<HashMap<SessionId, bool>>,
    /// Notified when one of them has answered.
    pub(crate) answer: Notify,
    /// The other relays that were asked for the document, if they were.
    relays: Mutex<Option<AskedRelays>>,
    /// The served bundle has changed.
    has_bundle_changed: AtomicBool,
    /// What is stored was changed by something other than the room.
    has_storage_changed: AtomicBool,
    /// What other relays have stored and the room has not applied yet.
    stored: Mutex<Option<News>>,
    /// Notified when the bundle or what is stored has changed, when the store has lost something,
    /// when the room is evicted, and when a session can be sent what was kept back.
    pub(crate) news: Arc<Notify>,
    /// Cancelled when the room is no longer in the directory. A session that finds the mailbox
    /// closed waits for this and looks in the directory again.
    pub(crate) retired: CancellationToken,
}

/// What a document's next room takes over.
#[derive(Default)]
pub(crate) struct Kept {
    members: Arc<Members>,
    usage: Usage,
    seen: Arc<Mutex<Seen>>,
    pending: Arc<Pending>,
}

impl Kept {
    /// The members of a new room.
    pub(crate) fn of(members: Members) -> Self {
        Self { members: Arc::new(members), ..Self::default() }
    }
}

/// Other relays that were asked for a document.
#[derive(Clone, Copy)]
pub(crate) struct AskedRelays {
    /// The number of the question.
    pub(crate) question: u64,
    /// How many have not said that nobody there has it.
    pub(crate) left: usize,
    /// Until when they may.
    pub(crate) until: Deadline,
}

impl RoomHandle {
    /// A new room, whose share of the receive queue is in KiB.
    pub(crate) fn new(document: DocumentId, kept: Kept, receive_share: u32) -> (Arc<Self>, Inbox) {
        let Kept { members, usage, seen, pending } = kept;
        let (mailbox, inbox) = mailbox(receive_share, seen);
        let handle = Self {
            document,
            mailbox,
            members,
            usage,
            pending,
            is_unknown: AtomicBool::new(false),
            has_engine: AtomicBool::new(false),
            asked: Mutex::default(),
            answer: Notify::new(),
            relays: Mutex::default(),
            has_bundle_changed: AtomicBool::new(false),
            has_storage_changed: AtomicBool::new(false),
            stored: Mutex::default(),
            news: Arc::default(),
            retired: CancellationToken::new(),
        };
        (Arc::new(handle), inbox)
    }

    /// What the document's next room takes over, with its members.
    pub(crate) fn kept(&self) -> Kept {
        Kept { members: self.members.clone(), ..self.kept_without_members() }
    }

    /// What the document's next room takes over.
    pub(crate) fn kept_without_members(&self) -> Kept {
        Kept {
            members: Arc::default(),
            usage: self.usage.clone(),
            seen: self.mailbox.seen().clone(),
            pending: self.pending.clone(),
        }
    }

    /// Has the room unload as soon as it can, if nobody is in it.
    pub(crate) fn evict(&self) {
        if self.members.evict() {
            self.news.notify_one();
        }
    }

    /// Records that other relays are asked for the document.
    pub(crate) fn asked_relays(&self, asked: AskedRelays) {
        *lock(&self.relays) = Some(asked);
    }

    /// Nobody at another relay has the document, says the answer to this question.
    pub(crate) fn relay_lacks(&self, question: u64) {
        match lock(&self.relays).as_mut() {
            Some(asked) if asked.question == question => asked.left = asked.left.saturating_sub(1),
            // Another relay has asked for the same document.
            _ => return,
        }
        self.answer.notify_one();
    }

    /// Until when other relays may answer, if they were asked. It is over once all have.
    pub(crate) fn relays_answer_until(&self) -> Option<Deadline> {
        let asked = *lock(&self.relays);
        asked.map(|asked| if asked.left == 0 { Deadline::now() } else { asked.until })
    }

    /// Other relays may be asked again.
    pub(crate) fn forget_relays(&self) {
        *lock(&self.relays) = None;
    }

    /// Tells the room that the served bundle has changed.
    pub(crate) fn bundle_changed(&self) {
        self.has_bundle_changed.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// Tells the room that what is stored has changed.
    pub(crate) fn storage_changed(&self) {
        self.has_storage_changed.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// Tells the room what other relays have stored.
    pub(crate) fn stored(&self, news: News) {
        let mut stored = lock(&self.stored);
        *stored = Some(match stored.take() {
            None => news,
            Some(earlier) => earlier.and(news),
        });
        drop(stored);
        self.news.notify_one();
    }

    /// What other relays have stored since the last call.
    pub(crate) fn take_stored(&self) -> Option<News> {
        lock(&self.stored).take()
    }

    /// Whether the served bundle has changed since the last call.
    pub(crate) fn take_bundle_change(&self) -> bool {
        self.has_bundle_changed.swap(false, Ordering::Relaxed)
    }

    /// Whether what is stored was changed by something other than the room since the last call.
    pub(crate) fn take_storage_change(&self) -> bool {
        self.has_storage_changed.swap(false, Ordering::Relaxed)
    }

    /// Whether either has changed: what was found of the document may be out of date.
    pub(crate) fn take_outdated(&self) -> bool {
        self.take_bundle_change() | self.take_storage_change()
    }
}

/// What a session finds that enters a document's room.
pub(crate) enum Found {
    /// The room. The session is in it now.
    Room(Mailbox),
    /// A room that is retiring. When this is cancelled the directory has changed.
    Retiring(CancellationToken),
    /// There is no room.
    Nothing,
}

impl Directory {
    /// Adds a session to a document's room, if there is one.
    pub(crate) fn enter(&mut self, document: DocumentId, session: &Arc<Session>) -> Found {
        match self.entries.get(&document) {
            Some(Entry::Live(handle)) if handle.mailbox.is_closed() => {
                Found::Retiring(handle.retired.clone())
            }
            Some(Entry::Live(handle)) => {
                handle.members.enter(session);
                let mailbox = handle.mailbox.clone();
                self.index(document, session.id);
                Found::Room(mailbox)
            }
            Some(Entry::Waiting(_)) | None => Found::Nothing,
        }
    }

    /// Removes a session from a document's entry; a room is told so through its mailbox. Returns
    /// whether a waiting entry is gone.
    pub(crate) fn leave(&mut self, document: DocumentId, session: SessionId) -> bool {
        let was_in_room = self.unindex(document, session);
        match self.entries.get_mut(&document) {
            Some(Entry::Live(handle)) if was_in_room => handle.mailbox.leave(session),
            Some(Entry::Live(_)) => {}
            Some(Entry::Waiting(waiting)) => {
                waiting.retain(|waiting| waiting.session != session);
                if waiting.is_empty() {
                    self.entries.remove(&document);
                    return true;
                }
            }
            None => {}
        }
        false
    }

    /// Adds a room, in place of what there was. Its members are in it from now on.
    pub(crate) fn add(&mut self, handle: Arc<RoomHandle>) {
        for session in handle.members.sessions() {
            self.index(handle.document, session.id);
        }
        self.entries.insert(handle.document, Entry::Live(handle));
    }

    /// Removes the sessions that wait for a document without a room.
    pub(crate) fn take_waiting(&mut self, document: DocumentId) -> Vec<WithoutRoom> {
        match self.entries.remove(&document) {
            Some(Entry::Waiting(waiting)) => waiting,
            Some(live) => {
                self.entries.insert(document, live);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Removes a room. `waiting` wait for the document without one.
    pub(crate) fn retire(&mut self, handle: &RoomHandle, waiting: Vec<WithoutRoom>) {
        for session in handle.members.sessions() {
            self.unindex(handle.document, session.id);
        }
        if waiting.is_empty() {
            self.entries.remove(&handle.document);
        } else {
            self.entries.insert(handle.document, Entry::Waiting(waiting));
        }
    }

    fn index(&mut self, document: DocumentId, session: SessionId) {
        self.documents.entry(session).or_default().insert(document);
    }

    /// Returns whether the session was in the document's room.
    fn unindex(&mut self, document: DocumentId, session: SessionId) -> bool {
        let Some(documents) = self.documents.get_mut(&session) else { return false };
        let was_in_room = documents.remove(&document);
        if documents.is_empty() {
            self.documents.remove(&session);
        }
        was_in_room
    }

    /// A document's room.
    pub fn room(&self, document: DocumentId) -> Option<&Arc<RoomHandle>> {
        match self.entries.get(&document)? {
            Entry::Live(handle) => Some(handle),
            Entry::Waiting(_) => None,
        }
    }

    /// All rooms.
    pub fn rooms(&self) -> impl Iterator<Item = &Arc<RoomHandle>> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::Live(handle) => Some(handle),
            Entry::Waiting(_) => None,
        })
    }

    /// Whether sessions wait for a document without a room.
    pub(crate) fn is_awaited(&self, document: DocumentId) -> bool {
        matches!(self.entries.get(&document), Some(Entry::Waiting(_)))
    }

    /// All documents with a room, or that sessions wait for.
    pub(crate) fn documents(&self) -> Vec<DocumentId> {
        self.entries.keys().copied().collect()
    }

    /// The documents in whose rooms a session is.
    pub(crate) fn documents_of(&self, session: SessionId) -> Vec<DocumentId> {
        self.documents.get(&session).into_iter().flatten().copied().collect()
    }

    /// Whether a session is in a document's room.
    pub(crate) fn is_in(&self, document: DocumentId, session: SessionId) -> bool {
        self.documents.get(&session).is_some_and(|documents| documents.contains(&document))
    }

    /// In how many rooms a session is.
    pub fn count_of(&self, session: SessionId) -> usize {
        self.documents.get(&session).map_or(0, HashSet::len)
    }

    /// How many documents have a room, and how many are waited for without one.
    pub fn count(&self) -> (usize, usize) {
        let live = self.rooms().count();
        (live, self.entries.len() - live)
    }
}

/// A directory that rooms and sessions share.
pub type SharedDirectory = Mutex<Directory>;

/// Some of the sessions in a room whose document is there, at most `most`.
pub(crate) fn some_members(
    directory: &SharedDirectory,
    document: DocumentId,
    most: usize,
) -> Vec<SessionId> {
    let Some(handle) = lock(directory).room(document).cloned() else { return Vec::new() };
    if handle.is_unknown.load(Ordering::Relaxed) {
        return Vec::new();
    }
    handle.members.some(most)
}
