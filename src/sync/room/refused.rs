//! A room whose document is not served: it was deleted, an operator has blocked it, it is too
//! large, or it is new while the disk is full.

use tracing::error;

use super::{
    input::Input,
    members::Member,
    state::{End, Room, left_in, unavailable},
};
use crate::storage::documents::Opened;

impl Room {
    /// Withholds a document that is not served: to everybody it does not exist.
    pub(super) fn withhold_document(&mut self, why: &'static str) -> End {
        let bytes = self.handle.pending.clear();
        let document = self.document();
        if bytes > 0 {
            error!(%document, why, bytes, "dropping changes that were not durable");
        }
        // If a message is the reason why the document was opened, members that only waited were
        // told before.
        let is_news = self.stash.is_empty();
        let stash = std::mem::take(&mut self.stash);
        let left = left_in(&stash);
        for input in stash {
            match input {
                Input::Sync { from, message, .. } if !left.contains(&from.id) => {
                    self.report_refused(&from, why);
                    // A peer sends an unblocked document again; a deleted one is to stay away.
                    let must_resend = why == "blocked" && message.has_heads();
                    let was_lost = |member: &mut Member| {
                        member.update_waiting(|waiting| {
                            waiting.was_told_unavailable = false;
                            waiting.must_resend |= must_resend;
                        });
                    };
                    self.with_sender(&from, was_lost);
                }
                Input::Leave { session } => self.forget(session),
                _ => {}
            }
        }
        for member in self.members().active_mut() {
            let Some(mut waiting) = member.waiting() else { continue };
            if is_news || !waiting.was_told_unavailable {
                member.answer_by = None;
                waiting.must_resend &= why == "blocked";
                member.update_waiting(|current| *current = waiting);
                self.report(Some(&member.session), unavailable);
                member.session.send_unavailable(document);
            }
        }
        End::Retire(why)
    }

    /// Whether somebody brings a new document and the disk is full.
    pub(super) fn has_no_space(&self, opened: &Opened) -> bool {
        let is_new = opened.heads.is_empty() && self.handle.pending.is_empty();
        is_new && self.is_brought() && self.shared.documents.space().is_low()
    }

    /// Refuses all changes until there is space for the document. Those who have it are then asked
    /// for it.
    pub(super) async fn wait_for_space(&mut self) -> End {
        let (shared, handle) = (self.shared.clone(), self.handle.clone());
        loop {
            self.refuse_stash();
            if !self.members().has_active() {
                return End::Retire("no_space");
            }
            tokio::select! {
                () = shared.documents.space().wait_until_not_low() => return End::Reopen,
                () = shared.stopping.cancelled() => return End::Stop,
                () = handle.news.notified() => if handle.take_outdated() | handle.take_stored().is_some() {
                    return End::Reopen;
                },
                input = self.inbox.recv() => match input {
                    Some(input) => self.stash(*input, "no space"),
                    None => return End::Stop,
                },
            }
        }
    }

    /// Tells those who request the document that it is unavailable. Those who bring it keep it.
    fn refuse_stash(&mut self) {
        let document = self.document();
        for input in &self.stash {
            if let Input::Sync { from, request: true, .. } = input
                && !input.brings_heads(document)
            {
                self.report(Some(from), unavailable);
                from.send_unavailable(document);
            }
        }
        self.lose_stash("no_space");
    }
}
