//! The outbound queue of a session, bounded in bytes.
//!
//! Rooms append frames without waiting; the session's writer sends them. While the queue is full,
//! rooms send nothing to the session, and afterwards everything that it missed in one message
//! ([`Outbound::notify_when_room`]). Frames that cannot wait replace queued presence, and if that
//! is not enough the session is closed. A frame of any size fits into an empty queue.
//!
//! A session whose queue stays full while it reads nothing is closed by `socket::watch_liveness`.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::close_reason::CloseReason;
use crate::base::lock::lock;

/// An empty queue keeps memory for at most this many frames.
const KEPT: usize = 16;

/// Frames that wait to be sent.
pub struct Outbound {
    limit: usize,
    queue: Mutex<Queue>,
    ready: Notify,
    full: Arc<AtomicBool>,
    closed: CancellationToken,
    unsent: IntGauge,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Bytes of the urgent frames among them.
    urgent: usize,
    close_reason: Option<CloseReason>,
    /// The rooms to notify when there is room again.
    waiting: Vec<Arc<Notify>>,
}

#[derive(Debug)]
struct Frame {
    data: Bytes,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The queue had room when the room began to make it.
    Granted,
    /// May be dropped: the next message of its author replaces it.
    Presence,
    /// Can neither wait nor be dropped.
    Urgent,
}

/// What the writer does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this frame.
    Send(Bytes),
    /// Close the socket.
    Close(CloseReason),
}

/// What happened to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// It is in the queue.
    Queued,
    /// It was presence, and the queue was full.
    Dropped,
    /// The queue was full, so the session is now being closed.
    Overflow,
    /// The session was being closed already.
    Closed,
}

impl Outbound {
    /// A queue of at most `limit` bytes. `unsent` shows the bytes of all queues.
    pub fn new(limit: usize, unsent: IntGauge) -> Self {
        Self {
            limit,
            queue: Mutex::default(),
            ready: Notify::new(),
            full: Arc::default(),
            closed: CancellationToken::new(),
            unsent,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Appends a frame that cannot wait. Granted frames do not count against its limit.
    pub fn push(&self, data: Bytes) -> Push {
        let mut queue = self.queue();
        if queue.close_reason.is_some() {
            return Push::Closed;
        }
        let fits = |bytes: usize| bytes == 0 || bytes + data.len() <= self.limit;
        if !fits(queue.bytes) {
            self.drop_presence(&mut queue);
        }
        if !fits(queue.urgent) {
            self.close_queue(&mut queue, CloseReason::SendQueueFull(self.limit));
            drop(queue);
            self.ready.notify_one();
            return Push::Overflow;
        }
        self.append(&mut queue, Frame { data, kind: Kind::Urgent });
        drop(queue);
        self.ready.notify_one();
        Push::Queued
    }

    /// Appends a frame that may be dropped. It holds `size` bytes of data, and is made only if there
    /// is room for these.
    pub fn push_presence(&self, size: usize, make: impl FnOnce() -> Bytes) -> Push {
        let mut queue = self.queue();
        if queue.close_reason.is_some() {
            return Push::Closed;
        }
        if queue.bytes > 0 && queue.bytes + size > self.limit {
            return Push::Dropped;
        }
        self.append(&mut queue, Frame { data: make(), kind: Kind::Presence });
        drop(queue);
        self.ready.notify_one();
        Push::Queued
    }

    /// Appends a frame whose sender has checked [`Self::full`] before it made the frame.
    pub fn push_granted(&self, data: Bytes) -> Push {
        let mut queue = self.queue();
        if queue.close_reason.is_some() {
            return Push::Closed;
        }
        self.append(&mut queue, Frame { data, kind: Kind::Granted });
        drop(queue);
        self.ready.notify_one();
        Push::Queued
    }

    /// Whether the queue is full, so that rooms must wait.
    pub fn full(&self) -> &Arc<AtomicBool> {
        &self.full
    }

    /// Notifies `room` once the queue has room again, which may be now.
    pub fn notify_when_room(&self, room: &Arc<Notify>) {
        let mut queue = self.queue();
        if !self.full.load(Ordering::Relaxed) {
            room.notify_one();
        } else if !queue.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, room)) {
            queue.waiting.push(room.clone());
        }
    }

    /// Bytes that wait to be sent.
    pub fn unsent(&self) -> usize {
        self.queue().bytes
    }

    fn append(&self, queue: &mut Queue, frame: Frame) {
        let size = frame.data.len();
        queue.bytes += size;
        queue.urgent += if frame.kind == Kind::Urgent { size } else { 0 };
        self.unsent.add(size as i64);
        if queue.frames.capacity() == 0 {
            // Most sockets never have two frames waiting.
            queue.frames.reserve_exact(1);
        }
        queue.frames.push_back(frame);
        self.update_full(queue);
    }

    /// The queue is full at its limit and has room again at half of it, so that waiting rooms are
    /// not woken for each frame.
    fn update_full(&self, queue: &mut Queue) {
        if queue.bytes >= self.limit {
            self.full.store(true, Ordering::Relaxed);
        } else if queue.bytes <= self.limit / 2 && self.full.swap(false, Ordering::Relaxed) {
            queue.waiting.drain(..).for_each(|room| room.notify_one());
        }
    }

    fn drop_presence(&self, queue: &mut Queue) {
        let before = queue.bytes;
        queue.frames.retain(|frame| frame.kind != Kind::Presence);
        queue.bytes = queue.frames.iter().map(|frame| frame.data.len()).sum();
        self.unsent.sub((before - queue.bytes) as i64);
        self.update_full(queue);
    }

    fn close_queue(&self, queue: &mut Queue, reason: CloseReason) {
        self.unsent.sub(queue.bytes as i64);
        queue.frames = VecDeque::new();
        (queue.bytes, queue.urgent) = (0, 0);
        self.update_full(queue);
        queue.close_reason = Some(reason);
        self.closed.cancel();
    }

    /// Closes the session and drops its queued frames. Returns why it is closed: if it is being
    /// closed already, the first reason stays.
    pub fn close(&self, reason: CloseReason) -> CloseReason {
        let mut queue = self.queue();
        let reason = match &queue.close_reason {
            Some(first) => first.clone(),
            None => {
                self.close_queue(&mut queue, reason.clone());
                reason
            }
        };
        drop(queue);
        self.ready.notify_one();
        reason
    }

    /// Waits for what the writer does next.
    pub async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.ready.notified().await;
        }
    }

    /// Returns what the writer does next, if there is anything to do.
    pub fn try_next(&self) -> Option<Next> {
        let mut queue = self.queue();
        if let Some(reason) = &queue.close_reason {
            return Some(Next::Close(reason.clone()));
        }
        let frame = queue.frames.pop_front()?;
        if queue.frames.is_empty() && queue.frames.capacity() > KEPT {
            queue.frames = VecDeque::new();
        }
        queue.bytes -= frame.data.len();
        queue.urgent -= if frame.kind == Kind::Urgent { frame.data.len() } else { 0 };
        self.unsent.sub(frame.data.len() as i64);
        self.update_full(&mut queue);
        Some(Next::Send(frame.data))
    }

    /// Waits until the session is to be closed, whether or not its writer is stuck.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether the session is being closed.
    pub fn is_closing(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Why the session is being closed, if it is.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.queue().close_reason.clone()
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
        assert!(matches!(outbound.try_next(), Some(Next::Close(CloseReason::SendQueueFull(_)))));
        assert_eq!(unsent.get(), 0);
        assert_eq!(outbound.push(frame(1)), Push::Closed);
    }

    #[test]
    fn an_emptied_queue_keeps_little_memory() {
        let (outbound, _) = outbound(1000);
        for _ in 0..200 {
            assert_eq!(outbound.push_granted(frame(1)), Push::Queued);
        }
        while outbound.try_next().is_some() {}
        assert!(outbound.queue().frames.capacity() <= KEPT);
    }

    #[test]
    fn queued_presence_is_dropped_before_the_session_is_closed() {
        let (outbound, unsent) = outbound(10);
        assert_eq!(outbound.push(frame(4)), Push::Queued);
        assert_eq!(outbound.push_presence(6, || frame(6)), Push::Queued);
        assert_eq!(outbound.push_presence(1, || frame(1)), Push::Dropped);
        assert_eq!(outbound.push(frame(5)), Push::Queued, "the presence made room");
        assert_eq!(unsent.get(), 9);
        assert_eq!(outbound.try_next(), Some(Next::Send(frame(4))));
        assert_eq!(outbound.try_next(), Some(Next::Send(frame(5))));
        assert_eq!(outbound.try_next(), None);
        assert_eq!(unsent.get(), 0);
    }

    #[test]
    fn a_queued_large_document_leaves_room_for_urgent_frames() {
        let (outbound, unsent) = outbound(10);
        assert_eq!(outbound.push_granted(frame(1000)), Push::Queued);
        assert_eq!(outbound.push_presence(1, || frame(1)), Push::Dropped);
        assert_eq!(outbound.push(frame(6)), Push::Queued);
        assert_eq!(outbound.push(frame(5)), Push::Overflow);
        assert_eq!(unsent.get(), 0);
    }

    #[tokio::test]
    async fn a_waiting_room_is_notified_when_half_of_the_queue_is_free() {
        let (outbound, _) = outbound(10);
        let room = Arc::new(Notify::new());
        assert_eq!(outbound.push_granted(frame(6)), Push::Queued);
        assert_eq!(outbound.push_granted(frame(100)), Push::Queued);
        assert!(outbound.full().load(Ordering::Relaxed));
        outbound.notify_when_room(&room);
        let told = room.notified();
        tokio::pin!(told);
        assert!(outbound.try_next().is_some());
        assert!(futures::poll!(&mut told).is_pending(), "there is none yet");
        assert!(outbound.try_next().is_some());
        told.await;
        assert!(!outbound.full().load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn the_first_close_reason_stays() {
        let (outbound, _) = outbound(10);
        outbound.close(CloseReason::Draining);
        outbound.close(CloseReason::Memory);
        assert_eq!(outbound.next().await, Next::Close(CloseReason::Draining));
    }
}
