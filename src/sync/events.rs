//! What happens to a document, for an operator who follows it: who sent what, and whether it was
//! applied or refused and why. Events contain no content.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::session::Session;
use crate::base::{document_id::DocumentId, lock::lock};

/// Events that wait for a follower. One that reads too slowly is told how many it missed.
const WAITING: usize = 1024;
/// How many documents may be followed at a time.
const FOLLOWED: usize = 16;

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, in RFC 3339.
    pub at: String,
    /// The peer id of the session that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer: Option<String>,
    /// The connection of that session, as in the log.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connection: Option<String>,
    /// What it was.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum What {
    /// The document was loaded, or nobody has it and it is looked for.
    Opened { heads: Vec<String> },
    /// The document left memory.
    Unloaded { reason: String },
    /// A session mentioned it for the first time.
    Joined,
    /// A session left.
    Left,
    /// A message was received: "sync", "request" or "ephemeral".
    Received { kind: String, bytes: usize, heads: usize, brings_changes: bool },
    /// Changes of a message were applied. Those that the document had are not counted.
    Applied { new_changes: u64 },
    /// A message was refused, or its session closed for it.
    Refused { reason: String },
    /// A message was sent: "sync", "request", "ephemeral", "doc-unavailable" or
    /// "remote-heads-changed".
    Sent { kind: String, bytes: usize },
    /// The session reads too slowly: what there is to send is kept back.
    KeptBack,
    /// Everything up to these heads is durable.
    Saved { heads: Vec<String> },
    /// The follower was too slow for some events.
    Missed { events: u64 },
}

/// Who follows which document.
#[derive(Default)]
pub struct Followers {
    /// How many documents are followed. Usually none, which makes reporting cheap.
    count: AtomicUsize,
    documents: Mutex<HashMap<DocumentId, broadcast::Sender<Event>>>,
}

/// One follower of a document, until it is dropped.
pub struct Following {
    followers: Arc<Followers>,
    document: DocumentId,
    events: broadcast::Receiver<Event>,
}

impl Followers {
    /// Follows a document. None if too many documents are followed.
    pub fn follow(self: &Arc<Self>, document: DocumentId) -> Option<Following> {
        let mut documents = lock(&self.documents);
        if !documents.contains_key(&document) && documents.len() >= FOLLOWED {
            return None;
        }
        let sender = documents.entry(document).or_insert_with(|| broadcast::channel(WAITING).0);
        let events = sender.subscribe();
        self.count.store(documents.len(), Ordering::Relaxed);
        Some(Following { followers: self.clone(), document, events })
    }

    /// Whether any document is followed.
    pub fn is_any_followed(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Reports what happened, if somebody follows the document.
    pub fn report(
        &self,
        document: DocumentId,
        session: Option<&Session>,
        what: impl FnOnce() -> What,
    ) {
        if !self.is_any_followed() {
            return;
        }
        let documents = lock(&self.documents);
        let Some(events) = documents.get(&document) else { return };
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let peer = session.map(|session| session.peer_id.to_string());
        let connection = session.map(|session| session.id.to_string());
        // It fails while the last follower leaves.
        let _ = events.send(Event { at, peer, connection, what: what() });
    }
}

impl Following {
    /// Waits for the next event.
    pub async fn next(&mut self) -> Option<Event> {
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(events)) => {
                let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
                Some(Event { at, peer: None, connection: None, what: What::Missed { events } })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut documents = lock(&self.followers.documents);
        let alone = |sender: &broadcast::Sender<Event>| sender.receiver_count() <= 1;
        if documents.get(&self.document).is_some_and(alone) {
            documents.remove(&self.document);
        }
        self.followers.count.store(documents.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn followers_get_the_events_of_their_document_and_how_many_they_missed() {
        let followers = Arc::new(Followers::default());
        let document = |n| DocumentId::from_bytes([n; 16]);
        followers.report(document(1), None, || unreachable!("nobody follows"));
        let mut following = followers.follow(document(1)).expect("there is room");
        followers.report(document(2), None, || unreachable!("nobody follows this one"));
        followers.report(document(1), None, || What::Joined);
        assert_eq!(following.next().await.expect("an event").what, What::Joined);
        for _ in 0..WAITING + 3 {
            followers.report(document(1), None, || What::Left);
        }
        let What::Missed { events } = following.next().await.expect("an event").what else {
            panic!("it was too slow");
        };
        assert_eq!(events, 3);
        drop(following);
        followers.report(document(1), None, || unreachable!("nobody follows any more"));
        let all: Vec<_> = (0..FOLLOWED as u8).map(|n| followers.follow(document(n))).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(followers.follow(document(99)).is_none());
        assert!(followers.follow(document(0)).is_some(), "one more of the same");
    }
}
