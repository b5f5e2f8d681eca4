//! Builds rooms and sessions with what they share.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    peers::Peers,
    room::{self, native, samod},
    rooms::Rooms,
    session::{
        counts::Counts,
        shared::{Names, Observed, REFUSED_AT_ONCE, Receiving, Sessions},
    },
};
use crate::{
    auth::Auth,
    base::document_id::DocumentId,
    config::{Config, EngineKind},
    limits::{Quotas, turns::Turns},
    observe::{log::Repeats, metrics::Metrics},
    storage::{documents::Documents, relay_message::OtherRelays},
};

/// What sync is built from.
#[expect(missing_docs, reason = "the types say it")]
pub struct Needs<'a> {
    pub config: watch::Receiver<Arc<Config>>,
    pub documents: Arc<Documents>,
    pub others: Option<OtherRelays>,
    pub auth: Arc<Auth>,
    pub repeats: Arc<Repeats>,
    pub storage_id: String,
    pub metrics: &'a Metrics,
}

/// Rooms and sessions.
#[derive(Clone)]
pub struct Sync {
    /// The live documents.
    pub rooms: Arc<Rooms>,
    /// Runs each session.
    pub sessions: Arc<Sessions>,
    /// Tracks sessions until they end.
    pub running: TaskTracker,
    /// What principals may store.
    pub quotas: Arc<Quotas>,
    /// The document that the relay tests itself with.
    pub probe: DocumentId,
    /// Cancelled when a drain begins: from then on no session is opened.
    pub draining: CancellationToken,
}

impl Sync {
    /// Builds them. Nothing runs yet.
    pub fn build(needs: Needs<'_>) -> Self {
        let Needs { config, documents, others, auth, repeats, storage_id, metrics } = needs;
        let now = config.borrow().clone();
        let names =
            Names { peer_id: now.sync.peer_id().into(), storage_id: storage_id.as_str().into() };
        let peers = Arc::new(Peers::default());
        let probe = DocumentId::random();
        let quotas = Arc::new(Quotas::default());
        // More long work at a time than processors only takes more memory at a time.
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let heavy = Arc::new(Turns::new(processors));
        let rooms = Rooms::new(room::shared::Needs {
            config: config.clone(),
            documents: documents.clone(),
            others,
            peers: peers.clone(),
            quotas: quotas.clone(),
            engine: match now.sync.engine {
                EngineKind::Native => native::engine(heavy.clone()),
                EngineKind::Samod => samod::engine(storage_id, heavy.clone(), metrics),
            },
            storage_id: names.storage_id.clone(),
            probe,
            metrics: metrics.clone(),
        });
        let draining = CancellationToken::new();
        let counts = Counts::of_clients(metrics.sessions.clone());
        let sessions = Arc::new(Sessions {
            config,
            rooms: rooms.clone(),
            peers,
            documents,
            auth,
            names,
            receiving: Receiving::new(now.sync.receive_permits(), &counts),
            observed: Observed {
                counts,
                repeats,
                polls: metrics.process.poll_seconds.with_label_values(&["session"]),
            },
            refusing: Semaphore::new(REFUSED_AT_ONCE),
            heavy,
            draining: draining.clone(),
        });
        Self { rooms, sessions, running: TaskTracker::new(), quotas, probe, draining }
    }

    /// The sessions of the relay's own test of itself.
    pub fn for_probe(&self, config: watch::Receiver<Arc<Config>>, auth: Arc<Auth>) -> Self {
        let sessions = Arc::new(self.sessions.for_probe(config, auth));
        Self { sessions, running: TaskTracker::new(), ..self.clone() }
    }
}
