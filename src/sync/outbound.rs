//! The outbound queue of a session, bounded in bytes.
//!
//! Rooms put frames in without waiting; the session's writer takes them out. While the queue is full, rooms
//! keep what they have for the session: it is told later, at once, what it missed ([`Outbound::when_room`]).
//! What cannot wait costs presence first, and then the session; a frame of any size fits into an empty queue.

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
    /// Those of them that were neither granted nor may be dropped.
    urgent: usize,
    close_reason: Option<CloseReason>,
    /// Who is told when there is room again.
    waiting: Vec<Arc<Notify>>,
}

#[derive(Debug)]
struct Frame {
    data: Bytes,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// There was room when it was made.
    Granted,
    /// May be dropped: the next one says it anew.
    Presence,
    /// Cannot wait.
    Urgent,
}

/// What the writer is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this frame.
    Send(Bytes),
    /// Close the socket.
    Close(CloseReason),
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
            full: Arc::default(),
            closed: CancellationToken::new(),
            unsent,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Put a frame in that cannot wait. What was granted takes none of its room.
    pub fn push(&self, data: Bytes) -> Push {
        self.push_frame(Frame { data, kind: Kind::Urgent })
    }

    /// Put a frame in that may be dropped.
    pub fn push_presence(&self, data: Bytes) -> Push {
        self.push_frame(Frame { data, kind: Kind::Presence })
    }

    /// Whether there is room for presence of that size.
    pub fn takes_presence(&self, size: usize) -> bool {
        let queue = self.queue();
        queue.close_reason.is_none() && (queue.bytes == 0 || queue.bytes + size <= self.limit)
    }

    /// Put a frame in that is too late to be kept back; whether the queue is full was asked before it was made.
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

    /// Whether what can wait is to be kept back for now.
    pub fn full(&self) -> &Arc<AtomicBool> {
        &self.full
    }

    /// Notify `room` once there is room again, which may be now.
    pub fn when_room(&self, room: &Arc<Notify>) {
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
        queue.frames.push_back(frame);
        self.note_room(queue);
    }

    /// Full is the whole limit; room is half of it, so that those who wait are not woken for each frame.
    fn note_room(&self, queue: &mut Queue) {
        if queue.bytes >= self.limit {
            self.full.store(true, Ordering::Relaxed);
        } else if queue.bytes <= self.limit / 2 && self.full.swap(false, Ordering::Relaxed) {
            queue.waiting.drain(..).for_each(|room| room.notify_one());
        }
    }

    fn push_frame(&self, frame: Frame) -> Push {
        let mut queue = self.queue();
        let size = frame.data.len();
        if queue.close_reason.is_some() {
            return Push::Closed;
        }
        let fits = |bytes: usize| bytes == 0 || bytes + size <= self.limit;
        if frame.kind == Kind::Presence && !fits(queue.bytes) {
            return Push::Dropped;
        }
        if !fits(queue.bytes) {
            self.drop_presence(&mut queue);
        }
        if frame.kind == Kind::Urgent && !fits(queue.urgent) {
            self.close_queue(&mut queue, CloseReason::SendQueueFull(self.limit));
            drop(queue);
            self.ready.notify_one();
            return Push::Overflow;
        }
        self.append(&mut queue, frame);
        drop(queue);
        self.ready.notify_one();
        Push::Queued
    }

    fn drop_presence(&self, queue: &mut Queue) {
        let before = queue.bytes;
        queue.frames.retain(|frame| frame.kind != Kind::Presence);
        queue.bytes = queue.frames.iter().map(|frame| frame.data.len()).sum();
        self.unsent.sub((before - queue.bytes) as i64);
        self.note_room(queue);
    }

    fn close_queue(&self, queue: &mut Queue, reason: CloseReason) {
        self.unsent.sub(queue.bytes as i64);
        queue.frames = VecDeque::new();
        (queue.bytes, queue.urgent) = (0, 0);
        self.note_room(queue);
        queue.close_reason = Some(reason);
        self.closed.cancel();
    }

    /// Close the session: what waits is dropped, and the first reason stays.
    pub fn close(&self, reason: CloseReason) {
        let mut queue = self.queue();
        if queue.close_reason.is_none() {
            self.close_queue(&mut queue, reason);
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
        if let Some(reason) = &queue.close_reason {
            return Some(Next::Close(reason.clone()));
        }
        let frame = queue.frames.pop_front()?;
        queue.bytes -= frame.data.len();
        queue.urgent -= if frame.kind == Kind::Urgent { frame.data.len() } else { 0 };
        self.unsent.sub(frame.data.len() as i64);
        self.note_room(&mut queue);
        Some(Next::Send(frame.data))
    }

    /// Wait until the session is to be closed, whether or not its writer is stuck.
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

    #[test]
    fn a_large_document_on_its_way_leaves_room_for_what_cannot_wait() {
        let (outbound, unsent) = outbound(10);
        assert_eq!(outbound.push_granted(frame(1000)), Push::Queued);
        assert_eq!(outbound.push_presence(frame(1)), Push::Dropped);
        assert_eq!(outbound.push(frame(6)), Push::Queued);
        assert_eq!(outbound.push(frame(5)), Push::Overflow);
        assert_eq!(unsent.get(), 0);
    }

    #[tokio::test]
    async fn whoever_waits_is_told_when_there_is_room() {
        let (outbound, _) = outbound(10);
        let room = Arc::new(Notify::new());
        assert_eq!(outbound.push_granted(frame(6)), Push::Queued);
        assert_eq!(outbound.push_granted(frame(100)), Push::Queued);
        assert!(outbound.full().load(Ordering::Relaxed));
        outbound.when_room(&room);
        let told = room.notified();
        tokio::pin!(told);
        assert!(outbound.try_next().is_some());
        assert!(futures::poll!(&mut told).is_pending(), "there is none yet");
        assert!(outbound.try_next().is_some());
        told.await;
        assert!(!outbound.full().load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn the_first_reason_to_close_stays() {
        let (outbound, _) = outbound(10);
        outbound.close(CloseReason::Draining);
        outbound.close(CloseReason::Memory);
        assert_eq!(outbound.next().await, Next::Close(CloseReason::Draining));
    }
}
