//! Truncates messages over `sync.max_message` as they arrive, so that the WebSocket survives them.
//!
//! tungstenite cannot continue after a message over its limit. [`Truncating`] sits below it, parses
//! the frames of the client (RFC 6455, section 5.2), and passes on only the beginning and the end
//! of such a message, which name its document: automerge-repo writes the document id after the
//! data, samod before it. The rest is discarded as it is read.
//!
//! `session::route` then refuses the message, for its document alone. A message without a document
//! ends the session, in `session::actor`. So does a text message, or one over [`MAX_TRUNCATED`]
//! times the limit: reading ends, and [`incoming`](super::incoming) gives the reason.

mod frame;

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
// tokio-tungstenite is the library below axum's WebSockets, whose type hides the stream.
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};

use self::frame::{BINARY, CLOSE, CONTINUATION, FINAL, Frame, TEXT, header_length, write_header};
use crate::base::lock::lock;

/// Bytes kept of the beginning and of the end of a truncated message, in which ids take at most 1
/// KiB each.
const KEPT: usize = 4 << 10;
/// Messages over this multiple of the limit are not truncated but end the WebSocket.
const MAX_TRUNCATED: u64 = 4;
/// Bytes that are read from the stream at a time.
const READ_SIZE: usize = 2 << 10;
/// Read buffer of a WebSocket. tungstenite's default of 128 KiB would be memory of each idle
/// socket. Most messages fit, and smaller ones cost large messages more reads.
const READ_BUFFER: usize = 1 << 10;
/// Bytes of small frames that are written together.
const WRITE_BUFFER: usize = 8 << 10;

/// The server's end of a WebSocket.
pub type Socket = WebSocketStream<Truncating<TokioIo<Upgraded>>>;

/// Returns the WebSocket over an upgraded connection. Messages over `max_message` bytes are
/// truncated.
pub async fn accept(upgraded: Upgraded, max_message: usize) -> Socket {
    let stream = Truncating::new(TokioIo::new(upgraded), max_message as u64);
    // The fragments that were passed on may reach the limit before the end of the message is kept.
    let limit = max_message.saturating_add(2 * KEPT);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// A message is over [`MAX_TRUNCATED`] times the limit. tungstenite passes it on as an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("a message is too large to be truncated")]
pub(super) struct TooLarge;

impl TooLarge {
    /// Whether an I/O error is this.
    pub(super) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// How a message was truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Truncation {
    /// Number of text and binary messages before it.
    pub(super) message: u64,
    /// Bytes kept of its beginning. The other bytes that were kept are its end.
    pub(super) head: usize,
    /// Bytes missing between the beginning and the end.
    pub(super) missing: u64,
}

/// The truncated messages of one WebSocket, for the reader of its messages.
#[derive(Debug, Default)]
pub(super) struct Truncated {
    discarded: AtomicU64,
    messages: Mutex<VecDeque<Truncation>>,
}

impl Truncated {
    /// Bytes that were received and discarded.
    pub(super) fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Returns how the message after the first `message` text and binary messages was truncated, or
    /// nothing if it is whole.
    pub(super) fn take(&self, message: u64) -> Option<Truncation> {
        lock(&self.messages).pop_front_if(|first| first.message == message)
    }
}

/// A data message that has not ended.
#[derive(Default)]
struct Message {
    is_text: bool,
    /// Bytes that its frames have declared so far.
    declared: u64,
    /// Bytes of its beginning that were passed on.
    head: u64,
    /// If it is being truncated: the last bytes received, unmasked.
    #[expect(clippy::box_collection, reason = "nearly no socket has it")]
    tail: Option<Box<VecDeque<u8>>>,
}

/// The part of a frame's payload that has not arrived.
#[derive(Clone, Copy)]
struct Payload {
    pass: u64,
    discard: u64,
    /// Position of the next discarded byte in the payload.
    position: u64,
    key: [u8; 4],
    ends_message: bool,
}

enum State {
    /// Within a header.
    Header,
    Payload(Payload),
    /// The client breaks the protocol. Everything is passed on, and tungstenite refuses it.
    Broken,
    /// A message is too large even to be truncated.
    TooLarge,
}

/// Parses the frames of a client. No I/O.
struct Truncator {
    max_message: u64,
    state: State,
    header: Vec<u8>,
    message: Option<Message>,
    /// Number of text and binary messages that have ended.
    ended: u64,
    truncated: Arc<Truncated>,
}

impl Truncator {
    fn new(max_message: u64) -> Self {
        Self {
            max_message,
            state: State::Header,
            header: Vec::new(),
            message: None,
            ended: 0,
            truncated: Arc::default(),
        }
    }

    /// Parses received bytes, and calls `out` with those to pass on.
    fn parse(&mut self, mut input: &[u8], out: &mut impl FnMut(&[u8])) {
        while !input.is_empty() {
            let taken = match &mut self.state {
                State::Header => {
                    let wanted = header_length(&self.header) - self.header.len();
                    let (taken, _) = input.split_at(wanted.min(input.len()));
                    self.header.extend_from_slice(taken);
                    let taken = taken.len();
                    // The second byte says how long the header is.
                    if self.header.len() == header_length(&self.header) {
                        let mut header = std::mem::take(&mut self.header);
                        self.state = self.begin_frame(&header, out);
                        header.clear();
                        self.header = header;
                    }
                    taken
                }
                State::Payload(payload) if payload.pass > 0 => {
                    let (taken, _) = input.split_at(at_most(payload.pass, input));
                    payload.pass -= taken.len() as u64;
                    out(taken);
                    taken.len()
                }
                State::Payload(payload) => {
                    let (taken, _) = input.split_at(at_most(payload.discard, input));
                    let tail =
                        self.message.as_mut().and_then(|message| message.tail.as_deref_mut());
                    payload.skip(taken, tail);
                    self.truncated.discarded.fetch_add(taken.len() as u64, Ordering::Relaxed);
                    taken.len()
                }
                State::Broken => return out(input),
                State::TooLarge => return,
            };
            (_, input) = input.split_at(taken);
            self.end_frame(out);
        }
    }

    /// Number of next bytes that can be passed on without parsing them.
    fn unparsed(&self) -> u64 {
        match &self.state {
            State::Payload(payload) => payload.pass,
            _ => 0,
        }
    }

    /// Records that so many of these bytes were passed on.
    fn passed(&mut self, bytes: usize, out: &mut impl FnMut(&[u8])) {
        if let State::Payload(payload) = &mut self.state {
            payload.pass = payload.pass.saturating_sub(bytes as u64);
        }
        self.end_frame(out);
    }

    /// Expects the next header if the payload is complete.
    fn end_frame(&mut self, out: &mut impl FnMut(&[u8])) {
        if let State::Payload(Payload { pass: 0, discard: 0, ends_message, .. }) = self.state {
            self.state = State::Header;
            if ends_message {
                self.end_message(out);
            }
        }
    }

    /// Returns the state after a complete header.
    fn begin_frame(&mut self, header: &[u8], out: &mut impl FnMut(&[u8])) -> State {
        let is_in_order = |frame: &Frame| match frame.opcode {
            CONTINUATION => self.message.is_some(),
            TEXT | BINARY => self.message.is_none(),
            _ => true,
        };
        let Some(frame) = Frame::parse(header).filter(is_in_order) else {
            out(header);
            return State::Broken;
        };
        let (length, key) = (frame.length, frame.key);
        if frame.opcode >= CLOSE {
            out(header);
            let ends_message = false;
            return State::Payload(Payload {
                pass: length,
                discard: 0,
                position: 0,
                key,
                ends_message,
            });
        }
        let is_text = frame.opcode == TEXT;
        let message = self.message.get_or_insert_with(|| Message { is_text, ..Message::default() });
        message.declared = message.declared.saturating_add(length);
        let is_large = message.declared > self.max_message;
        let most = self.max_message.saturating_mul(MAX_TRUNCATED);
        if message.declared > most || (is_large && message.is_text) {
            return State::TooLarge;
        }
        let pass = if !is_large {
            out(header);
            length
        } else if message.tail.is_none() {
            message.tail = Some(Box::default());
            let pass = length.min((KEPT as u64).saturating_sub(message.head));
            write_header(frame.opcode, pass, key, out);
            pass
        } else {
            0
        };
        message.head += pass;
        let (discard, ends_message) = (length - pass, frame.is_final);
        State::Payload(Payload { pass, discard, position: pass, key, ends_message })
    }

    fn end_message(&mut self, out: &mut impl FnMut(&[u8])) {
        let message = self.message.take().unwrap_or_default();
        if let Some(mut tail) = message.tail {
            let tail = tail.make_contiguous();
            // A key of zeros leaves the payload as it is.
            write_header(FINAL | CONTINUATION, tail.len() as u64, [0; 4], out);
            out(tail);
            let head = usize::try_from(message.head).unwrap_or(usize::MAX);
            let missing = message.declared - message.head - tail.len() as u64;
            lock(&self.truncated.messages).push_back(Truncation {
                message: self.ended,
                head,
                missing,
            });
        }
        self.ended += 1;
    }
}

impl Payload {
    /// Skips discarded bytes, and keeps in `tail` those that may be the end of the message.
    fn skip(&mut self, bytes: &[u8], tail: Option<&mut VecDeque<u8>>) {
        let skipped = at_most(self.discard.saturating_sub(KEPT as u64), bytes);
        if let Some(tail) = tail {
            let key = self.key.iter().cycle().skip((self.position % 4) as usize);
            let unmasked = bytes.iter().zip(key).map(|(byte, key)| byte ^ key);
            tail.extend(unmasked.skip(skipped));
            tail.drain(..tail.len().saturating_sub(KEPT));
        }
        self.position += bytes.len() as u64;
        self.discard -= bytes.len() as u64;
    }
}

/// Returns the length of `bytes`, or `most` if that is less.
fn at_most(most: u64, bytes: &[u8]) -> usize {
    usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len())
}

/// A stream that truncates the client's messages.
pub struct Truncating<S> {
    stream: S,
    truncator: Truncator,
    /// Bytes to pass on that did not fit into the reader's buffer.
    overflow: VecDeque<u8>,
}

impl<S> Truncating<S> {
    fn new(stream: S, max_message: u64) -> Self {
        Self { stream, truncator: Truncator::new(max_message), overflow: VecDeque::new() }
    }

    /// The messages that were truncated.
    pub(super) fn truncated(&self) -> Arc<Truncated> {
        self.truncator.truncated.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Truncating<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        while buffer.filled().len() == before {
            if !this.overflow.is_empty() {
                let (first, _) = this.overflow.as_slices();
                let (fits, _) = first.split_at(first.len().min(buffer.remaining()));
                buffer.put_slice(fits);
                this.overflow.drain(..fits.len());
                break;
            }
            if matches!(this.truncator.state, State::TooLarge) {
                return Poll::Ready(Err(io::Error::other(TooLarge)));
            }
            let passes = this.truncator.unparsed().min(buffer.remaining() as u64) as usize;
            if passes > 0 {
                let mut read = ReadBuf::new(buffer.initialize_unfilled_to(passes));
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                let bytes = read.filled().len();
                buffer.advance(bytes);
                this.truncator.passed(bytes, &mut |bytes| this.overflow.extend(bytes));
                break;
            }
            let mut space = [MaybeUninit::uninit(); READ_SIZE];
            let mut read = ReadBuf::uninit(&mut space);
            let mut read = read.take(buffer.remaining());
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                break;
            }
            this.truncator.parse(read.filled(), &mut |bytes| {
                let (fits, rest) = bytes.split_at(bytes.len().min(buffer.remaining()));
                buffer.put_slice(fits);
                this.overflow.extend(rest);
            });
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Truncating<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
