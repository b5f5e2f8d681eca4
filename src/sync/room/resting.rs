//! Acknowledgements that wait in a mailbox and wake nobody.
//!
//! In a busy room most messages say only "I have what you sent me". They change what the room knows
//! of the peer, and there is nothing to answer. To wake the room for each of them costs more than
//! all else that it does, so they rest until the room is woken by something else, or is
//! quiet (`live::QUIET`).
//!
//! A message that rests is handled later, in its session's order, as if the network had taken so
//! long. So nothing depends on whether a message is recognized here.

use std::collections::VecDeque;

use automerge::ChangeHash;

use super::input::Input;

/// How many messages may rest in one mailbox: acknowledgements of as many peers.
const MOST: usize = 1024;
/// How many of the heads that were announced last are remembered: an acknowledgement may come after
/// the next edits.
const ANNOUNCED: usize = 4;

/// The messages that rest in one mailbox.
#[derive(Default)]
pub(super) struct Resting {
    /// The heads that the room announced last. Empty if no message may rest.
    announced: VecDeque<Vec<ChangeHash>>,
    messages: VecDeque<Box<Input>>,
}

impl Resting {
    /// Keeps a message if it only acknowledges what the room has announced.
    ///
    /// # Errors
    /// Returns the message if it is not to rest.
    pub(super) fn keep(&mut self, mut input: Box<Input>) -> Result<(), Box<Input>> {
        let Input::Sync { request: false, message, permit, .. } = &mut *input else {
            return Err(input);
        };
        let is_known = |heads: &[ChangeHash]| self.announced.iter().any(|known| known == heads);
        if self.messages.len() >= MOST || !message.acknowledged().is_some_and(is_known) {
            return Err(input);
        }
        permit.rest();
        self.messages.push_back(input);
        Ok(())
    }

    /// Messages that acknowledge these heads may rest from now on, until [`Self::stop`].
    pub(super) fn announce(&mut self, heads: &[ChangeHash]) {
        if self.announced.back().is_some_and(|last| last == heads) {
            return;
        }
        if self.announced.len() == ANNOUNCED {
            self.announced.pop_front();
        }
        self.announced.push_back(heads.to_vec());
    }

    /// Takes what rests, in its order.
    pub(super) fn take(&mut self) -> VecDeque<Box<Input>> {
        std::mem::take(&mut self.messages)
    }

    /// Takes what rests. Nothing rests from now on.
    pub(super) fn stop(&mut self) -> VecDeque<Box<Input>> {
        self.announced = VecDeque::new();
        self.take()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}
