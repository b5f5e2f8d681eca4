//! Ephemeral messages of a room: each is passed on once.

use std::collections::HashMap;

use super::peers::{Principal, SessionId};

/// Authors remembered for each session of a room; a shared worker gossips for its tabs.
const AUTHORS: usize = 16;

/// The highest count seen of each author, by the session that brought it first; it goes with that session.
#[derive(Debug, Default)]
pub struct Seen {
    counts: HashMap<(Principal, String, String), (SessionId, u64)>,
}

impl Seen {
    /// Whether a message is new: its count is above all that were seen of this author and author session, by whoever stands
    /// behind them. Counts rise (`automerge-repo`, `EphemeralMessage.count`), so the highest one is all there is to know.
    pub fn is_new(
        &mut self,
        (from, principal): (SessionId, &Principal),
        author: &str,
        session: &str,
        count: u64,
    ) -> bool {
        let key = (principal.clone(), author.to_owned(), session.to_owned());
        if let Some((_, highest)) = self.counts.get_mut(&key) {
            let new = count > *highest;
            *highest = count.max(*highest);
            return new;
        }
        let of_this_session = self.counts.iter().filter(|(_, (owner, _))| *owner == from);
        if of_this_session.clone().count() >= AUTHORS
            && let Some(any) = of_this_session.map(|(key, _)| key.clone()).next()
        {
            self.counts.remove(&any);
        }
        self.counts.insert(key, (from, count));
        true
    }

    /// Forget what a session brought.
    pub fn forget(&mut self, session: SessionId) {
        self.counts.retain(|_, (owner, _)| *owner != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_new_once_whoever_brings_it() {
        let mut seen = Seen::default();
        let (alice, mallory) = (Principal("alice".into()), Principal("mallory".into()));
        let (a, b) = ((SessionId(1), &alice), (SessionId(2), &alice));
        assert!(seen.is_new(a, "alice", "s", 1));
        assert!(!seen.is_new(a, "alice", "s", 1));
        assert!(!seen.is_new(b, "alice", "s", 1), "gossip of the same message");
        assert!(seen.is_new((SessionId(3), &mallory), "alice", "s", u64::MAX));
        assert!(seen.is_new(b, "alice", "s", 2), "what others say in her name is not hers");
        assert!(seen.is_new(a, "alice", "after a restart", 1));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_goes_with_the_session() {
        let mut seen = Seen::default();
        for n in 0..1000 {
            seen.is_new((SessionId(1), &Principal::anybody()), &format!("author-{n}"), "s", 1);
        }
        assert_eq!(seen.counts.len(), AUTHORS);
        seen.forget(SessionId(1));
        assert!(seen.counts.is_empty());
    }
}
