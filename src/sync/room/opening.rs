//! A room that opens its document.

use std::sync::Arc;

use tracing::error;

use super::{
    input::Input,
    shared::NoMemory,
    state::{End, Room, STASH},
};
use crate::{
    limits::turns::Payer,
    storage::{StorageError, documents::Opened},
    sync::{close_reason::CloseReason, session::Session},
};

impl Room {
    /// Loads the document, and tries again until it can be read.
    ///
    /// # Errors
    /// The relay stops first, or has no memory for it.
    pub(super) async fn open(&mut self) -> Result<Box<Opened>, End> {
        let shared = self.shared.clone();
        let document = self.document();
        if document == shared.probe {
            return Ok(Box::default());
        }
        // A document that is not served needs no memory.
        if let Some(refused) = shared.documents.refused(document) {
            return Ok(Box::new(refused));
        }
        let opener = self.handle.members.only();
        let payer = opener.as_deref().map_or(Payer::Document(document), Session::payer);
        let mut unreadable = None;
        let has_pending = !self.handle.pending.is_empty();
        loop {
            match self.open_once(&payer, has_pending).await? {
                // What was read may be out of date.
                Ok(_) if self.handle.take_outdated() => {}
                Ok(opened) => {
                    if let Some(opener) = opener {
                        opener.charge(opened.took, 1);
                    }
                    return Ok(Box::new(opened));
                }
                Err(error) => {
                    error!(%document, "cannot read the document; retrying: {error}");
                    unreadable.get_or_insert_with(|| shared.documents.unreadable(&error));
                    self.lose_stash("unreadable");
                    let text = format!(
                        "the relay cannot read document {document} right now and is retrying"
                    );
                    self.members().active().for_each(|member| member.session.send_error(&text));
                    tokio::select! {
                        () = self.pause("unreadable") => {}
                        () = shared.stopping.cancelled(), if !has_pending => return Err(End::Stop),
                    }
                }
            }
        }
    }

    /// Loads the document, and keeps what is received meanwhile.
    async fn open_once(
        &mut self,
        payer: &Payer,
        has_pending: bool,
    ) -> Result<Result<Opened, StorageError>, End> {
        let shared = self.shared.clone();
        let document = self.document();
        let open = async {
            // What waits to be saved takes memory until it is saved.
            let permit = if has_pending {
                Ok(shared.loading.take(payer.clone()).await)
            } else {
                shared.loading_permit(payer).await
            };
            match permit {
                Ok(_permit) => Ok(shared.documents.open(document).await),
                Err(NoMemory) => Err(End::NoMemory),
            }
        };
        tokio::pin!(open);
        let mut is_needed = has_pending;
        loop {
            tokio::select! {
                opened = &mut open => return opened,
                Some(input) = self.inbox.recv(), if self.stash.len() < STASH => {
                    self.stash(*input, "opening");
                }
                // Only changes that somebody has sent are worth a wait for the disk.
                () = shared.stopping.cancelled(), if !is_needed => {
                    while let Some(input) = self.inbox.try_recv() {
                        self.stash(*input, "opening");
                    }
                    is_needed = self.stash.iter().any(Input::has_changes);
                    if !is_needed {
                        return Err(End::Stop);
                    }
                }
            }
        }
    }

    /// Charges the creation of the document, which is new, to the first session that brings it and
    /// may create one more. Returns whether there is one. The charge is refunded unless something
    /// of the document is stored. Sessions that may not are closed.
    pub(super) fn charge_creation(&mut self) -> bool {
        if self.handle.pending.holds_creation() {
            return self.is_brought();
        }
        let limits = self.shared.config.borrow().limits.clone();
        while let Some(from) = self.first_to_bring() {
            let mut charge = self.shared.quotas.charge(from.account.clone());
            if charge.documents(1, &limits) {
                self.handle.pending.hold_creation(charge);
                return true;
            }
            from.close(CloseReason::NewDocuments(limits.new_documents));
            self.stash.retain(|input| input.sync_sender() != Some(from.id));
        }
        false
    }

    fn first_to_bring(&self) -> Option<Arc<Session>> {
        self.stash.iter().find_map(|input| match input {
            Input::Sync { from, .. } if input.brings_heads(self.document()) => Some(from.clone()),
            _ => None,
        })
    }
}
