//! The way into a room.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use automerge::ChangeHash;
use futures::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{delayed::Delayed, input::Input, seen::Seen};
use crate::base::{lock::lock, session_id::SessionId};

/// Messages that may wait for one room. Their bytes are bounded by `sync.receive_queue`.
const SLOTS: usize = 64;

/// The way into a room.
#[derive(Clone)]
pub struct Mailbox(Arc<Shared>);

struct Shared {
    /// The messages. In boxes, because the channel keeps memory for 32 inputs, used or not.
    messages: mpsc::Sender<Box<Input>>,
    /// How many messages have been sent. Incremented right before each is put into the channel.
    sent: AtomicU64,
    /// The sessions that are leaving, in order.
    leaving: Mutex<VecDeque<Leaving>>,
    /// Messages that wait for the next one in `messages`.
    delayed: Mutex<Delayed>,
    /// A message waits for the permits of delayed ones.
    is_delay_over: AtomicBool,
    /// Woken when a session leaves, or when the delay is over.
    receiver: AtomicWaker,
    /// The room's share of the receive queue, in KiB, so that a slow room takes none from others.
    receive_share: Arc<Semaphore>,
    /// The size of that share.
    permits: usize,
    /// The presence that the room has passed on.
    seen: Arc<Mutex<Seen>>,
}

/// A session that has left, and whose messages may still wait.
struct Leaving {
    session: SessionId,
    /// All of its messages are among this many first ones.
    after: u64,
}

/// The way into a room for as long as the room exists.
#[derive(Clone, Default)]
pub struct WeakMailbox(Weak<Shared>);

/// The receiving end of a mailbox.
pub struct Inbox {
    messages: mpsc::Receiver<Box<Input>>,
    /// How many messages have been received.
    received: u64,
    /// Received messages that are handled next: delayed ones, and the one after them.
    ready: VecDeque<Box<Input>>,
    mailbox: Mailbox,
}

/// A new mailbox, with this share of the receive queue in KiB.
pub(crate) fn mailbox(receive_share: u32, seen: Arc<Mutex<Seen>>) -> (Mailbox, Inbox) {
    let (messages, receiver) = mpsc::channel(SLOTS);
    let mailbox = Mailbox(Arc::new(Shared {
        messages,
        sent: AtomicU64::new(0),
        leaving: Mutex::default(),
        delayed: Mutex::default(),
        is_delay_over: AtomicBool::new(false),
        receiver: AtomicWaker::new(),
        receive_share: Arc::new(Semaphore::new(receive_share as usize)),
        permits: receive_share as usize,
        seen,
    }));
    (mailbox.clone(), Inbox { messages: receiver, received: 0, ready: VecDeque::new(), mailbox })
}

impl Mailbox {
    /// Sends a message, as soon as there is a slot for it.
    ///
    /// # Errors
    /// Returns the message if the room has closed its mailbox.
    pub async fn send(&self, message: Box<Input>) -> Result<(), Box<Input>> {
        let Ok(slot) = self.0.messages.reserve().await else { return Err(message) };
        self.0.sent.fetch_add(1, Ordering::Relaxed);
        slot.send(message);
        Ok(())
    }

    /// Delays a message if its answer can wait: the room receives it before its next message. It
    /// comes from a session that has sent the room sync messages before.
    ///
    /// # Errors
    /// Returns the message if it is to be [sent](Self::send).
    pub(crate) fn delay(&self, message: Box<Input>) -> Result<(), Box<Input>> {
        if self.0.receive_share.available_permits() < self.0.permits / 2 {
            return Err(message);
        }
        let mut delayed = lock(&self.0.delayed);
        // What the session has sent before must have been received, so that nothing overtakes it.
        // If something waits, the room is awake anyway.
        if self.waiting() > 0 {
            return Err(message);
        }
        delayed.delay(message)
    }

    /// Tells the room that a session has left, after the messages that it has sent. Never waits.
    ///
    /// The directory calls this once for each session that entered the room, so at most as many
    /// sessions are leaving as the room has members.
    pub(super) fn leave(&self, session: SessionId) {
        {
            let mut leaving = lock(&self.0.leaving);
            // The session's own messages are counted: it has sent them before.
            let after = self.0.sent.load(Ordering::Relaxed);
            leaving.push_back(Leaving { session, after });
        }
        self.0.receiver.wake();
    }

    /// Waits for permits of the room's share of the receive queue.
    pub async fn receive_permits(&self, permits: u32) -> Option<OwnedSemaphorePermit> {
        let share = &self.0.receive_share;
        if let Ok(permits) = share.clone().try_acquire_many_owned(permits) {
            return Some(permits);
        }
        self.0.is_delay_over.store(true, Ordering::Relaxed);
        self.0.receiver.wake();
        // The semaphore is never closed.
        share.clone().acquire_many_owned(permits).await.ok()
    }

    /// Whether the room accepts no further messages.
    pub fn is_closed(&self) -> bool {
        self.0.messages.is_closed()
    }

    /// How many messages wait, or are about to be sent.
    pub fn waiting(&self) -> usize {
        SLOTS.saturating_sub(self.0.messages.capacity())
    }

    /// A reference that does not keep the mailbox of a room that has ended in memory.
    pub fn downgrade(&self) -> WeakMailbox {
        WeakMailbox(Arc::downgrade(&self.0))
    }

    pub(super) fn seen(&self) -> &Arc<Mutex<Seen>> {
        &self.0.seen
    }
}

impl WeakMailbox {
    /// The mailbox, unless its room has ended.
    pub fn upgrade(&self) -> Option<Mailbox> {
        self.0.upgrade().map(Mailbox)
    }

    /// Whether the room has passed on an ephemeral message of this author, author session and
    /// count.
    pub fn has_passed_on(&self, author: &str, session: &str, count: u64) -> bool {
        let shared = self.0.upgrade();
        shared.is_some_and(|shared| lock(&shared.seen).has_passed_on(author, session, count))
    }
}

impl Inbox {
    /// Waits for the next input. `None` once the mailbox is [closed](Self::close) and every message
    /// that had a slot was received; sessions may leave after that, too.
    pub(super) async fn recv(&mut self) -> Option<Box<Input>> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Box<Input>>> {
        if let Some(next) = self.next_ready() {
            return Poll::Ready(Some(next));
        }
        // Locked, so that no session delays a message between this and the one before it.
        let mut delayed = lock(&self.mailbox.0.delayed);
        match self.messages.poll_recv(context) {
            Poll::Ready(Some(message)) => {
                let earlier = delayed.take();
                drop(delayed);
                Poll::Ready(Some(self.receive(earlier, message)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                drop(delayed);
                self.mailbox.0.receiver.register(context.waker());
                // One may have left since the first look.
                self.next_ready().map_or(Poll::Pending, |next| Poll::Ready(Some(next)))
            }
        }
    }

    /// The next input, if there is one.
    pub(super) fn try_recv(&mut self) -> Option<Box<Input>> {
        if let Some(next) = self.next_ready() {
            return Some(next);
        }
        let mut delayed = lock(&self.mailbox.0.delayed);
        let message = self.messages.try_recv().ok()?;
        let earlier = delayed.take();
        drop(delayed);
        Some(self.receive(earlier, message))
    }

    /// Returns the first of the delayed messages and the one after them.
    fn receive(&mut self, mut delayed: VecDeque<Box<Input>>, message: Box<Input>) -> Box<Input> {
        self.received += 1;
        let Some(first) = delayed.pop_front() else { return message };
        delayed.push_back(message);
        self.ready = delayed;
        first
    }

    /// The next input that was received, or the next session that has left and whose messages were
    /// all received.
    fn next_ready(&mut self) -> Option<Box<Input>> {
        if let Some(next) = self.ready.pop_front() {
            return Some(next);
        }
        // A crowd that sends or leaves at once is rare; a room keeps no memory for the next one.
        self.ready = VecDeque::new();
        let shared = &self.mailbox.0;
        let is_delay_over = shared.is_delay_over.swap(false, Ordering::Relaxed);
        let mut leaving = lock(&shared.leaving);
        let has_left = leaving.front().is_some_and(|next| next.after <= self.received);
        if is_delay_over || has_left {
            let mut delayed = lock(&shared.delayed).take();
            if let Some(first) = delayed.pop_front() {
                self.ready = delayed;
                return Some(first);
            }
        }
        let Leaving { session, .. } = leaving.pop_front_if(|_| has_left)?;
        if leaving.is_empty() {
            *leaving = VecDeque::new();
        }
        Some(Box::new(Input::Leave { session }))
    }

    /// Messages that acknowledge these heads may be [delayed](Mailbox::delay) from now on.
    pub(super) fn announce(&mut self, heads: &[ChangeHash]) {
        lock(&self.mailbox.0.delayed).announce(heads);
    }

    /// Takes the delayed messages, behind those that were received before.
    pub(super) fn take_delayed(&mut self) -> VecDeque<Box<Input>> {
        self.received_with(Delayed::take)
    }

    /// The same, and no further ones are delayed.
    pub(super) fn stop_delaying(&mut self) -> VecDeque<Box<Input>> {
        self.received_with(Delayed::stop)
    }

    fn received_with(
        &mut self,
        take: impl FnOnce(&mut Delayed) -> VecDeque<Box<Input>>,
    ) -> VecDeque<Box<Input>> {
        let mut received = std::mem::take(&mut self.ready);
        received.extend(take(&mut lock(&self.mailbox.0.delayed)));
        received
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
            && self.messages.is_empty()
            && lock(&self.mailbox.0.leaving).is_empty()
            && lock(&self.mailbox.0.delayed).is_empty()
    }

    /// Accepts no further messages. Sessions may still leave.
    pub(super) fn close(&mut self) {
        self.messages.close();
    }
}
