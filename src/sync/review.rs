//! The end of sign-ins: sessions whose time is over, and those that would not be let in any more as they were.

use std::time::SystemTime;

use super::{close_reason::CloseReason, session::Session, sessions::Sessions};
use crate::auth::Refusal;

impl Sessions {
    /// Look at the sign-in of every session: those whose time is over end. `anew` asks again for all of them, for what is
    /// in effect has changed; one whose rights are others now comes again with these.
    pub fn review(&self, anew: bool) {
        let now = SystemTime::now();
        for session in self.peers.all() {
            if anew {
                self.ask_again(&session);
            }
            if session.expires().is_some_and(|end| end <= now) {
                session.close(Refusal::Expired.into());
            }
        }
    }

    /// Note that the tokens of all who are here are in use.
    pub fn note_use(&self) {
        for session in self.peers.all() {
            self.auth.record_use(&session.access);
        }
    }

    /// Whether a session would be let in now as it was.
    pub(super) fn ask_again(&self, session: &Session) {
        match self.auth.admit_again(&session.access, session.client) {
            Err(refusal) => session.close(refusal.into()),
            Ok(access) if access.is_same(&session.access) => session.set_expires(access.expires),
            Ok(_) => session.close(CloseReason::RightsChanged),
        }
    }
}
