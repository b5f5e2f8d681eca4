//! The WebSocket of a session: writing, liveness and closing. [`super::incoming`] reads it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio_tungstenite::tungstenite::{self, Message as Frame, protocol::CloseFrame};

use super::{
    close_reason::CloseReason, incoming::Incoming, outbound::Next, session::Session, wire,
    writer::Writer,
};
use crate::{base::session_id::SessionId, config::Config, sync::activity::Activity};

/// Time limit for a close: to send the close frame, and to receive the peer's.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Silence between the last message and the close frame: automerge-repo's adapter handles messages
/// a little after it has received them, and throws if its answer finds the socket closing.
const QUIET: Duration = Duration::from_millis(100);
/// Number of ping intervals for which a peer may be silent, or too slow, in the middle of a
/// message.
const MIDWAY: u32 = 5;
/// Longest reason of a close frame in bytes (RFC 6455, section 5.5: 125 bytes with the code).
const MAX_REASON: usize = 123;

/// What the reader and the writer of a session are doing.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// A received message waits for its document, and the relay does not read from the socket.
    pub(super) is_busy: AtomicBool,
    /// The socket has not accepted all bytes that are being written.
    is_sending: AtomicBool,
}

/// Waits until the peer has gone or is too slow. Returns the reason to close the session.
///
/// A silent peer is pinged; one that has not answered until the next ping is dead. In the middle of
/// a message it may be silent for longer, because a Node.js client that computes neither reads nor
/// writes. A peer that does not read while its send queue is full, and one that sends a large
/// message too slowly, are closed as well: they only cost memory.
#[expect(clippy::manual_async_fn, reason = "an async fn has space for its arguments twice")]
pub(super) fn watch_liveness(
    session: &Session,
    activity: &Activity,
    progress: &Progress,
    pings: &Notify,
    config: &watch::Receiver<Arc<Config>>,
) -> impl Future<Output = CloseReason> + Send {
    async move {
        let (mut seen, mut taken) = (activity.moved(), activity.taken());
        let (mut silent, mut slow, mut stuck) = (0, 0, false);
        let (mut received, mut unfinished) = (activity.received(), None);
        loop {
            let interval = config.borrow().sync.ping_interval.0;
            // Spread over a tenth of the interval, so that thousands of sessions do not ping at once.
            let spread =
                interval.mul_f64((session.id.0.wrapping_mul(0x9e37_79b9) % 1000) as f64 / 10_000.0);
            tokio::time::sleep(interval + spread).await;
            // Not kept over the pause, which is most of the time.
            let interval = config.borrow().sync.ping_interval.0;
            let moved = activity.moved();
            let reads = std::mem::replace(&mut taken, activity.taken()) != taken;
            let was_stuck = stuck;
            stuck = !reads && session.outbound.full().load(Ordering::Relaxed);
            if was_stuck && stuck {
                let unsent = session.outbound.unsent();
                return CloseReason::SendQueueStalled(unsent);
            }
            // While a message waits for its document the relay does not read, so the peer seems silent.
            let is_busy = progress.is_busy.load(Ordering::Relaxed);
            let was_unfinished = std::mem::replace(&mut unfinished, activity.unfinished());
            let received_now = activity.received();
            let newly_received = received_now - std::mem::replace(&mut received, received_now);
            let min_rate = config.borrow().sync.message_min_rate;
            if unfinished.is_none() || unfinished != was_unfinished {
                slow = 0;
            } else if is_busy || newly_received as f64 >= min_rate.0 as f64 * interval.as_secs_f64()
            {
                slow = u32::saturating_sub(slow, 1);
            } else {
                slow += 1;
            }
            if slow > MIDWAY {
                return CloseReason::SlowMessage(min_rate);
            }
            if moved != seen || is_busy {
                (seen, silent) = (moved, 0);
                continue;
            }
            silent += 1;
            let is_midway = unfinished.is_some() || progress.is_sending.load(Ordering::Relaxed);
            if silent > if is_midway { MIDWAY } else { 1 } {
                return CloseReason::Unresponsive;
            }
            if silent == 1 {
                pings.notify_one();
            }
        }
    }
}

/// Sends the queued frames until the session is closed, and returns why it is. If the socket fails,
/// they are discarded from then on: what the peer had sent before it went is still to be read.
#[expect(clippy::manual_async_fn, reason = "an async fn has space for its arguments twice")]
pub(super) fn write_all(
    session: &Session,
    writer: &mut Writer,
    progress: &Progress,
    pings: &Notify,
) -> impl Future<Output = CloseReason> + Send {
    async move {
        let stuck = async {
            session.outbound.closed().await;
            Box::pin(tokio::time::sleep(CLOSE_GRACE)).await;
        };
        tokio::select! {
            _ = send_all(session, writer, progress, pings) => {}
            () = stuck => {}
        }
        progress.is_sending.store(false, Ordering::Relaxed);
        loop {
            if let Next::Close(reason) = session.outbound.next().await {
                return reason;
            }
        }
    }
}

/// Sends the queued frames, many of them in one flush, until the session is closed.
///
/// # Errors
/// The socket has failed.
#[expect(clippy::manual_async_fn, reason = "an async fn has space for its arguments twice")]
fn send_all(
    session: &Session,
    writer: &mut Writer,
    progress: &Progress,
    pings: &Notify,
) -> impl Future<Output = Result<(), tungstenite::Error>> + Send {
    async move {
        loop {
            let next = tokio::select! {
                next = session.outbound.next() => next,
                () = pings.notified() => {
                    writer.control(Frame::Ping(Bytes::new())).await?;
                    continue;
                }
            };
            progress.is_sending.store(true, Ordering::Relaxed);
            let mut next = Some(next);
            while let Some(Next::Send(message)) = next {
                writer.write(message).await?;
                next = session.outbound.try_next();
            }
            if next.is_some() {
                return Ok(());
            }
            writer.flush().await?;
            progress.is_sending.store(false, Ordering::Relaxed);
        }
    }
}

/// Sends the reason and a close frame, and waits for the peer's close frame: dropping a socket with
/// unread bytes resets it, and the peer might never read the reason.
pub(super) async fn close(
    writer: &mut Writer,
    incoming: &mut Incoming<'_>,
    us: &str,
    peer_id: &str,
    id: SessionId,
    reason: &CloseReason,
) {
    let suffix = format!(" (connection {id})");
    let text = reason.to_string();
    let with_connection = format!("{}{suffix}", shortened(&text, MAX_REASON - suffix.len()));
    let is_here = !reason.is_peer_gone();
    let say = async {
        if is_here {
            let _ = writer.finish().await;
            if !matches!(reason, CloseReason::Superseded | CloseReason::Left) {
                // automerge-repo's own tests compare this text as a whole.
                let is_whole = *reason == CloseReason::UnsupportedVersion;
                let text = if is_whole { &text } else { &with_connection };
                let _ = writer.write(wire::error(us, peer_id, text)).await;
            }
            if !peer_id.is_empty() {
                let _ = writer.flush().await;
                tokio::time::sleep(QUIET).await;
            }
            let (code, reason) = (reason.code().into(), with_connection.as_str().into());
            let _ = writer.control(Frame::Close(Some(CloseFrame { code, reason }))).await;
        }
        let _ = writer.close().await;
        if is_here {
            incoming.drain().await;
        }
    };
    let _ = tokio::time::timeout(CLOSE_GRACE, say).await;
}

/// Returns the beginning of a text, of at most `bytes` bytes.
fn shortened(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
