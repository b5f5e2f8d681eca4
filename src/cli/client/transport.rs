//! How samod reaches the server: over a WebSocket, whose frames pass through here. samod does not
//! report with which code the server closes, what its `error` messages say, who sent presence, and
//! what the server's storage has.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use automerge::ChangeHash;
use bytes::Bytes;
use futures::{FutureExt, Sink, SinkExt, StreamExt, future::BoxFuture, stream};
use minicbor::Decoder;
use samod::{DialError, Dialer, Transport, Url, runtime::RuntimeHandle};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use super::{
    cbor::{field, text},
    durable_heads,
    presence::goodbye,
};
use crate::{
    base::{document_id::DocumentId, lock::lock},
    cli::{
        connect::{error::ConnectError, target::Target},
        output::printable,
    },
    sync::wire::{self, Body, Message},
};

/// Characters of a server's name that are shown.
const MAX_NAME: usize = 64;
/// Characters of a server's reason that are shown.
const MAX_REASON: usize = 256;
/// Close code of a close frame without a code (RFC 6455, 7.1.5).
const NO_CODE: u16 = 1005;

/// samod's tasks run on tokio.
#[derive(Clone)]
pub(super) struct Tokio;

impl RuntimeHandle for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn sleep(&self, duration: std::time::Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }
}

/// Something that samod does not report.
#[derive(Debug)]
pub(super) enum Notice {
    /// There is a WebSocket.
    Opened,
    /// The handshake is complete. The server has a peer id, and may have a storage id.
    Joined {
        server: String,
        has_storage: bool,
    },
    /// The server's `error` message.
    Error(String),
    Closed {
        code: u16,
        reason: String,
    },
    /// The connection ended without a close frame.
    Lost(String),
    Ephemeral {
        sender: String,
        data: Vec<u8>,
    },
    /// The heads of the document that the server's storage has.
    DurableHeads(Vec<ChangeHash>),
}

/// The way to the server.
pub(super) struct Server {
    pub(super) target: Arc<Target>,
    pub(super) url: Url,
    pub(super) tap: Tap,
}

impl Dialer for Server {
    type Error = ConnectError;

    fn url(&self) -> Url {
        self.url.clone()
    }

    fn connect(&self) -> BoxFuture<'static, Result<Transport, DialError<ConnectError>>> {
        let (target, tap) = (self.target.clone(), self.tap.clone());
        async move {
            let socket = target.open(&|_| ()).await.map_err(|error| {
                if tap.has_joined.load(Ordering::Relaxed) {
                    DialError::transient(error)
                } else {
                    DialError::PermanentFailure(error)
                }
            })?;
            let (sink, stream) = socket.split();
            lock(&tap.pending).take();
            tap.notify(Notice::Opened).await;
            let receiving = tap.clone();
            let stream = stream.filter_map(move |frame| {
                let tap = receiving.clone();
                async move { tap.received(frame).await }
            });
            let said_goodbye = tap.said_goodbye.clone();
            let sink = Box::pin(sink.with_flat_map(move |message| tap.sending(message)));
            let sink = NoticeGoodbye { sink, said_goodbye, is_saying_it: false };
            Ok(Transport::new(stream.boxed(), Box::pin(sink)))
        }
        .boxed()
    }
}

/// A sink that notices when the presence message "goodbye" has left for the network.
struct NoticeGoodbye<S> {
    sink: Pin<Box<S>>,
    said_goodbye: watch::Sender<bool>,
    /// The message is in the sink, which has not been flushed since.
    is_saying_it: bool,
}

impl<S: Sink<Vec<u8>>> Sink<Vec<u8>> for NoticeGoodbye<S> {
    type Error = S::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.sink.as_mut().poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Vec<u8>) -> Result<(), S::Error> {
        let body = Message::decode(&message).map(|message| message.body);
        self.is_saying_it |= matches!(body, Ok(Body::Ephemeral { data, .. }) if *data == goodbye());
        self.sink.as_mut().start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready!(self.sink.as_mut().poll_flush(cx))?;
        if self.is_saying_it {
            self.said_goodbye.send_replace(true);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.sink.as_mut().poll_close(cx)
    }
}

/// Reads the frames of the connection, and sends notices about them.
#[derive(Clone)]
pub(super) struct Tap {
    document: DocumentId,
    /// Peer id of this client.
    peer: Arc<str>,
    notices: mpsc::Sender<Notice>,
    /// Whether a handshake was complete. A first attempt that fails is not repeated.
    has_joined: Arc<AtomicBool>,
    /// The server's storage id, once it is known.
    storage_id: Arc<Mutex<Option<String>>>,
    /// A message that is sent before samod's next one.
    pending: Arc<Mutex<Option<Bytes>>>,
    said_goodbye: watch::Sender<bool>,
}

impl Tap {
    pub(super) fn new(document: DocumentId, peer: &str, notices: mpsc::Sender<Notice>) -> Self {
        Self {
            document,
            peer: peer.into(),
            notices,
            has_joined: Arc::default(),
            storage_id: Arc::default(),
            pending: Arc::default(),
            said_goodbye: watch::channel(false).0,
        }
    }

    /// Whether the presence message "goodbye" was sent.
    pub(super) fn said_goodbye(&self) -> watch::Receiver<bool> {
        self.said_goodbye.subscribe()
    }

    /// The message in a frame that samod gets.
    async fn received(
        &self,
        frame: Result<Frame, tungstenite::Error>,
    ) -> Option<Result<Vec<u8>, tungstenite::Error>> {
        match frame {
            Ok(Frame::Binary(data)) => self.inspect(&data).await.then(|| Ok(data.to_vec())),
            Ok(Frame::Close(frame)) => {
                let (code, reason) = frame.map_or((NO_CODE, String::new()), |frame| {
                    (frame.code.into(), printable(&frame.reason, MAX_REASON))
                });
                self.notify(Notice::Closed { code, reason }).await;
                None
            }
            Ok(_) => None,
            Err(error) => {
                self.notify(Notice::Lost(error.to_string())).await;
                Some(Err(error))
            }
        }
    }

    /// Sends a notice about a message. Returns whether samod gets the message: after an `error`
    /// samod would end the connection before the close code arrives.
    async fn inspect(&self, data: &[u8]) -> bool {
        let Ok(message) = Message::decode(data) else { return true };
        match message.body {
            Body::Peer => {
                let metadata = field(&Decoder::new(data), "peerMetadata").ok().flatten();
                let storage_id = metadata.and_then(|metadata| text(&metadata, "storageId"));
                let server = message.sender.unwrap_or_default();
                *lock(&self.pending) =
                    storage_id.map(|storage_id| wire::subscribe(&self.peer, &server, storage_id));
                *lock(&self.storage_id) = storage_id.map(str::to_owned);
                self.has_joined.store(true, Ordering::Relaxed);
                let server = printable(&server, MAX_NAME);
                self.notify(Notice::Joined { server, has_storage: storage_id.is_some() }).await;
            }
            Body::Error { message } => {
                self.notify(Notice::Error(printable(&message, MAX_REASON))).await;
                return false;
            }
            Body::Ephemeral { document, data, .. } if document == self.document => {
                let sender = message.sender.unwrap_or_default().into_owned();
                self.notify(Notice::Ephemeral { sender, data: data.into_owned() }).await;
            }
            Body::RemoteHeadsChanged => {
                let storage_id = lock(&self.storage_id).clone().unwrap_or_default();
                if let Some(heads) = durable_heads::decode(data, self.document, &storage_id) {
                    self.notify(Notice::DurableHeads(heads)).await;
                }
            }
            _ => {}
        }
        true
    }

    async fn notify(&self, notice: Notice) {
        // Without a receiver the client is ending.
        let _ = self.notices.send(notice).await;
    }

    /// The frames to send for a message of samod's.
    fn sending(
        &self,
        message: Vec<u8>,
    ) -> stream::Iter<std::vec::IntoIter<Result<Frame, tungstenite::Error>>> {
        let before = lock(&self.pending).take();
        let frames = before.into_iter().chain([message.into()]);
        stream::iter(frames.map(|frame| Ok(Frame::Binary(frame))).collect::<Vec<_>>())
    }
}
