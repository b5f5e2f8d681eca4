//! Presence: ephemeral messages, which a room passes on and never stores.

use std::time::Duration;

use tokio::time::Instant as Deadline;

use super::{directory::RoomHandle, input::Input, seen::OTHER_RELAYS, shared::Shared, state::Room};
use crate::{
    base::{lock::lock, principal::Principal},
    storage::relay_message::{Presence, RelayMessage},
    sync::{events::What, wire},
};

/// How long a room whose document nobody has stays after presence passed through it.
const PRESENCE_LINGERS: Duration = Duration::from_secs(10);

impl Room {
    /// Passes an ephemeral message on to all other members.
    pub(super) fn pass_on(&mut self, input: Input) {
        let Input::Ephemeral { from, author, author_session, count, data, permit: _permit } = input
        else {
            return;
        };
        self.presence_until = Some(Deadline::now() + PRESENCE_LINGERS);
        self.with_sender(&from, |_| {});
        let by = (from.id, &from.access.principal);
        if !lock(self.handle.mailbox.seen()).record(by, &author, &author_session, count) {
            return self.report_refused(&from, "ephemeral_seen");
        }
        if let Some(others) = &self.shared.others {
            others.tell(data.len(), || {
                RelayMessage::Presence(Presence {
                    document: *self.document().as_bytes(),
                    author: author.clone(),
                    author_session: author_session.clone(),
                    count,
                    principal: from.access.principal.0.to_string(),
                    data: data.to_vec(),
                })
            });
        }
        let message = wire::Ephemeral::new(&author, self.document(), count, &author_session, &data);
        let members = self.members();
        for member in members.active().filter(|member| member.session.id != from.id) {
            self.handle.usage.message(data.len());
            let (kind, bytes) = ("ephemeral", data.len());
            self.report(Some(&member.session), || What::Sent { kind: kind.to_owned(), bytes });
            member.session.send_ephemeral(&message, data.len());
        }
    }
}

/// Passes presence of a client of another relay on to the members of its document's room. It is
/// dropped if it was passed on before, or if its author's name is that of somebody else here.
pub(in crate::sync) fn pass_on_of_others(
    shared: &Shared,
    handle: &RoomHandle,
    presence: &Presence,
) {
    let Presence { author, author_session, count, principal, data, .. } = presence;
    let principal = Principal(principal.as_str().into());
    let dropped = |why| shared.metrics.sessions.dropped.with_label_values(&[why]).inc();
    if !shared.peers.claim_elsewhere(author, &principal) {
        return dropped("sender");
    }
    let by = (OTHER_RELAYS, &principal);
    if !lock(handle.mailbox.seen()).record(by, author, author_session, *count) {
        return dropped("ephemeral_seen");
    }
    let message = wire::Ephemeral::new(author, handle.document, *count, author_session, data);
    for member in handle.members.lock().active() {
        handle.usage.message(data.len());
        member.session.send_ephemeral(&message, data.len());
    }
}
