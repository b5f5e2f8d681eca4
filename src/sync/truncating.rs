//! Truncates messages over `sync.max_message` as they arrive, so that the WebSocket outlives them.
//!
//! tungstenite cannot read on after a message over its limit. [`Truncating`] sits below it, follows the frames of the client
//! (RFC 6455, section 5.2), and passes on only the beginning and the end of such a message, which name its document:
//! automerge-repo writes the document id after the data, samod before. The rest is discarded as it is read.

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
// tokio-tungstenite: what axum itself speaks WebSocket with. axum's own type hides the stream below it.
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};

use crate::base::lock::lock;

/// Bytes kept of the beginning of a truncated message, and of its end: the ids in it have at most 1 KiB each.
const KEPT: usize = 4 << 10;
/// Messages over this multiple of the limit are not truncated: they end the WebSocket.
const MOST: u64 = 4;
/// Bytes that are read from the stream at once.
const READ: usize = 2 << 10;
/// The read buffer of a WebSocket: tungstenite's default of 128 KiB is memory for each idle socket.
const READ_BUFFER: usize = 2 << 10;
/// Frames up to this size together are written at once.
const WRITE_BUFFER: usize = 8 << 10;

/// The server's end of a WebSocket.
pub type Socket = WebSocketStream<Truncating<TokioIo<Upgraded>>>;

/// Returns the WebSocket over an upgraded connection; its messages over `max_message` bytes are truncated.
pub async fn accept(upgraded: Upgraded, max_message: usize) -> Socket {
    let stream = Truncating::new(TokioIo::new(upgraded), max_message as u64);
    // What is passed on of a fragmented message may have the limit's size already, before its end is.
    let most = max_message.saturating_add(2 * KEPT);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(Some(most))
        .max_frame_size(Some(most));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// How a message was truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Truncation {
    /// How many text and binary messages came before it.
    pub(super) message: u64,
    /// Bytes of its beginning that are left. The others that are left are its end.
    pub(super) head: usize,
    /// Bytes missing between the beginning and the end.
    pub(super) missing: u64,
}

/// What was truncated of one WebSocket, for whoever reads its messages.
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

    /// Takes how the message was truncated that came after so many text and binary messages, if it was.
    pub(super) fn take(&self, message: u64) -> Option<Truncation> {
        lock(&self.messages).pop_front_if(|first| first.message == message)
    }
}

/// A data message that has not ended.
#[derive(Default)]
struct Message {
    is_text: bool,
    /// Bytes that its frames declare so far.
    declared: u64,
    /// Bytes of its beginning that are passed on.
    head: u64,
    /// Once it is being truncated: the end of what came of it, unmasked.
    tail: Option<VecDeque<u8>>,
}

/// What is left of a frame's payload.
#[derive(Clone, Copy)]
struct Payload {
    pass: u64,
    discard: u64,
    /// The next byte that is discarded, counted from the first of the payload.
    at: u64,
    key: [u8; 4],
    ends_message: bool,
}

enum State {
    /// Within a header.
    Header,
    Payload(Payload),
    /// The client breaks the protocol: what comes is for tungstenite to refuse.
    Broken,
    /// A message is too large even for truncating it.
    TooLarge,
}

/// Follows the frames of a client. No I/O.
struct Truncator {
    max_message: u64,
    state: State,
    header: Vec<u8>,
    message: Option<Message>,
    /// Text and binary messages that have ended.
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

    /// Takes what was received, and calls `out` with what is to be passed on.
    fn take(&mut self, mut input: &[u8], out: &mut impl FnMut(&[u8])) {
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
                    let tail = self.message.as_mut().and_then(|message| message.tail.as_mut());
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

    /// How many of the next bytes are passed on unseen.
    fn passes(&self) -> u64 {
        match &self.state {
            State::Payload(payload) => payload.pass,
            _ => 0,
        }
    }

    /// So many of them were.
    fn passed(&mut self, bytes: usize, out: &mut impl FnMut(&[u8])) {
        if let State::Payload(payload) = &mut self.state {
            payload.pass = payload.pass.saturating_sub(bytes as u64);
        }
        self.end_frame(out);
    }

    /// Goes on to the next header where nothing is left of a payload.
    fn end_frame(&mut self, out: &mut impl FnMut(&[u8])) {
        if let State::Payload(Payload { pass: 0, discard: 0, ends_message, .. }) = self.state {
            self.state = State::Header;
            if ends_message {
                self.end_message(out);
            }
        }
    }

    /// Returns what comes after a complete header.
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
            return State::Payload(Payload { pass: length, discard: 0, at: 0, key, ends_message });
        }
        let is_text = frame.opcode == TEXT;
        let message = self.message.get_or_insert_with(|| Message { is_text, ..Message::default() });
        message.declared = message.declared.saturating_add(length);
        let is_large = message.declared > self.max_message;
        let most = self.max_message.saturating_mul(MOST);
        if message.declared > most || (is_large && message.is_text) {
            return State::TooLarge;
        }
        let pass = if !is_large {
            out(header);
            length
        } else if message.tail.is_none() {
            message.tail = Some(VecDeque::new());
            let pass = length.min((KEPT as u64).saturating_sub(message.head));
            write_header(frame.opcode, pass, key, out);
            pass
        } else {
            0
        };
        message.head += pass;
        let (discard, ends_message) = (length - pass, frame.is_final);
        State::Payload(Payload { pass, discard, at: pass, key, ends_message })
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
    /// Moves past bytes that are discarded, and notes in `tail` which of them may be the end of the message.
    fn skip(&mut self, bytes: &[u8], tail: Option<&mut VecDeque<u8>>) {
        let skipped = at_most(self.discard.saturating_sub(KEPT as u64), bytes);
        if let Some(tail) = tail {
            let key = self.key.iter().cycle().skip((self.at % 4) as usize);
            let unmasked = bytes.iter().zip(key).map(|(byte, key)| byte ^ key);
            tail.extend(unmasked.skip(skipped));
            tail.drain(..tail.len().saturating_sub(KEPT));
        }
        self.at += bytes.len() as u64;
        self.discard -= bytes.len() as u64;
    }
}

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PONG: u8 = 10;
/// The longest payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// A frame's header.
struct Frame {
    is_final: bool,
    opcode: u8,
    length: u64,
    key: [u8; 4],
}

impl Frame {
    /// Reads a complete header; none where no client may send it.
    fn parse(header: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = header.split_first_chunk()?;
        let (extended, key) = rest.split_last_chunk()?;
        let (is_final, opcode) = (first & FINAL != 0, first & OPCODE);
        let length = if extended.is_empty() {
            u64::from(second & !MASKED)
        } else {
            extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
        };
        let frame = Self { is_final, opcode, length, key: *key };
        let is_allowed = match opcode {
            CONTINUATION..=BINARY => true,
            CLOSE..=PONG => is_final && length <= MAX_CONTROL,
            _ => false,
        };
        (is_allowed && second & MASKED != 0 && first & RESERVED == 0).then_some(frame)
    }
}

/// How long a header is that begins so.
fn header_length(begin: &[u8]) -> usize {
    let Some(second) = begin.get(1) else { return 2 };
    let extended = match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & MASKED == 0 { 0 } else { 4 }
}

/// Writes the header of a masked frame of at most 64 KiB.
fn write_header(first: u8, length: u64, key: [u8; 4], out: &mut impl FnMut(&[u8])) {
    match u8::try_from(length) {
        Ok(length @ 0..=125) => out(&[first, MASKED | length]),
        _ => {
            let [.., high, low] = length.to_be_bytes();
            out(&[first, MASKED | 126, high, low]);
        }
    }
    out(&key);
}

/// How many of these bytes are among the next `most`.
fn at_most(most: u64, bytes: &[u8]) -> usize {
    usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len())
}

/// A stream whose client's messages are truncated.
pub struct Truncating<S> {
    stream: S,
    truncator: Truncator,
    /// What did not fit into the reader's buffer.
    ahead: VecDeque<u8>,
}

impl<S> Truncating<S> {
    fn new(stream: S, max_message: u64) -> Self {
        Self { stream, truncator: Truncator::new(max_message), ahead: VecDeque::new() }
    }

    /// What is truncated of it.
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
            if !this.ahead.is_empty() {
                let (first, _) = this.ahead.as_slices();
                let (fits, _) = first.split_at(first.len().min(buffer.remaining()));
                buffer.put_slice(fits);
                this.ahead.drain(..fits.len());
                break;
            }
            if matches!(this.truncator.state, State::TooLarge) {
                return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
            }
            let passes = this.truncator.passes().min(buffer.remaining() as u64) as usize;
            if passes > 0 {
                let mut read = ReadBuf::new(buffer.initialize_unfilled_to(passes));
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                let bytes = read.filled().len();
                buffer.advance(bytes);
                this.truncator.passed(bytes, &mut |bytes| this.ahead.extend(bytes));
                break;
            }
            let mut space = [MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut space);
            let mut read = read.take(buffer.remaining());
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                break;
            }
            this.truncator.take(read.filled(), &mut |bytes| {
                let (fits, rest) = bytes.split_at(bytes.len().min(buffer.remaining()));
                buffer.put_slice(fits);
                this.ahead.extend(rest);
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
