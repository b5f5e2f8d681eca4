//! All sessions: by id, and by the peer id they joined with.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use super::session::Session;

/// The id of a connection, for the life of the process: the key everywhere, for peer ids are claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// Who stands behind a session. In open mode all sessions have the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(pub Arc<str>);

impl Principal {
    /// The one of open mode.
    pub fn anybody() -> Self {
        Self("anybody".into())
    }
}

/// The sessions that are open.
#[derive(Default)]
pub struct Peers {
    next: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<SessionId, Weak<Session>>,
    joined: HashMap<Arc<str>, Vec<(Principal, SessionId)>>,
}

impl Peers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An id for a new connection.
    pub fn next_id(&self) -> SessionId {
        SessionId(1 + self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Take in a session that has joined. Returns the older session of the same peer id and principal,
    /// which is to be closed.
    pub fn join(&self, session: &Arc<Session>) -> Option<Arc<Session>> {
        let mut table = self.table();
        table.sessions.insert(session.id, Arc::downgrade(session));
        let same = table.joined.entry(session.peer_id.clone()).or_default();
        let older = same.iter().position(|(principal, _)| *principal == session.access.principal);
        let older = older.map(|at| same.swap_remove(at).1);
        same.push((session.access.principal.clone(), session.id));
        older.and_then(|older| table.sessions.get(&older)?.upgrade())
    }

    /// Forget a session that has ended.
    pub fn leave(&self, session: &Session) {
        let mut table = self.table();
        table.sessions.remove(&session.id);
        if let Some(same) = table.joined.get_mut(&session.peer_id) {
            same.retain(|(_, id)| *id != session.id);
            if same.is_empty() {
                table.joined.remove(&session.peer_id);
            }
        }
    }

    /// The session of that id, while it is open.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.table().sessions.get(&id)?.upgrade()
    }

    /// Whether a session other than `but` has joined with that peer id.
    pub fn is_joined_elsewhere(&self, peer_id: &str, but: SessionId) -> bool {
        let table = self.table();
        table.joined.get(peer_id).is_some_and(|same| same.iter().any(|(_, id)| *id != but))
    }

    /// All sessions that have joined.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.table().sessions.values().filter_map(Weak::upgrade).collect()
    }

    /// How many have joined.
    pub fn len(&self) -> usize {
        self.table().sessions.len()
    }

    /// Whether none has joined.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(peers: &Peers, peer_id: &str, principal: &str) -> Arc<Session> {
        Arc::new(Session::for_test(peers.next_id(), peer_id, Principal(principal.into())))
    }

    #[test]
    fn the_newer_session_of_one_principal_wins_and_others_live() {
        let peers = Peers::default();
        let first = session(&peers, "tab", "alice");
        assert!(peers.join(&first).is_none());
        let thief = session(&peers, "tab", "mallory");
        assert!(peers.join(&thief).is_none(), "another principal closes nobody's session");
        let second = session(&peers, "tab", "alice");
        assert_eq!(peers.join(&second).expect("the older one").id, first.id);
        peers.leave(&first);
        assert!(peers.is_joined_elsewhere("tab", thief.id));
        peers.leave(&second);
        assert!(!peers.is_joined_elsewhere("tab", thief.id));
        assert_eq!(peers.all().len(), 1);
        peers.leave(&thief);
        assert!(peers.is_empty());
        assert!(peers.table().joined.is_empty());
    }
}
