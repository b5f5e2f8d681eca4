//! A client of the protocol with real automerge sync states. It uses the relay's own encoding of
//! messages.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use automerge::{
    Automerge, ChangeHash, ROOT, ReadDoc,
    sync::{Message, State, SyncDoc},
    transaction::Transactable,
};
use futures::{SinkExt, StreamExt};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        self,
        protocol::{WebSocketConfig, frame::coding::CloseCode},
    },
};
use tonk_relay::{
    base::document_id::DocumentId,
    sync::wire::{self, Body},
};

/// The longest time that any operation may take.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    name: String,
    server: String,
    documents: HashMap<DocumentId, (Automerge, State)>,
    is_lost: bool,
}

/// The effect of a message.
pub(crate) enum Event {
    /// A document has changed.
    Changed(DocumentId),
    /// Presence arrived, with this payload.
    Presence(Vec<u8>),
    /// The server reported that a document is unavailable.
    Unavailable(DocumentId),
    Other,
}

pub(crate) fn random_id() -> DocumentId {
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(automerge::ActorId::random().to_bytes()) {
        *to = *from;
    }
    DocumentId::from_bytes(id)
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_micros()).expect("before the year 586,912")
}

/// Writes a number and the current time into a document.
pub(crate) fn put(doc: &mut Automerge, n: u64) {
    let mut edit = doc.transaction();
    edit.put(ROOT, "n", n).expect("an edit");
    edit.put(ROOT, "at", now()).expect("an edit");
    edit.commit();
}

/// Reads one of them.
pub(crate) fn get(doc: &Automerge, key: &str) -> u64 {
    doc.get(ROOT, key).ok().flatten().and_then(|(value, _)| value.as_u64()).unwrap_or(0)
}

/// A text that was typed letter by letter, with a change for each.
pub(crate) fn typed(letters: usize) -> Automerge {
    let mut doc = Automerge::new();
    let mut edit = doc.transaction();
    let text = edit.put_object(ROOT, "text", automerge::ObjType::Text).expect("an edit");
    edit.commit();
    for n in 0..letters {
        let mut edit = doc.transaction();
        // The cursor jumps from time to time.
        let at = if n % 50 == 0 { n / 2 } else { n };
        let letter = char::from(b'a' + (n * 7 % 26) as u8).to_string();
        edit.splice_text(&text, at, 0, &letter).expect("an edit");
        edit.commit();
    }
    doc
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Self {
        loop {
            // The JavaScript server sometimes resets a new connection.
            if let Some(client) = Self::try_connect(url).await {
                return client;
            }
        }
    }

    async fn try_connect(url: &str) -> Option<Self> {
        let config = WebSocketConfig::default()
            .read_buffer_size(8 << 10)
            .write_buffer_size(0)
            .max_message_size(None)
            .max_frame_size(None);
        let (socket, _) =
            connect_async_with_config(url, Some(config), true).await.expect("connects");
        let name = format!("client-{}", random_id());
        let (server, documents) = (String::new(), HashMap::new());
        let mut client = Self { socket, name, server, documents, is_lost: false };
        client.send(wire::join(&client.name)).await;
        let Some(Ok(tungstenite::Message::Binary(frame))) = client.socket.next().await else {
            return None;
        };
        let answer = wire::Message::decode(&frame).expect("a message");
        assert!(matches!(answer.body, Body::Peer), "{answer:?}");
        client.server = answer.sender.expect("a sender").into_owned();
        Some(client)
    }

    async fn send(&mut self, frame: bytes::Bytes) {
        self.is_lost |= self.socket.send(tungstenite::Message::Binary(frame)).await.is_err();
    }

    /// The next frame, unless the connection is lost.
    async fn receive(&mut self) -> Option<bytes::Bytes> {
        while !self.is_lost {
            let next = timeout(TIMEOUT, self.socket.next()).await.expect("something in time");
            match next {
                Some(Ok(tungstenite::Message::Binary(frame))) => return Some(frame),
                // The relay is stopping. The next read answers the close frame and finds the end.
                Some(Ok(tungstenite::Message::Close(Some(frame))))
                    if frame.code == CloseCode::Restart => {}
                Some(Ok(tungstenite::Message::Close(frame))) => {
                    panic!("closed by the server: {frame:?}")
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => self.is_lost = true,
            }
        }
        None
    }

    pub(crate) fn document(&mut self, id: DocumentId) -> &mut Automerge {
        &mut self.documents.entry(id).or_default().0
    }

    /// Sends the next sync message of a document, if there is one.
    pub(crate) async fn push(&mut self, id: DocumentId, request: bool) {
        let (doc, state) = self.documents.entry(id).or_default();
        if let Some(message) = doc.generate_sync_message(state) {
            let frame = wire::sync(request, &self.name, &self.server, id, &message.encode());
            self.send(frame).await;
        }
    }

    /// Adds a document, and waits until the server has it.
    pub(crate) async fn share(&mut self, id: DocumentId, doc: Automerge) {
        self.documents.insert(id, (doc, State::new()));
        self.push(id, false).await;
        while !self.in_sync(id) {
            self.step().await;
        }
    }

    /// Sends chunks of a document with an unknown head, whether or not they are valid.
    pub(crate) async fn send_chunks(&mut self, id: DocumentId, chunks: Vec<u8>) {
        let message = Message {
            heads: vec![ChangeHash([7; 32])],
            need: Vec::new(),
            have: Vec::new(),
            changes: vec![chunks].into(),
            flags: None,
            version: automerge::sync::MessageVersion::V1,
        };
        let frame = wire::sync(false, &self.name, &self.server, id, &message.encode());
        self.send(frame).await;
    }

    /// Requests documents, and waits for all of them.
    pub(crate) async fn fetch(&mut self, ids: &[DocumentId]) {
        for id in ids {
            self.push(*id, true).await;
        }
        for id in ids {
            while self.document(*id).get_heads().is_empty() || !self.in_sync(*id) {
                if let Event::Unavailable(id) = self.step().await {
                    panic!("{id} is unavailable");
                }
            }
        }
    }

    /// Whether the server has reported the same heads as ours.
    pub(crate) fn in_sync(&self, id: DocumentId) -> bool {
        let Some((doc, state)) = self.documents.get(&id) else { return false };
        let mut theirs = state.their_heads.clone().unwrap_or_default();
        theirs.sort();
        theirs == doc.get_heads()
    }

    pub(crate) async fn send_presence(&mut self, id: DocumentId, count: u64, payload: &[u8]) {
        let frame = wire::ephemeral(&self.name, &self.server, id, count, &self.name, payload);
        self.send(frame).await;
    }

    /// The heads that the server last reported, as far as they are known here.
    pub(crate) fn reported_heads(&self, id: DocumentId) -> Vec<ChangeHash> {
        let Some((doc, state)) = self.documents.get(&id) else { return Vec::new() };
        let mut told = state.their_heads.clone().unwrap_or_default();
        told.retain(|head| doc.get_change_meta_by_hash(head).is_some());
        told
    }

    /// Receives a message, applies it and answers it.
    pub(crate) async fn step(&mut self) -> Event {
        self.try_step().await.expect("an open connection")
    }

    /// See [`Self::step`]; returns nothing if the connection is lost.
    pub(crate) async fn try_step(&mut self) -> Option<Event> {
        let frame = self.receive().await?;
        Some(match wire::Message::decode(&frame).expect("a message").body {
            Body::Sync { document, data, .. } => {
                let (doc, state) = self.documents.entry(document).or_default();
                let before = doc.get_heads();
                let message = Message::decode(&data).expect("a sync message");
                doc.receive_sync_message(state, message).expect("applies");
                let changed = doc.get_heads() != before;
                self.push(document, false).await;
                if changed { Event::Changed(document) } else { Event::Other }
            }
            Body::DocUnavailable { document } => Event::Unavailable(document),
            Body::Ephemeral { data, .. } => Event::Presence(data.into_owned()),
            _ => Event::Other,
        })
    }
}
