//! What an operator sees of live documents and sessions: one document as a whole, and those that cost most.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{
    rooms::{Entry, Handle, Input, Rooms},
    session::Session,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    observe::usage::Cost,
};

/// How many rooms and sessions [`Rooms::top`] names.
const TOP: usize = 20;
/// A room that is in the midst of something long is shown without what it would say.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// A live document, as its room sees it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LiveDocument {
    /// "live", "opening", "unknown" (looked for) or "busy" (it does not answer at once).
    pub state: String,
    /// Its heads here, as hexadecimal hashes; none where the engine does not tell.
    pub heads: Option<Vec<String>>,
    /// The heads up to which all is durable.
    pub saved: Option<Vec<String>>,
    /// How many changes it has.
    pub changes: Option<u64>,
    /// Bytes of it that are stored.
    pub bytes: Option<u64>,
    /// The sessions that follow it.
    pub sessions: Vec<LiveSession>,
}

/// A session, as a document's room sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LiveSession {
    /// Its connection, as in the log.
    pub connection: String,
    /// Its peer id.
    pub peer: String,
    /// Its address.
    pub client: Option<String>,
    /// Its heads of the document, as it last said; none where it has not, or the engine does not tell.
    pub heads: Option<Vec<String>>,
    /// It asked for the document and waits.
    pub waits: bool,
    /// Bytes that wait to be read by it, of all documents.
    pub queue_bytes: usize,
}

/// What an engine tells of its document.
#[derive(Default)]
pub struct EngineLook {
    /// Its heads.
    pub heads: Option<Vec<automerge::ChangeHash>>,
    /// How many changes it has.
    pub changes: Option<u64>,
    /// Bytes that are stored.
    pub bytes: Option<u64>,
    /// The heads of each peer, as it last said.
    pub theirs: Vec<(SessionId, Vec<automerge::ChangeHash>)>,
}

/// What costs most.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Top {
    /// The documents that cost most in the last minute.
    pub documents: Vec<TopDocument>,
    /// The sessions that did.
    pub sessions: Vec<TopSession>,
}

/// One of the documents that cost most.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in LiveDocument")]
pub struct TopDocument {
    pub document: String,
    /// In the last minute.
    pub cost: Cost,
    pub sessions: usize,
    pub bytes: Option<u64>,
    pub changes: Option<u64>,
    /// Messages that wait for it.
    pub queue: usize,
}

/// One of the sessions that cost most.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in LiveSession")]
pub struct TopSession {
    pub connection: String,
    pub peer: String,
    pub client: Option<String>,
    /// In the last minute.
    pub cost: Cost,
    /// How many documents it follows.
    pub documents: usize,
    pub queue_bytes: usize,
}

/// Hashes as texts.
pub fn texts(heads: &[automerge::ChangeHash]) -> Vec<String> {
    heads.iter().map(ToString::to_string).collect()
}

impl LiveSession {
    pub(super) fn of(session: &Session, heads: Option<&[automerge::ChangeHash]>) -> Self {
        Self {
            connection: session.id.to_string(),
            peer: session.peer_id.to_string(),
            client: session.client.shown().map(|address| address.to_string()),
            heads: heads.map(texts),
            waits: false,
            queue_bytes: session.outbound.unsent(),
        }
    }
}

impl Handle {
    /// What the room says of itself, if it does so soon.
    async fn look(&self) -> LiveDocument {
        let (reply, answer) = oneshot::channel();
        let looking = async {
            let asked = Box::new(Input::Look { reply });
            self.mailbox.send(asked).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(ANSWERS_WITHIN, looking).await {
            Ok(Some(found)) => found,
            _ => LiveDocument { state: "busy".to_owned(), ..LiveDocument::default() },
        }
    }
}

impl Rooms {
    fn handles(&self) -> Vec<Arc<Handle>> {
        let directory = lock(&self.directory);
        let handles = directory.values().filter_map(|entry| match entry {
            Entry::Live(handle) => Some(handle.clone()),
            Entry::Waiting(_) => None,
        });
        handles.filter(|handle| handle.document != self.shared.probe).collect()
    }

    /// What a document's room says, if it has one.
    pub async fn look(&self, document: DocumentId) -> Option<LiveDocument> {
        let handle = match lock(&self.directory).get(&document)? {
            Entry::Live(handle) => handle.clone(),
            Entry::Waiting(_) => return None,
        };
        Some(handle.look().await)
    }

    /// The rooms and sessions that cost most in the last minute.
    pub async fn top(&self) -> Top {
        let handles = self.handles();
        let mut documents: Vec<(Cost, Arc<Handle>)> =
            handles.into_iter().map(|handle| (handle.usage.last_minute(), handle)).collect();
        documents.sort_by(|(one, _), (two, _)| two.seconds.total_cmp(&one.seconds));
        documents.truncate(TOP);
        let documents = documents.into_iter().map(|(cost, handle)| async move {
            let look = handle.look().await;
            TopDocument {
                document: handle.document.to_string(),
                cost,
                sessions: lock(&handle.members).len(),
                bytes: look.bytes,
                changes: look.changes,
                queue: handle.mailbox.waiting(),
            }
        });
        let documents = futures::future::join_all(documents).await;

        let sessions = self.shared.peers.all();
        let mut sessions: Vec<(Cost, Arc<Session>)> =
            sessions.into_iter().map(|session| (session.usage.last_minute(), session)).collect();
        sessions.sort_by(|(one, _), (two, _)| two.seconds.total_cmp(&one.seconds));
        sessions.truncate(TOP);
        let sessions = sessions.into_iter().map(|(cost, session)| TopSession {
            connection: session.id.to_string(),
            peer: session.peer_id.to_string(),
            client: session.client.shown().map(|address| address.to_string()),
            cost,
            documents: session.documents().len(),
            queue_bytes: session.outbound.unsent(),
        });
        Top { documents, sessions: sessions.collect() }
    }
}
