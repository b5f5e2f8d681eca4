//! Asks rooms and sessions for what an operator wants to see of them.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{
    report::{LiveDocument, Top, TopDocument, TopSession},
    room::{directory::RoomHandle, input::Input},
    rooms::Rooms,
    session::Session,
};
use crate::{base::document_id::DocumentId, observe::usage::Cost};

/// How many rooms and sessions [`Rooms::top`] names.
const TOP: usize = 20;
/// How long a room may take to answer. One that does something long is reported as busy.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

impl Rooms {
    /// What a document's room reports, if there is a room.
    pub async fn inspect(&self, document: DocumentId) -> Option<LiveDocument> {
        let handle = self.shared.directory().room(document)?.clone();
        Some(inspect(&handle).await)
    }

    /// The same as [`Self::top`], and where else these documents are live.
    pub async fn top_everywhere(&self) -> Top {
        let mut top = self.top().await;
        let ids = top.documents.iter().filter_map(|document| document.document.parse().ok());
        let mut places = self.elsewhere(&ids.collect::<Vec<_>>()).await;
        for document in &mut top.documents {
            let id = document.document.parse().ok();
            document.elsewhere = id.and_then(|id| places.remove(&id)).unwrap_or_default();
        }
        top
    }

    /// The rooms and sessions that cost most in the last minute.
    pub async fn top(&self) -> Top {
        let (documents, sessions) = (self.top_documents().await, self.top_sessions());
        Top { documents, sessions }
    }

    async fn top_documents(&self) -> Vec<TopDocument> {
        let handles: Vec<Arc<RoomHandle>> = {
            let directory = self.shared.directory();
            let rooms = directory.rooms().filter(|room| room.document != self.shared.probe);
            rooms.cloned().collect()
        };
        let handles = most_costly(handles, |handle| handle.usage.last_minute());
        let documents = handles.into_iter().map(|(cost, handle)| async move {
            let report = inspect(&handle).await;
            TopDocument {
                document: handle.document.to_string(),
                cost,
                sessions: handle.members.len(),
                bytes: report.bytes,
                changes: report.changes,
                queue: handle.mailbox.waiting(),
                elsewhere: Vec::new(),
            }
        });
        futures::future::join_all(documents).await
    }

    fn top_sessions(&self) -> Vec<TopSession> {
        let sessions = most_costly(self.shared.peers.all(), |session| session.usage.last_minute());
        let directory = self.shared.directory();
        let sessions =
            sessions.into_iter().map(|(cost, session): (Cost, Arc<Session>)| TopSession {
                connection: session.id.to_string(),
                peer: session.peer_id.to_string(),
                client: session.client.shown().map(|address| address.to_string()),
                cost,
                documents: directory.count_of(session.id),
                queue_bytes: session.outbound.unsent(),
            });
        sessions.collect()
    }
}

/// Those with the highest costs, the highest first.
fn most_costly<T>(all: Vec<T>, cost: impl Fn(&T) -> Cost) -> Vec<(Cost, T)> {
    let mut costs: Vec<(Cost, T)> = all.into_iter().map(|one| (cost(&one), one)).collect();
    costs.sort_by(|(one, _), (two, _)| two.seconds.total_cmp(&one.seconds));
    costs.truncate(TOP);
    costs
}

/// What a room reports of itself, if it answers in time.
async fn inspect(handle: &RoomHandle) -> LiveDocument {
    let (reply, answer) = oneshot::channel();
    let asking = async {
        handle.mailbox.send(Box::new(Input::Inspect { reply })).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ANSWERS_WITHIN, asking).await {
        Ok(Some(found)) => found,
        _ => LiveDocument { state: "busy".to_owned(), ..LiveDocument::default() },
    }
}
