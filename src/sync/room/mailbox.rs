//! The way into a room.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use automerge::ChangeHash;
use futures::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{input::Input, resting::Resting, seen::Seen};
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
    resting: Mutex<Resting>,
    /// Woken when a session leaves.
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
    /// Received, and behind messages that rested.
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
        resting: Mutex::default(),
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

    /// Lets a message rest, if it is one that needs no answer: the room receives it before its next
    /// message. It comes from a session that has sent the room messages before.
    ///
    /// # Errors
    /// Returns the message if it is to be [sent](Self::send).
    pub(crate) fn rest(&self, message: Box<Input>) -> Result<(), Box<Input>> {
        // What the session has sent before must have been received: nothing overtakes it. If
        // something waits, the room is awake anyway.
        let is_asleep = self.waiting() == 0;
        let has_permits = self.0.receive_share.available_permits() >= self.0.permits / 2;
        if !is_asleep || !has_permits {
            return Err(message);
        }
        lock(&self.0.resting).keep(message)
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
        // The semaphore is never closed.
        self.0.receive_share.clone().acquire_many_owned(permits).await.ok()
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
        match self.messages.poll_recv(context) {
            Poll::Ready(message) => Poll::Ready(message.map(|message| self.receive(message))),
            Poll::Pending => {
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
        let message = self.messages.try_recv().ok()?;
        Some(self.receive(message))
    }

    /// Receives a message behind what has rested.
    fn receive(&mut self, message: Box<Input>) -> Box<Input> {
        self.received += 1;
        let mut rested = lock(&self.mailbox.0.resting).take();
        let Some(first) = rested.pop_front() else { return message };
        rested.push_back(message);
        self.ready = rested;
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
        let mut leaving = lock(&self.mailbox.0.leaving);
        leaving.front().filter(|next| next.after <= self.received)?;
        let mut rested = lock(&self.mailbox.0.resting).take();
        if let Some(first) = rested.pop_front() {
            self.ready = rested;
            return Some(first);
        }
        let Leaving { session, .. } = leaving.pop_front()?;
        if leaving.is_empty() {
            *leaving = VecDeque::new();
        }
        Some(Box::new(Input::Leave { session }))
    }

    /// Messages that acknowledge these heads may [rest](Mailbox::rest) from now on.
    pub(super) fn announce(&mut self, heads: &[ChangeHash]) {
        lock(&self.mailbox.0.resting).announce(heads);
    }

    /// Takes what rests, behind what was received before. Nothing rests from now on.
    pub(super) fn stop_resting(&mut self) -> VecDeque<Box<Input>> {
        let mut received = std::mem::take(&mut self.ready);
        received.extend(lock(&self.mailbox.0.resting).stop());
        received
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
            && self.messages.is_empty()
            && lock(&self.mailbox.0.leaving).is_empty()
            && lock(&self.mailbox.0.resting).is_empty()
    }

    /// Accepts no further messages. Sessions may still leave.
    pub(super) fn close(&mut self) {
        self.messages.close();
    }
}
