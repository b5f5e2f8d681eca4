//! What all rooms share.

use std::{
    collections::HashSet,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use automerge::{
    Automerge,
    sync::{State, SyncDoc},
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant as Deadline,
};
use tokio_util::sync::CancellationToken;

use super::{
    directory::{Directory, SharedDirectory, some_members},
    engine::EngineStart,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    config::{Config, Size},
    document::sync_message::SyncMessage,
    limits::{
        Quotas,
        turns::{Payer, Turn, Turns},
    },
    observe::metrics::Metrics,
    storage::{documents::Documents, relay_message::OtherRelays},
    sync::{events::Followers, memory::Budget, peers::Peers, session::Session},
};

/// The part of `sync.receive_queue` that one room may use.
const ROOM_SHARE: u32 = 4;
/// How long a peer is not asked again for the same document.
const ASK_AGAIN: Duration = Duration::from_secs(3600);
/// Documents remembered as asked, for each session.
const ASKED: usize = 4096;
/// Documents that are loaded at a time. The memory that they take is known only afterwards, and
/// may exceed `sync.memory`.
pub(crate) const LOADING: usize = 8;
/// Unknown documents for which requests are held back at a time, in case somebody brings them. Each
/// has a room and a timer meanwhile. Requests for more documents are answered at once.
pub(crate) const IN_GRACE: usize = 2_000;
/// How long opening a document waits for idle rooms to unload when memory is short. The allocator
/// returns memory within a second.
pub(crate) const FREED_WITHIN: Duration = Duration::from_secs(3);
/// How many sessions and documents are searched, at most, for peers to ask for a document.
const SEARCHED: usize = 1_000;
/// How often memory is checked again, for all documents that wait together.
const CHECK_AGAIN: Duration = Duration::from_millis(100);

/// What a peer without a document says first: an automerge sync message without heads.
pub(crate) static NOTHING: LazyLock<Option<SyncMessage>> = LazyLock::new(|| {
    let message = Automerge::new().generate_sync_message(&mut State::new())?;
    SyncMessage::read(message.encode().into(), Size::mib(1)).ok()
});

/// There is no memory for another document.
pub(crate) struct NoMemory;

/// What rooms need of the rest of the relay.
#[expect(missing_docs, reason = "the types say it")]
pub struct Needs {
    pub config: watch::Receiver<Arc<Config>>,
    pub documents: Arc<Documents>,
    pub peers: Arc<Peers>,
    pub quotas: Arc<Quotas>,
    pub engine: EngineStart,
    /// The way to the other relays that share the store, if others can.
    pub others: Option<OtherRelays>,
    /// The storage id that clients see.
    pub storage_id: Arc<str>,
    /// The document that the relay requests from itself to check that it answers. It is only in
    /// memory, and has no limits.
    pub probe: DocumentId,
    pub metrics: Metrics,
}

/// What all rooms share.
pub struct Shared {
    /// What they need of the rest of the relay.
    pub needs: Needs,
    directory: SharedDirectory,
    /// Operators who follow a document.
    pub(crate) followers: Arc<Followers>,
    /// When durable heads were last announced, in milliseconds since 1970.
    announced_at: AtomicU64,
    /// Permits for documents that are being loaded.
    pub(crate) loading: Turns,
    /// Permits for unknown documents for which requests are held back.
    pub(crate) in_grace: Arc<Semaphore>,
    memory: Budget,
    /// When memory was last checked, and whether it was short.
    last_check: Mutex<Option<(Deadline, bool)>>,
    /// Cancelled when all rooms are to end.
    pub(crate) stopping: CancellationToken,
}

impl std::ops::Deref for Shared {
    type Target = Needs;

    fn deref(&self) -> &Needs {
        &self.needs
    }
}

impl Shared {
    /// What rooms share that have `needs`. There are no rooms yet.
    pub(crate) fn new(needs: Needs) -> Self {
        Self {
            needs,
            directory: Mutex::default(),
            followers: Arc::default(),
            announced_at: AtomicU64::new(0),
            loading: Turns::new(LOADING),
            in_grace: Arc::new(Semaphore::new(IN_GRACE)),
            memory: Budget::default(),
            last_check: Mutex::default(),
            stopping: CancellationToken::new(),
        }
    }

    /// The rooms that there are.
    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        lock(&self.directory)
    }

    /// One room's share of the receive queue, in KiB.
    pub(crate) fn receive_share(&self) -> u32 {
        (self.needs.config.borrow().sync.receive_permits() / ROOM_SHARE).max(1)
    }

    /// Waits for a permit to load a document, once there is memory for one more. No permit is held
    /// while waiting for memory, so that all who wait are refused after the same time.
    pub(crate) async fn loading_permit(&self, payer: &Payer) -> Result<Turn, NoMemory> {
        loop {
            let since = Deadline::now();
            while self.evict_if_memory_is_short(CHECK_AGAIN) {
                if since.elapsed() >= FREED_WITHIN {
                    return Err(NoMemory);
                }
                tokio::time::sleep(CHECK_AGAIN).await;
            }
            let permit = self.loading.take(payer.clone()).await;
            // Others were loaded during the wait.
            if !self.evict_if_memory_is_short(Duration::ZERO) {
                return Ok(permit);
            }
        }
    }

    /// Evicts all idle rooms if memory is short, by a check that is no older than `age`. Returns
    /// whether it is short.
    fn evict_if_memory_is_short(&self, age: Duration) -> bool {
        let mut last_check = lock(&self.last_check);
        if let Some((at, is_short)) = *last_check
            && at.elapsed() < age
        {
            return is_short;
        }
        let is_short = self.memory.is_exceeded(self.needs.config.borrow().sync.memory);
        *last_check = Some((Deadline::now(), is_short));
        drop(last_check);
        if is_short {
            self.evict_idle();
        }
        is_short
    }

    /// Has all rooms unload that no session is in.
    pub(crate) fn evict_idle(&self) {
        self.directory().rooms().for_each(|handle| handle.evict());
    }

    /// The store's time in milliseconds since 1970, for an announcement of durable heads. Strictly
    /// rising even if the clock is set back: clients ignore an announcement that is not newer.
    pub(crate) fn announcement_time(&self) -> u64 {
        let now = self.needs.documents.store().now();
        let next = |last: u64| Some(now.max(last + 1));
        let last = self.announced_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        now.max(last.map_or(0, |last| last + 1))
    }

    /// Chooses sessions to ask for `document`, at most `most`: they have one of the `common`
    /// documents open, may write this one, are not excluded by `is_excluded`, and were not asked
    /// for it recently. Marks them as asked.
    pub(crate) fn choose_to_ask(
        &self,
        document: DocumentId,
        common: Vec<DocumentId>,
        requester: Option<SessionId>,
        most: usize,
        is_excluded: impl Fn(SessionId) -> bool,
    ) -> Vec<Arc<Session>> {
        let (mut found, mut seen) = (Vec::new(), HashSet::<SessionId>::from_iter(requester));
        let mut left = SEARCHED;
        for shared in common {
            let members = some_members(&self.directory, shared, left);
            left = left.saturating_sub(1 + members.len());
            for id in members.into_iter().filter(|id| !is_excluded(*id)) {
                if found.len() >= most {
                    return found;
                }
                if seen.insert(id)
                    && let Some(peer) = self.needs.peers.get(id)
                    && peer.may_write(document)
                    && peer.try_mark_asked(document, ASK_AGAIN, ASKED)
                {
                    found.push(peer);
                }
            }
            if left == 0 {
                break;
            }
        }
        found
    }
}

/// Seconds since `start`, for a histogram.
pub(crate) fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
