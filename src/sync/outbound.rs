//! The outbound queue of a session, bounded in bytes.
//!
//! Rooms put frames in without waiting; the session's writer takes them out. A frame of any size fits
//! into an empty queue; what goes beyond the limit costs presence first, and then the session.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Frames that wait to be sent.
pub struct Outbound {
    limit: usize,
    queue: Mutex<Queue>,
    ready: Notify,
    closed: CancellationToken,
    unsent: IntGauge,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    closing: Option<Closing>,
}

#[derive(Debug)]
struct Frame {
    data: Bytes,
    /// May be dropped: the next one says it anew.
    presence: bool,
}

/// What to do with a session's socket: an `error` message, then a close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// The WebSocket close code.
    pub code: u16,
    /// Why, for the peer's eyes.
    pub reason: String,
    /// The reason's label in metrics.
    pub label: &'static str,
}

/// What the writer is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this frame.
    Send(Bytes),
    /// Close the socket.
    Close(Closing),
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// It waits to be sent.
    Queued,
    /// It was presence, and there was no room for it.
    Dropped,
    /// There was no room for it: the session is being closed.
    Overflow,
    /// The session was being closed already.
    Closed,
}

impl Outbound {
    /// A queue of at most `limit` bytes; `unsent` counts the bytes of all queues.
    pub fn new(limit: usize, unsent: IntGauge) -> Self {
        Self {
            limit,
            queue: Mutex::default(),
            ready: Notify::new(),
            closed: CancellationToken::new(),
            unsent,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Put a frame in.
    pub fn push(&self, data: Bytes) -> Push {
        self.push_frame(Frame { data, presence: false })
    }

    /// Put a frame in that may be dropped.
    pub fn push_presence(&self, data: Bytes) -> Push {
        self.push_frame(Frame { data, presence: true })
    }

    fn push_frame(&self, frame: Frame) -> Push {
        let mut queue = self.queue();
        let size = frame.data.len();
        if queue.closing.is_some() {
            return Push::Closed;
        }
        let fits = |queue: &Queue| queue.bytes == 0 || queue.bytes + size <= self.limit;
        if !fits(&queue) && !frame.presence {
            self.drop_presence(&mut queue);
        }
        if !fits(&queue) {
            if frame.presence {
                return Push::Dropped;
            }
            let reason =
                format!("more than {} bytes (sync.send_queue) wait to be read", self.limit);
            self.close_queue(&mut queue, Closing { code: 1013, reason, label: "send_queue" });
            drop(queue);
            self.ready.notify_one();
            return Push::Overflow;
        }
        queue.bytes += size;
        self.unsent.add(size as i64);
        queue.frames.push_back(frame);
        drop(queue);
        self.ready.notify_one();
        Push::Queued
    }

    fn drop_presence(&self, queue: &mut Queue) {
        let before = queue.bytes;
        queue.frames.retain(|frame| !frame.presence);
        queue.bytes = queue.frames.iter().map(|frame| frame.data.len()).sum();
        self.unsent.sub((before - queue.bytes) as i64);
    }

    fn close_queue(&self, queue: &mut Queue, closing: Closing) {
        self.unsent.sub(queue.bytes as i64);
        queue.frames = VecDeque::new();
        queue.bytes = 0;
        queue.closing = Some(closing);
        self.closed.cancel();
    }

    /// Close the session: what waits is dropped, and the first reason stays.
    pub fn close(&self, closing: Closing) {
        let mut queue = self.queue();
        if queue.closing.is_none() {
            self.close_queue(&mut queue, closing);
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// Wait for what the writer is to do next.
    pub async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.ready.notified().await;
        }
    }

    /// What the writer is to do next, if there is anything.
    pub fn try_next(&self) -> Option<Next> {
        let mut queue = self.queue();
        if let Some(closing) = &queue.closing {
            return Some(Next::Close(closing.clone()));
        }
        let frame = queue.frames.pop_front()?;
        queue.bytes -= frame.data.len();
        self.unsent.sub(frame.data.len() as i64);
        Some(Next::Send(frame.data))
    }

    /// Wait until the session is to be closed, whether or not its writer is stuck.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Why the session is being closed, if it is.
    pub fn closing(&self) -> Option<Closing> {
        self.queue().closing.clone()
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        let bytes = self.queue().bytes;
        self.unsent.sub(bytes as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbound(limit: usize) -> (Outbound, IntGauge) {
        let unsent = IntGauge::new("unsent", "unsent").expect("a metric");
        (Outbound::new(limit, unsent.clone()), unsent)
    }

    fn frame(size: usize) -> Bytes {
        vec![0; size].into()
    }

    #[test]
    fn a_frame_of_any_size_fits_into_an_empty_queue() {
        let (outbound, unsent) = outbound(10);
        assert_eq!(outbound.push(frame(1000)), Push::Queued);
        assert_eq!(unsent.get(), 1000);
        assert_eq!(outbound.push(frame(1)), Push::Overflow);
        assert!(matches!(outbound.try_next(), Some(Next::Close(Closing { code: 1013, .. }))));
        assert_eq!(unsent.get(), 0);
        assert_eq!(outbound.push(frame(1)), Push::Closed);
    }

    #[test]
    fn presence_goes_before_the_session_does() {
        let (outbound, unsent) = outbound(10);
        assert_eq!(outbound.push(frame(4)), Push::Queued);
        assert_eq!(outbound.push_presence(frame(6)), Push::Queued);
        assert_eq!(outbound.push_presence(frame(1)), Push::Dropped);
        assert_eq!(outbound.push(frame(5)), Push::Queued, "the presence made room");
        assert_eq!(unsent.get(), 9);
        assert_eq!(outbound.try_next(), Some(Next::Send(frame(4))));
        assert_eq!(outbound.try_next(), Some(Next::Send(frame(5))));
        assert_eq!(outbound.try_next(), None);
        assert_eq!(unsent.get(), 0);
    }

    #[tokio::test]
    async fn the_first_reason_to_close_stays() {
        let (outbound, _) = outbound(10);
        let closing = |code| Closing { code, reason: String::new(), label: "x" };
        outbound.close(closing(1012));
        outbound.close(closing(1013));
        assert_eq!(outbound.next().await, Next::Close(closing(1012)));
    }
}
