//! A room of a document that is not taken: it was deleted, an operator keeps it from everybody, or it is new while there is no room on the disk.

use super::{unknown::unavailable, *};

impl Room {
    /// The document was deleted or blocked: to everybody it is not there.
    pub(super) fn not_taken(&mut self, why: &'static str) -> End {
        let bytes = self.handle.pending.clear();
        if bytes > 0 {
            let document = self.document();
            error!(%document, why, bytes, "changes that were not durable are dropped");
        }
        // Where somebody's message is why it was looked at, those who only waited have heard it before.
        let is_news = self.stash.is_empty();
        for input in std::mem::take(&mut self.stash) {
            if let Input::Sync { from, message, .. } = input
                && self.is_here(from.id)
            {
                self.refused(&from, why);
                // Unblocked, it is to come again; a deleted document is to stay away.
                let lost = why == "blocked" && message.has_heads();
                let member = self.member(&from);
                (member.begin_anew, member.waited) = (true, false);
                member.lost |= lost;
            }
        }
        let are_told = |member: &&mut Member| member.begin_anew && (is_news || !member.waited);
        for member in self.members.values_mut().filter(are_told) {
            member.asks = None;
            member.lost &= why == "blocked";
            self.rooms.followers.tell(self.handle.document, Some(&member.session), unavailable);
            member.session.send_unavailable(self.handle.document);
        }
        End::Retire(why)
    }

    /// Whether somebody brings a new document and there is no room for it.
    pub(super) fn has_no_space(&self, opened: &Opened) -> bool {
        let is_new = opened.heads.is_empty() && self.handle.pending.is_empty();
        is_new && self.is_brought() && self.rooms.shared.documents.space().is_low()
    }

    /// Take nothing of the document until there is room for it; who has it is then asked for it.
    pub(super) async fn wait_for_space(&mut self) -> End {
        let (rooms, handle) = (self.rooms.clone(), self.handle.clone());
        loop {
            self.refuse_stash();
            tokio::select! {
                () = rooms.shared.documents.space().wait_until_not_low() => return End::Reopen,
                () = rooms.stopping.cancelled() => return End::Stop,
                () = handle.news.notified() => {
                    for id in self.gone() {
                        self.forget(id);
                    }
                    if self.is_to_look_again() {
                        return End::Reopen;
                    }
                    if self.members.is_empty() {
                        return End::Retire("no_space");
                    }
                }
                input = self.inbox.recv() => match input {
                    Some(input) => self.put_by(*input, "no space"),
                    None => return End::Stop,
                },
            }
        }
    }

    /// Who asks hears that it is not there; who brings it keeps it.
    fn refuse_stash(&mut self) {
        for input in &self.stash {
            if let Input::Sync { from, request: true, .. } = input
                && !brings_heads(self.handle.document, input)
            {
                self.tell(Some(from), unavailable);
                from.send_unavailable(self.handle.document);
            }
        }
        self.lose_stash("no_space");
    }
}
