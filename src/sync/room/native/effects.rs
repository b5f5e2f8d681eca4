//! Carries out what the core asks for.

use tracing::error;

use super::NativeEngine;
use crate::{
    document::core::event::{Effect, Rejection},
    sync::room::port::Port,
};

impl NativeEngine {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                self.with_port(to, |port| port.sync_granted(&message));
            }
            Effect::AwaitRoom(session) => {
                self.with_port(session, Port::when_room);
            }
            Effect::Save { key, data, replaces } => {
                self.pending.write_begins();
                self.writer.save(key, data, replaces);
            }
            Effect::Unreadable { key, why } => {
                error!(%key, "a chunk that another relay has stored cannot be used: it {why}");
            }
            Effect::Applied { from, ticket, new_changes, has_orphans } => {
                if let Some(ticket) = ticket {
                    self.pending.admitted(ticket, new_changes > 0 || has_orphans);
                }
                self.with_port(from, |port| port.applied(new_changes));
            }
            Effect::Refuse { from, ticket, why } => {
                if let Some(ticket) = ticket {
                    self.pending.refused(ticket);
                }
                let (reason, label) = match why {
                    Rejection::Gate(why) => {
                        (format!("the changes to {} {why}", self.document), why.label())
                    }
                    Rejection::TooLarge(why) => (why, "max_document"),
                };
                self.with_port(from, |port| port.refuse(&reason, label));
            }
        }
    }
}
