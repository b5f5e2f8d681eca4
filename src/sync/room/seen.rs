//! Which ephemeral messages a room has seen: each is passed on once.

use std::collections::HashMap;

use crate::base::{principal::Principal, session_id::SessionId};

/// Authors remembered for each session of a room; a shared worker gossips for its tabs.
const AUTHORS: usize = 16;

/// Stands for the clients of all other relays.
pub(super) const OTHER_RELAYS: SessionId = SessionId(0);
/// Authors of other relays that are remembered for each room.
const AUTHORS_ELSEWHERE: usize = 1024;

/// The highest count seen of each author and author session, for each principal that sent some of
/// its messages. An entry is kept as long as the session that sent the first of them.
#[derive(Debug, Default)]
pub struct Seen {
    counts: HashMap<(String, String), Vec<Sent>>,
}

#[derive(Debug)]
struct Sent {
    principal: Principal,
    by: SessionId,
    highest: u64,
}

impl Seen {
    /// Records a message. Returns whether it is new: its count is above all that were seen of this
    /// author and author session from the same principal. Counts rise (`automerge-repo`,
    /// `EphemeralMessage.count`), so only the highest one is kept.
    pub fn record(
        &mut self,
        (from, principal): (SessionId, &Principal),
        author: &str,
        session: &str,
        count: u64,
    ) -> bool {
        let key = (author.to_owned(), session.to_owned());
        let known = self.counts.get_mut(&key).into_iter().flatten();
        if let Some(known) = known.into_iter().find(|known| known.principal == *principal) {
            let is_new = count > known.highest;
            known.highest = count.max(known.highest);
            return is_new;
        }
        let of_this_session =
            self.counts.iter().filter(|(_, brought)| brought.iter().any(|one| one.by == from));
        let most = if from == OTHER_RELAYS { AUTHORS_ELSEWHERE } else { AUTHORS };
        if of_this_session.clone().count() >= most
            && let Some(any) = of_this_session.map(|(key, _)| key.clone()).next()
        {
            self.forget_one(&any, from);
        }
        let brought = Sent { principal: principal.clone(), by: from, highest: count };
        self.counts.entry(key).or_default().push(brought);
        true
    }

    /// Whether a message of this author, author session and count was passed on, or is older than
    /// one that was.
    pub fn has_passed_on(&self, author: &str, session: &str, count: u64) -> bool {
        let key = (author.to_owned(), session.to_owned());
        self.counts.get(&key).into_iter().flatten().any(|brought| count <= brought.highest)
    }

    fn forget_one(&mut self, key: &(String, String), session: SessionId) {
        if let Some(brought) = self.counts.get_mut(key) {
            brought.retain(|one| one.by != session);
            if brought.is_empty() {
                self.counts.remove(key);
            }
        }
    }

    /// Forgets what a session has sent.
    pub fn forget(&mut self, session: SessionId) {
        self.counts.retain(|_, brought| {
            brought.retain(|one| one.by != session);
            !brought.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_new_once_for_all_sessions_of_a_principal() {
        let mut seen = Seen::default();
        let (alice, mallory) = (Principal("alice".into()), Principal("mallory".into()));
        let (a, b) = ((SessionId(1), &alice), (SessionId(2), &alice));
        assert!(seen.record(a, "alice", "s", 1));
        assert!(!seen.record(a, "alice", "s", 1));
        assert!(!seen.record(b, "alice", "s", 1), "gossip of the same message");
        assert!(seen.record((SessionId(3), &mallory), "alice", "s", u64::MAX));
        assert!(seen.record(b, "alice", "s", 2), "what others say in her name is not hers");
        assert!(seen.record(a, "alice", "after a restart", 1));
    }

    #[test]
    fn a_message_that_was_passed_on_is_recognized_from_any_session() {
        let mut seen = Seen::default();
        let alice = Principal("alice".into());
        assert!(!seen.has_passed_on("alice", "s", 3));
        assert!(seen.record((SessionId(1), &alice), "alice", "s", 3));
        assert!(seen.has_passed_on("alice", "s", 3) && seen.has_passed_on("alice", "s", 2));
        assert!(!seen.has_passed_on("alice", "s", 4), "nobody speaks ahead of her");
        assert!(!seen.has_passed_on("alice", "other", 1) && !seen.has_passed_on("bob", "s", 1));
        seen.forget(SessionId(1));
        assert!(!seen.has_passed_on("alice", "s", 3));
    }

    #[test]
    fn counts_are_bounded_and_are_forgotten_with_their_session() {
        let mut seen = Seen::default();
        for n in 0..1000 {
            seen.record((SessionId(1), &Principal::anybody()), &format!("author-{n}"), "s", 1);
        }
        assert_eq!(seen.counts.len(), AUTHORS);
        seen.forget(SessionId(1));
        assert!(seen.counts.is_empty());
    }
}
