//! Reading the WebSocket of a session: one message after the other, and what those may cost that do not come to an end.
//!
//! What the WebSocket keeps of a message that is still on its way is in no queue. So it is counted as it comes, for
//! all connections and for one address, until the message is taken in.

use std::{
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::extract::ws::{Message as Frame, WebSocket};
use bytes::Bytes;
use futures::{StreamExt, stream::SplitStream};
use prometheus::IntGauge;
use tokio::{
    sync::watch,
    time::{Sleep, sleep},
};

use crate::{
    base::closing::Closing,
    config::{self, Config},
    limits::ConnectionSlot,
    observe::usage::thread_time,
    sync::activity::Activity,
};

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
/// What counts for looking whether a message is here as a whole.
const AT_ONCE: Duration = Duration::from_micros(2);
/// Bytes of a message that are not counted: most are smaller.
const UNCOUNTED: u64 = 16 << 10;
/// The others are counted in steps.
const STEP: u64 = 64 << 10;
/// One address has so large a part of `sync.arriving`, or one message of the largest size if that is more.
const SHARE: u64 = 4;
/// A control frame's head, with its mask (RFC 6455, 5.2).
const CONTROL_HEAD: u64 = 6;

type Reader = SplitStream<WebSocket>;
type Read = Result<Frame, axum::Error>;

/// What messages that are still on their way hold, all connections together.
#[derive(Debug)]
pub struct Arriving {
    held: AtomicU64,
    shown: IntGauge,
}

impl Arriving {
    /// Nothing yet; `shown` follows.
    pub fn new(shown: IntGauge) -> Self {
        Self { held: AtomicU64::new(0), shown }
    }

    fn take(&self, bytes: u64, most: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= most);
        let is_taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if is_taken {
            self.shown.add(bytes.cast_signed());
        }
        is_taken
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.shown.sub(bytes.cast_signed());
    }
}

/// What comes in over one WebSocket.
pub(super) struct Incoming<'a> {
    reader: Reader,
    pace: Pace,
    arrival: Arrival<'a>,
    config: watch::Receiver<Arc<Config>>,
}

impl<'a> Incoming<'a> {
    /// Of a socket that has not joined, with its place among those of its address.
    pub(super) fn new(
        reader: Reader,
        activity: &'a Activity,
        all: &'a Arriving,
        place: Option<&'a ConnectionSlot>,
        config: watch::Receiver<Arc<Config>>,
    ) -> Self {
        let began = Some(activity.received());
        let arrival = Arrival { activity, all, place, began, held: 0 };
        Self { reader, pace: Pace::of_stranger(), arrival, config }
    }

    /// It has joined.
    pub(super) fn has_joined(&mut self) {
        self.pace = Pace::of_session();
    }

    /// Read one binary frame; `Continue` for pings and the like. The one before it has been taken in.
    ///
    /// # Errors
    /// The socket has ended, or is to be closed for what came.
    pub(super) async fn read(&mut self) -> Result<ControlFlow<Bytes>, Closing> {
        let read = poll_fn(|cx| self.poll(cx)).await?;
        match read {
            Some(Ok(Frame::Binary(frame))) => Ok(ControlFlow::Break(frame)),
            Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => Ok(ControlFlow::Continue(())),
            Some(Ok(Frame::Text(_))) => {
                Err(Closing::new(1003, "text frames are not of this protocol".to_owned(), "text"))
            }
            Some(Ok(Frame::Close(frame))) => {
                let code = frame.map_or(1005, |frame| frame.code);
                Err(Closing::new(code, "closed by the peer".to_owned(), "peer"))
            }
            Some(Err(error)) => {
                let text = error.into_inner().to_string();
                // axum hides tungstenite's error type; its texts are what remains to tell them apart.
                if text.contains("too long") {
                    let max_message = self.config.borrow().sync.max_message;
                    let reason =
                        format!("a message is larger than {max_message} (sync.max_message)");
                    Err(Closing::new(1009, reason, "too_large"))
                } else if text.contains("protocol error") && !text.contains("Connection reset") {
                    Err(Closing::new(1002, text, "protocol"))
                } else {
                    Err(Closing::new(1006, text, "peer"))
                }
            }
            None => Err(Closing::new(1006, "the connection ended".to_owned(), "peer")),
        }
    }

    /// Read on until the peer has closed too; nothing of it counts any more.
    pub(super) async fn read_out(&mut self) {
        self.pace = Pace::of_closing();
        while let Ok(Some(Ok(_))) = poll_fn(|cx| self.poll(cx)).await {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Read>, Closing>> {
        self.arrival.next_one();
        let polled = self.pace.poll(&mut self.reader, cx);
        self.arrival.note(&polled, &self.config.borrow().sync)?;
        polled.map(Ok)
    }
}

/// The message that is on its way over one WebSocket.
struct Arrival<'a> {
    activity: &'a Activity,
    all: &'a Arriving,
    place: Option<&'a ConnectionSlot>,
    /// How many bytes had come before it; none while a message that has come is being taken in.
    began: Option<u64>,
    /// What is counted of it.
    held: u64,
}

impl Arrival<'_> {
    /// The message that had come has been taken in.
    fn next_one(&mut self) {
        if self.began.is_none() {
            self.give_back();
            self.began = Some(self.activity.received());
        }
    }

    /// Count what has come.
    ///
    /// # Errors
    /// There is no memory for it.
    fn note(&mut self, polled: &Poll<Option<Read>>, config: &config::Sync) -> Result<(), Closing> {
        match polled {
            Poll::Ready(Some(Ok(Frame::Binary(_)))) => {
                self.began = None;
                self.activity.set_unfinished(None);
                return Ok(());
            }
            Poll::Ready(Some(Ok(Frame::Ping(data) | Frame::Pong(data)))) => {
                let control = CONTROL_HEAD + data.len() as u64;
                self.began = self.began.map(|began| began + control);
            }
            _ => {}
        }
        let began = self.began.unwrap_or_default();
        let counted = self.activity.received().saturating_sub(began).saturating_sub(UNCOUNTED);
        if counted <= self.held {
            return Ok(());
        }
        self.activity.set_unfinished(Some(began));
        let more = (counted - self.held).next_multiple_of(STEP);
        let most = config.arriving.0;
        let share = (most / SHARE).max(config.max_message.0);
        if let Some(place) = self.place
            && !place.reserve(more, share)
        {
            let reason =
                "messages of this address that are on their way hold its share of sync.arriving";
            return Err(Closing::new(1013, reason.to_owned(), "arriving_of_address"));
        }
        if !self.all.take(more, most) {
            if let Some(place) = self.place {
                place.release(more);
            }
            let reason =
                format!("messages that are on their way hold {} (sync.arriving)", config.arriving);
            return Err(Closing::new(1013, reason, "arriving"));
        }
        self.held += more;
        Ok(())
    }

    fn give_back(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            self.all.give_back(held);
            if let Some(place) = self.place {
                place.release(held);
            }
        }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// How fast a socket is read of which no message comes. Pings, and fragments of a message that never ends, cost their
/// sender less than the relay.
struct Pace {
    /// Processor time in which the next message may come.
    freely: Duration,
    /// Messages are awaited; they are not any more of a socket that is being closed.
    awaits: bool,
    /// How many times that much it is left alone after more.
    slower: u32,
    /// Most messages come as a whole.
    reads_at_once: bool,
    /// Processor time since the last message.
    spent: Duration,
    /// What of it has not been paused for.
    owed: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Of a socket that has not joined: all that it has to send is short.
    fn of_stranger() -> Self {
        Self {
            freely: JOINS_FREELY,
            awaits: true,
            slower: JOINS_SLOWER,
            reads_at_once: false,
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
    fn of_session() -> Self {
        Self {
            freely: READS_FREELY,
            slower: READS_SLOWER,
            reads_at_once: true,
            ..Self::of_stranger()
        }
    }

    fn poll(&mut self, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<Option<Read>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        // Thread time, so that nobody pays for what else the machine does. Reading that clock takes a while: where a message may
        // be here as a whole it is not read, and little is counted instead.
        let began = (!self.reads_at_once || !self.spent.is_zero()).then(thread_time);
        let polled = reader.poll_next_unpin(cx);
        let took = began.map_or(AT_ONCE, |began| thread_time().saturating_sub(began));
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
