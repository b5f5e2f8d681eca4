//! The WebSocket of a session: reading, writing, liveness and closing.

use std::{
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    sync::{Notify, watch},
    time::{Sleep, sleep},
};

use super::{
    outbound::{Closing, Next},
    peers::SessionId,
    session::Session,
    wire,
};
use crate::{
    config::{Config, Size},
    http::activity::Activity,
};

/// How long a close may take: to get the close frame out, and then to hear the peer's.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Silence between the last message and the close frame: automerge-repo's adapter handles messages a little
/// after it has received them, and its handles break when the answer finds the socket closing.
const QUIET: Duration = Duration::from_millis(100);
/// Processor time in which a message may come; a message of 100 MiB takes about three times that.
const READS_FREELY: Duration = Duration::from_millis(20);
/// The same of the join message.
const JOINS_FREELY: Duration = Duration::from_micros(500);
/// After that a socket is left alone so many times as long as it has taken, and one that has not joined longer: there may be
/// many of those.
const READS_SLOWER: u32 = 19;
const JOINS_SLOWER: u32 = 199;
/// What it has taken is put together up to this, so that there are no more pauses than need be.
const TAKEN_TOGETHER: Duration = Duration::from_millis(1);
/// The longest reason of a close frame (RFC 6455, 5.5: 125 bytes with the code).
const MAX_REASON: usize = 123;

pub(super) type Writer = SplitSink<WebSocket, Frame>;
pub(super) type Reader = SplitStream<WebSocket>;
type Read = Result<Frame, axum::Error>;

pub(super) fn closing(code: u16, reason: String, label: &'static str) -> Closing {
    Closing { code, reason, label }
}

/// How fast a socket is read of which no message comes. Pings, and fragments of a message that never ends, cost their
/// sender less than the relay.
pub(super) struct Pace {
    /// Processor time in which the next message may come.
    freely: Duration,
    /// Messages are awaited; they are not any more of a socket that is being closed.
    awaits: bool,
    /// How many times that much it is left alone after more.
    slower: u32,
    /// Processor time since the last message.
    spent: Duration,
    /// What of it has not been paused for.
    owed: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Of a socket that has not joined: all that it has to send is short.
    pub(super) fn of_stranger() -> Self {
        Self {
            freely: JOINS_FREELY,
            awaits: true,
            slower: JOINS_SLOWER,
            spent: Duration::ZERO,
            owed: Duration::ZERO,
            pause: None,
        }
    }

    /// Of one that is being closed.
    fn of_closing() -> Self {
        Self { awaits: false, ..Self::of_stranger() }
    }

    /// Of a session.
    pub(super) fn of_session() -> Self {
        Self { freely: READS_FREELY, slower: READS_SLOWER, ..Self::of_stranger() }
    }

    fn poll(&mut self, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<Option<Read>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let start = Instant::now();
        let polled = reader.poll_next_unpin(cx);
        let took = start.elapsed();
        self.spent += took;
        if self.awaits && matches!(polled, Poll::Ready(Some(Ok(Frame::Binary(_))))) {
            (self.spent, self.owed) = (Duration::ZERO, Duration::ZERO);
        } else if self.spent > self.freely {
            self.owed += took;
            if self.owed >= TAKEN_TOGETHER {
                let rest = std::mem::take(&mut self.owed) * self.slower;
                let pause = self.pause.insert(Box::pin(sleep(rest)));
                if polled.is_pending() && pause.as_mut().poll(cx).is_ready() {
                    self.pause = None;
                }
            }
        }
        polled
    }
}

/// Read one binary frame; `Continue` for pings and the like.
pub(super) async fn read(
    reader: &mut Reader,
    pace: &mut Pace,
    max_message: Size,
) -> Result<ControlFlow<Bytes>, Closing> {
    match poll_fn(|cx| pace.poll(reader, cx)).await {
        Some(Ok(Frame::Binary(frame))) => Ok(ControlFlow::Break(frame)),
        Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => Ok(ControlFlow::Continue(())),
        Some(Ok(Frame::Text(_))) => {
            Err(closing(1003, "text frames are not of this protocol".to_owned(), "text"))
        }
        Some(Ok(Frame::Close(frame))) => {
            let code = frame.map_or(1005, |frame| frame.code);
            Err(closing(code, "closed by the peer".to_owned(), "peer"))
        }
        Some(Err(error)) => {
            let text = error.into_inner().to_string();
            // axum hides tungstenite's error type; its texts are what remains to tell them apart.
            if text.contains("too long") {
                let reason = format!("a message is larger than {max_message} (sync.max_message)");
                Err(closing(1009, reason, "too_large"))
            } else if text.contains("protocol error") && !text.contains("Connection reset") {
                Err(closing(1002, text, "protocol"))
            } else {
                Err(closing(1006, text, "peer"))
            }
        }
        None => Err(closing(1006, "the connection ended".to_owned(), "peer")),
    }
}

/// End the session when nothing moves: silence is pinged, and unanswered until the next ping it is dead. One
/// that sends, but takes nothing of a full queue, is closed as well: it costs memory for nothing.
pub(super) async fn watch_liveness(
    session: &Session,
    activity: &Activity,
    busy: &AtomicBool,
    pings: &Notify,
    config: &watch::Receiver<Arc<Config>>,
) {
    let (mut seen, mut taken) = (activity.moved(), activity.taken());
    let (mut pinged, mut stuck) = (false, false);
    loop {
        let interval = config.borrow().sync.ping_interval.0;
        // Spread by a tenth, so that thousands of sessions do not ping in one beat.
        let spread =
            interval.mul_f64((session.id.0.wrapping_mul(0x9e37_79b9) % 1000) as f64 / 10_000.0);
        tokio::time::sleep(interval + spread).await;
        let moved = activity.moved();
        let takes = std::mem::replace(&mut taken, activity.taken()) != taken;
        let was_stuck = stuck;
        stuck = !takes && session.outbound.full().load(Ordering::Relaxed);
        if was_stuck && stuck {
            let reason = format!(
                "{} bytes wait to be read (sync.send_queue), and none is",
                session.outbound.unsent()
            );
            return session.close(1013, &reason, "send_queue");
        }
        // Nothing is read while a message waits for its document: that silence is ours.
        if moved != seen || busy.load(Ordering::Relaxed) {
            (seen, pinged) = (moved, false);
        } else if pinged {
            return session.close(1006, "the peer does not answer pings", "dead");
        } else {
            pinged = true;
            pings.notify_one();
        }
    }
}

/// Send what is queued, many frames to a flush, until the session is closed or its socket fails.
pub(super) async fn write_all(session: &Session, writer: &mut Writer, pings: &Notify) {
    loop {
        let next = tokio::select! {
            next = session.outbound.next() => next,
            () = pings.notified() => {
                if writer.send(Frame::Ping(Bytes::new())).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let mut next = Some(next);
        while let Some(Next::Send(frame)) = next {
            if writer.feed(Frame::Binary(frame)).await.is_err() {
                return;
            }
            next = session.outbound.try_next();
        }
        if next.is_some() || writer.flush().await.is_err() {
            return;
        }
    }
}

/// Say why, close, and hear the peer's close out: a socket dropped with unread bytes is reset, and the
/// peer may then never read the reason.
pub(super) async fn close(
    writer: &mut Writer,
    reader: &mut Reader,
    us: &str,
    peer_id: &str,
    id: SessionId,
    closing: &Closing,
) {
    let suffix = format!(" (connection {id})");
    let reason = format!("{}{suffix}", shortened(&closing.reason, MAX_REASON - suffix.len()));
    let may_close = !matches!(closing.label, "peer" | "broken" | "dead");
    let say = async {
        if may_close {
            if !matches!(closing.label, "superseded" | "left") {
                let _ = writer.feed(Frame::Binary(wire::error(us, peer_id, &reason))).await;
            }
            if !peer_id.is_empty() {
                let _ = writer.flush().await;
                tokio::time::sleep(QUIET).await;
            }
            let (code, reason) = (closing.code, reason.as_str().into());
            let _ = writer.send(Frame::Close(Some(CloseFrame { code, reason }))).await;
        }
        let _ = writer.close().await;
        if may_close {
            let mut pace = Pace::of_closing();
            while let Some(Ok(_)) = poll_fn(|cx| pace.poll(reader, cx)).await {}
        }
    };
    let _ = tokio::time::timeout(CLOSE_GRACE, say).await;
}

/// The beginning of a text, at most so many bytes of it.
fn shortened(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
