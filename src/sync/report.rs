//! What an operator sees of live documents and sessions: one document in detail, and those that
//! cost most.

use serde::{Deserialize, Serialize};

use super::session::Session;
use crate::{base::session_id::SessionId, observe::usage::Cost};

/// A live document, as its room sees it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LiveDocument {
    /// "live", "opening", "unknown" (nobody has brought it) or "busy" (the room does not answer in
    /// time).
    pub state: String,
    /// Its heads, as hexadecimal hashes. None if the engine does not report them.
    pub heads: Option<Vec<String>>,
    /// The heads up to which everything is durable.
    pub saved: Option<Vec<String>>,
    /// How many changes it has.
    pub changes: Option<u64>,
    /// Its stored bytes.
    pub bytes: Option<u64>,
    /// The sessions in its room.
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
    /// Its heads of the document, as it last sent them. None if it has not, or if the engine does
    /// not report them.
    pub heads: Option<Vec<String>>,
    /// It has requested the document and was not answered.
    pub waits: bool,
    /// Bytes in its send queue, of all documents.
    pub queue_bytes: usize,
}

/// Another relay that has a document in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveElsewhere {
    /// Its peer id.
    pub relay: String,
    /// The sessions in its room.
    pub sessions: u32,
}

/// What an engine reports of its document.
#[derive(Default)]
pub struct EngineReport {
    /// Its heads.
    pub heads: Option<Vec<automerge::ChangeHash>>,
    /// How many changes it has.
    pub changes: Option<u64>,
    /// Its stored bytes.
    pub bytes: Option<u64>,
    /// The heads of each session, as it last sent them.
    pub theirs: Vec<(SessionId, Vec<automerge::ChangeHash>)>,
}

/// The documents and sessions that cost most.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Top {
    /// The documents that cost most in the last minute.
    pub documents: Vec<TopDocument>,
    /// The sessions that cost most in the last minute.
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
    /// Messages in its mailbox.
    pub queue: usize,
    /// Other relays that have it in memory.
    #[serde(default)]
    pub elsewhere: Vec<LiveElsewhere>,
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
    /// How many rooms it is in.
    pub documents: usize,
    pub queue_bytes: usize,
}

/// Hashes as texts.
pub fn texts(heads: &[automerge::ChangeHash]) -> Vec<String> {
    heads.iter().map(ToString::to_string).collect()
}

impl LiveSession {
    /// What is known of a session without its document.
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
