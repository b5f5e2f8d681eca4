//! Reads the messages of a WebSocket, one after the other, and bounds what unfinished ones may
//! cost.
//!
//! A partially received message is in no queue: the WebSocket holds it. Its bytes are therefore
//! counted as they arrive, for all connections and for its address, until the message was handled.

use std::{
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::SplitStream};
use prometheus::IntGauge;
use tokio::{
    sync::watch,
    time::{Sleep, sleep},
};
use tokio_tungstenite::tungstenite::{self, Message as Frame, error::ProtocolError};

use super::{
    close_reason::CloseReason,
    truncating::{Socket, TooLarge, Truncated, Truncation},
};
use crate::{
    config::{self, Config},
    limits::ConnectionSlot,
    observe::usage::thread_time,
    sync::activity::Activity,
};

/// CPU time for receiving one message without pauses. A message of 100 MiB takes about three times
/// as much.
const FREE_TIME: Duration = Duration::from_millis(20);
/// The same for the join message.
const FREE_TIME_TO_JOIN: Duration = Duration::from_micros(500);
/// Beyond this, reads pause for this multiple of the CPU time used; longer before the handshake,
/// when there may be many such sockets.
const PAUSE_FACTOR: u32 = 19;
const PAUSE_FACTOR_TO_JOIN: u32 = 199;
/// CPU time for which there is one pause together, so that there are few timers.
const PAUSE_AFTER: Duration = Duration::from_millis(1);
/// Bytes of a message that are not counted: most messages are smaller.
const UNCOUNTED: u64 = 16 << 10;
/// Further bytes are counted in steps of this size.
const STEP: u64 = 64 << 10;
/// One address may use this part of `sync.arriving`, or one message of the largest size if that is
/// more.
const ADDRESS_SHARE: u64 = 4;
/// Bytes of a control frame's header with its mask (RFC 6455, section 5.2).
const CONTROL_HEADER: u64 = 6;

pub(super) type Reader = SplitStream<Socket>;
type Read = Result<Frame, tungstenite::Error>;

/// A message that was received.
pub(super) struct Received {
    pub(super) frame: Bytes,
    /// How it was truncated, if it was larger than `sync.max_message`.
    pub(super) truncation: Option<Truncation>,
}

/// Memory of partially received messages, across all connections.
#[derive(Debug)]
pub struct InFlightBudget {
    reserved: AtomicU64,
    gauge: IntGauge,
}

impl InFlightBudget {
    /// An unused budget, whose use `gauge` shows in bytes.
    pub fn new(gauge: IntGauge) -> Self {
        Self { reserved: AtomicU64::new(0), gauge }
    }

    /// Reserves bytes unless that would make more than `limit`. Returns whether it did.
    fn reserve(&self, bytes: u64, limit: u64) -> bool {
        let more = |reserved: u64| reserved.checked_add(bytes).filter(|sum| *sum <= limit);
        let has_room =
            self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if has_room {
            self.gauge.add(bytes.cast_signed());
        }
        has_room
    }

    fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
        self.gauge.sub(bytes.cast_signed());
    }
}

/// The messages that arrive over one WebSocket.
pub(super) struct Incoming<'a> {
    reader: Reader,
    throttle: CpuThrottle,
    in_flight: InFlightMessage<'a>,
    truncated: Arc<Truncated>,
    /// Number of text and binary messages that were read.
    messages: u64,
    config: watch::Receiver<Arc<Config>>,
}

impl<'a> Incoming<'a> {
    /// The messages of a socket that has not joined.
    pub(super) fn new(
        reader: Reader,
        truncated: Arc<Truncated>,
        activity: &'a Activity,
        budget: &'a InFlightBudget,
        slot: Option<&'a ConnectionSlot>,
        config: watch::Receiver<Arc<Config>>,
    ) -> Self {
        let in_flight = InFlightMessage {
            activity,
            truncated: truncated.clone(),
            budget,
            slot,
            start: Some(activity.received()),
            discarded: 0,
            reserved: 0,
        };
        let throttle = CpuThrottle::before_join();
        Self { reader, throttle, in_flight, truncated, messages: 0, config }
    }

    /// The peer has joined: its messages may be larger from now on.
    pub(super) fn set_joined(&mut self) {
        self.throttle = CpuThrottle::of_session();
    }

    /// Reads one binary message, or returns `Continue` for pings and pongs. The message before it
    /// counts as handled.
    ///
    /// # Errors
    /// The socket has ended, or is to be closed because of what arrived.
    pub(super) async fn read(&mut self) -> Result<ControlFlow<Received>, CloseReason> {
        let read = poll_fn(|cx| self.poll(cx)).await?;
        match read {
            Some(Ok(Frame::Binary(frame))) => {
                let truncation = self.truncated.take(self.messages);
                self.messages += 1;
                Ok(ControlFlow::Break(Received { frame, truncation }))
            }
            // tungstenite only returns whole messages, never a single frame.
            Some(Ok(Frame::Ping(_) | Frame::Pong(_) | Frame::Frame(_))) => {
                Ok(ControlFlow::Continue(()))
            }
            Some(Ok(Frame::Text(_))) => Err(CloseReason::TextFrame),
            Some(Ok(Frame::Close(frame))) => {
                let code = frame.map_or(1005, |frame| frame.code.into());
                Err(CloseReason::ClosedByPeer { code })
            }
            Some(Err(error)) => Err(self.read_failed(&error)),
            None => Err(CloseReason::ConnectionLost("the connection ended".to_owned())),
        }
    }

    /// Returns why a session ends whose socket could not be read.
    fn read_failed(&self, error: &tungstenite::Error) -> CloseReason {
        use tungstenite::Error;
        match error {
            Error::Capacity(_) => self.too_large(),
            Error::Io(error) if TooLarge::is_in(error) => self.too_large(),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                CloseReason::ConnectionLost(error.to_string())
            }
            Error::Protocol(_) => CloseReason::WebSocketProtocol(error.to_string()),
            _ => CloseReason::ConnectionLost(error.to_string()),
        }
    }

    /// Returns why a session ends after a message over the limit that names no document.
    pub(super) fn too_large(&self) -> CloseReason {
        CloseReason::TooLarge(self.config.borrow().sync.max_message)
    }

    /// Reads and discards everything until the peer has closed its side as well.
    pub(super) async fn drain(&mut self) {
        self.throttle = CpuThrottle::of_closing();
        while let Ok(Some(Ok(_))) = poll_fn(|cx| self.poll(cx)).await {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Read>, CloseReason>> {
        self.in_flight.begin_next();
        let polled = self.throttle.poll(&mut self.reader, cx);
        self.in_flight.count(&polled, &self.config.borrow().sync)?;
        polled.map(Ok)
    }
}

/// The partially received message of one WebSocket.
struct InFlightMessage<'a> {
    activity: &'a Activity,
    truncated: Arc<Truncated>,
    budget: &'a InFlightBudget,
    slot: Option<&'a ConnectionSlot>,
    /// Bytes that had been received before it; none while the last message is being handled.
    start: Option<u64>,
    /// Bytes that had been discarded before it.
    discarded: u64,
    /// Bytes reserved for it.
    reserved: u64,
}

impl InFlightMessage<'_> {
    /// Releases what the last message had reserved, once it was handled.
    fn begin_next(&mut self) {
        if self.start.is_none() {
            self.release();
            self.start = Some(self.activity.received());
            self.discarded = self.truncated.discarded();
        }
    }

    /// Reserves memory for the bytes that arrived.
    ///
    /// # Errors
    /// The budget of all connections, or of the address, is used up.
    fn count(
        &mut self,
        polled: &Poll<Option<Read>>,
        config: &config::Sync,
    ) -> Result<(), CloseReason> {
        match polled {
            Poll::Ready(Some(Ok(Frame::Binary(_)))) => {
                self.start = None;
                self.activity.set_unfinished(None);
                return Ok(());
            }
            Poll::Ready(Some(Ok(Frame::Ping(data) | Frame::Pong(data)))) => {
                let control = CONTROL_HEADER + data.len() as u64;
                self.start = self.start.map(|start| start + control);
            }
            _ => {}
        }
        let start = self.start.unwrap_or_default();
        let received = self.activity.received().saturating_sub(start);
        if received <= UNCOUNTED {
            return Ok(());
        }
        self.activity.set_unfinished(Some(start));
        // Discarded bytes take no memory.
        let kept = received.saturating_sub(self.truncated.discarded() - self.discarded);
        let counted = kept.saturating_sub(UNCOUNTED);
        if counted <= self.reserved {
            return Ok(());
        }
        let more = (counted - self.reserved).next_multiple_of(STEP);
        let most = config.arriving.0;
        let share = (most / ADDRESS_SHARE).max(config.max_message.0);
        if let Some(slot) = self.slot
            && !slot.reserve(more, share)
        {
            return Err(CloseReason::InFlightOfAddress);
        }
        if !self.budget.reserve(more, most) {
            if let Some(slot) = self.slot {
                slot.release(more);
            }
            return Err(CloseReason::InFlight(config.arriving));
        }
        self.reserved += more;
        Ok(())
    }

    fn release(&mut self) {
        let reserved = std::mem::take(&mut self.reserved);
        if reserved > 0 {
            self.budget.release(reserved);
            if let Some(slot) = self.slot {
                slot.release(reserved);
            }
        }
    }
}

impl Drop for InFlightMessage<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Slows down reading from a socket that sends no complete message: pings, and the fragments of a
/// message that never ends, cost the sender less than the relay.
struct CpuThrottle {
    /// CPU time that the next message may take without pauses.
    free: Duration,
    /// Whether a message earns new free time. Not for a socket that is being closed.
    expects_messages: bool,
    /// Length of a pause, as a multiple of the CPU time that it follows.
    pause_factor: u32,
    /// CPU time since the last message.
    spent: Duration,
    /// CPU time beyond the free time that no pause has followed yet.
    owed: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl CpuThrottle {
    /// For a socket that has not joined: a join message is short.
    fn before_join() -> Self {
        Self {
            free: FREE_TIME_TO_JOIN,
            expects_messages: true,
            pause_factor: PAUSE_FACTOR_TO_JOIN,
            spent: Duration::ZERO,
            owed: Duration::ZERO,
            pause: None,
        }
    }

    /// For a socket that is being closed.
    fn of_closing() -> Self {
        Self { expects_messages: false, ..Self::before_join() }
    }

    /// For a session.
    fn of_session() -> Self {
        Self { free: FREE_TIME, pause_factor: PAUSE_FACTOR, ..Self::before_join() }
    }

    fn poll(&mut self, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<Option<Read>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        // The CPU clock of the thread, so that a busy machine does not slow the innocent down.
        // Reading it is a system call, so the first half of the free time is measured by the wall
        // clock, which shows no less.
        let start = Instant::now();
        let thread_start = (self.spent >= self.free / 2).then(thread_time);
        let polled = reader.poll_next_unpin(cx);
        let took = thread_start
            .map_or_else(|| start.elapsed(), |start| thread_time().saturating_sub(start));
        self.spent += took;
        if self.expects_messages && matches!(polled, Poll::Ready(Some(Ok(Frame::Binary(_))))) {
            (self.spent, self.owed) = (Duration::ZERO, Duration::ZERO);
        } else if self.spent > self.free {
            self.owed += took;
            if self.owed >= PAUSE_AFTER {
                let rest = std::mem::take(&mut self.owed) * self.pause_factor;
                let pause = self.pause.insert(Box::pin(sleep(rest)));
                if polled.is_pending() && pause.as_mut().poll(cx).is_ready() {
                    self.pause = None;
                }
            }
        }
        polled
    }
}
