//! Checks that open sessions still have the rights that they were admitted with.

use std::time::SystemTime;

use super::{Session, shared::Sessions};
use crate::{auth::Refusal, sync::close_reason::CloseReason};

impl Sessions {
    /// Closes the sessions whose sign-in has expired.
    pub fn close_expired(&self) {
        let now = SystemTime::now();
        for session in self.peers.all() {
            if session.expires().is_some_and(|end| end <= now) {
                session.close(Refusal::Expired.into());
            }
        }
    }

    /// Checks every session again after the keys or tokens in effect have changed. Closes those
    /// that would be refused now, and those whose rights have changed: they come again with these.
    pub fn revalidate_all(&self) {
        self.peers.all().iter().for_each(|session| self.revalidate(session));
        self.close_expired();
    }

    /// Records that the tokens of all sessions are in use.
    pub fn record_use(&self) {
        for session in self.peers.all() {
            self.auth.record_use(&session.access);
        }
    }

    /// Closes a session that would not be admitted now with the rights that it has.
    pub(super) fn revalidate(&self, session: &Session) {
        match self.auth.admit_again(&session.access, session.client) {
            Err(refusal) => session.close(refusal.into()),
            Ok(access) if access.is_same(&session.access) => session.set_expires(access.expires),
            Ok(_) => session.close(CloseReason::RightsChanged),
        }
    }
}
