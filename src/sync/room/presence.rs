//! Presence: ephemeral messages, which a room passes on and never stores.

use std::time::Duration;

use tokio::time::Instant as Deadline;

use super::{input::Input, state::Room};
use crate::{
    base::lock::lock,
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
