//! Delayed acknowledgements: messages that wait in a mailbox and wake nobody.
//!
//! In a busy room most messages say only "I have what you sent me". They change what the room knows
//! of the peer, and their answer, if there is one, can wait. To wake the room for each of them
//! costs more than the rest of its work, so they are delayed until the room is woken by something
//! else, or is quiet (`live::QUIET`).
//!
//! A delayed message is handled in its session's order, as if the network had taken so long. So
//! nothing depends on whether a message is recognized here.

use std::collections::VecDeque;

use automerge::ChangeHash;
use bytes::Bytes;

use super::input::Input;

/// How many messages may be delayed in one mailbox.
const MAX_DELAYED: usize = 1024;
/// How large each may be, in bytes: as much as its permit of the receive queue is for.
const MAX_SIZE: usize = 1 << 10;
/// How many of the heads that were announced last are remembered: an acknowledgement may come after
/// the next edits.
const ANNOUNCED: usize = 4;

/// The messages that are delayed in one mailbox.
#[derive(Default)]
pub(super) struct Delayed {
    /// The heads that the room announced last. Empty if no message may be delayed.
    announced: VecDeque<Vec<ChangeHash>>,
    messages: VecDeque<Box<Input>>,
}

impl Delayed {
    /// Delays a message if it only acknowledges what the room has announced.
    ///
    /// # Errors
    /// Returns the message if it is not to be delayed.
    pub(super) fn delay(&mut self, mut input: Box<Input>) -> Result<(), Box<Input>> {
        let Input::Sync { request: false, message, permit, .. } = &mut *input else {
            return Err(input);
        };
        let is_known = |heads: &[ChangeHash]| self.announced.iter().any(|known| known == heads);
        if self.messages.len() >= MAX_DELAYED
            || message.raw.len() > MAX_SIZE
            || !message.acknowledged().is_some_and(is_known)
        {
            return Err(input);
        }
        permit.set_delayed();
        // A copy, because the bytes are part of what was read together with them.
        message.raw = Bytes::copy_from_slice(&message.raw);
        self.messages.push_back(input);
        Ok(())
    }

    /// Messages that acknowledge these heads may be delayed from now on, until [`Self::stop`].
    pub(super) fn announce(&mut self, heads: &[ChangeHash]) {
        if self.announced.back().is_some_and(|last| last == heads) {
            return;
        }
        if self.announced.len() == ANNOUNCED {
            self.announced.pop_front();
        }
        self.announced.push_back(heads.to_vec());
    }

    /// Takes the delayed messages, in their order.
    pub(super) fn take(&mut self) -> VecDeque<Box<Input>> {
        std::mem::take(&mut self.messages)
    }

    /// Takes the delayed messages. No further ones are delayed.
    pub(super) fn stop(&mut self) -> VecDeque<Box<Input>> {
        self.announced = VecDeque::new();
        self.take()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}
