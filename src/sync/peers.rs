//! All sessions: by id, and by the peer id they joined with.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::session::Session;
use crate::base::{lock::lock, principal::Principal, session_id::SessionId};

/// The sessions that are open.
#[derive(Default)]
pub struct Peers {
    next: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<SessionId, Weak<Session>>,
    /// The users of each peer id, the first one first: the id belongs to its principal, and nobody
    /// else may speak under it.
    users: HashMap<Arc<str>, Vec<User>>,
    /// The other peer ids under which a session speaks.
    spoken: HashMap<SessionId, Vec<Arc<str>>>,
    /// Peer ids that clients of other relays have used within the last minute, with their principals.
    elsewhere: HashMap<Arc<str>, (Principal, Instant)>,
}

struct User {
    principal: Principal,
    session: SessionId,
    /// It has joined with this id; otherwise it speaks for a peer behind it.
    has_joined: bool,
}

/// How long a peer id belongs to a client of another relay after it was last used.
const ELSEWHERE: Duration = Duration::from_secs(60);
/// How many of these are remembered.
const MAX_ELSEWHERE: usize = 10_000;
/// How many other peers one session may speak for, such as a shared worker's tabs.
const SPOKEN_FOR: usize = 16;

impl Peers {
    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// An id for a new connection.
    pub fn next_id(&self) -> SessionId {
        SessionId(1 + self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Adds a session that has joined. Returns the older session of the same peer id and principal,
    /// which is to be closed.
    pub fn join(&self, session: &Arc<Session>) -> Option<Arc<Session>> {
        let mut table = self.table();
        table.sessions.insert(session.id, Arc::downgrade(session));
        // Nearly every id has one user.
        let new = || Vec::with_capacity(1);
        let users = table.users.entry(session.peer_id.clone()).or_insert_with(new);
        let principal = session.access.principal.clone();
        let same = users.iter_mut().find(|user| user.has_joined && user.principal == principal);
        let older = match same {
            Some(user) => Some(std::mem::replace(&mut user.session, session.id)),
            None => {
                users.push(User { principal, session: session.id, has_joined: true });
                None
            }
        };
        older.and_then(|older| table.sessions.get(&older)?.upgrade())
    }

    /// Removes a session that has ended.
    pub fn leave(&self, session: &Session) {
        let mut table = self.table();
        table.sessions.remove(&session.id);
        let mut ids = table.spoken.remove(&session.id).unwrap_or_default();
        ids.push(session.peer_id.clone());
        for id in ids {
            if let Some(users) = table.users.get_mut(&id) {
                users.retain(|user| user.session != session.id);
                if users.is_empty() {
                    table.users.remove(&id);
                }
            }
        }
    }

    /// The session of that id, while it is open.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.table().sessions.get(&id)?.upgrade()
    }

    /// Claims the peer id `author` for messages of a session: its own id, or that of a peer behind
    /// it, such as a tab behind a shared worker. Returns false if the id belongs to another
    /// principal, or if a peer with this id has joined itself.
    pub fn claim_author(&self, session: &Session, author: &str) -> bool {
        let mut table = self.table();
        let (id, principal) = (session.id, &session.access.principal);
        if let Some(users) = table.users.get(author) {
            let is_theirs = users.first().is_none_or(|first| first.principal == *principal);
            let is_itself = author == &*session.peer_id;
            let is_here =
                |user: &User| user.has_joined && user.session != id && user.principal == *principal;
            return is_theirs && (is_itself || !users.iter().any(is_here));
        }
        if !table.may_be(author, principal) {
            return false;
        }
        let author: Arc<str> = author.into();
        let spoken = table.spoken.entry(id).or_default();
        if spoken.len() < SPOKEN_FOR {
            spoken.push(author.clone());
            let user = User { principal: principal.clone(), session: id, has_joined: false };
            table.users.insert(author, vec![user]);
        }
        true
    }

    /// Claims the peer id `author` for a client of another relay. Returns false if the id belongs
    /// to another principal.
    pub fn claim_elsewhere(&self, author: &str, principal: &Principal) -> bool {
        let mut table = self.table();
        let first = table.users.get(author).and_then(|users| users.first());
        let is_theirs = first.is_none_or(|first| first.principal == *principal);
        if !is_theirs || !table.may_be(author, principal) {
            return false;
        }
        let now = Instant::now();
        if let Some((_, at)) = table.elsewhere.get_mut(author) {
            *at = now;
            return true;
        }
        if table.elsewhere.len() >= MAX_ELSEWHERE {
            table.elsewhere.retain(|_, (_, at)| at.elapsed() < ELSEWHERE);
        }
        if table.elsewhere.len() < MAX_ELSEWHERE {
            table.elsewhere.insert(author.into(), (principal.clone(), now));
        }
        true
    }

    /// All sessions that have joined.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.table().sessions.values().filter_map(Weak::upgrade).collect()
    }

    /// How many sessions have joined.
    pub fn len(&self) -> usize {
        self.table().sessions.len()
    }

    /// Whether no session has joined.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    /// Whether a peer id is not used by a client of another relay, or by the same principal.
    fn may_be(&self, author: &str, principal: &Principal) -> bool {
        let elsewhere = self.elsewhere.get(author);
        elsewhere.is_none_or(|(theirs, at)| theirs == principal || at.elapsed() > ELSEWHERE)
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
        assert!(peers.claim_author(&second, "tab") && !peers.claim_author(&thief, "tab"));
        peers.leave(&second);
        assert!(peers.claim_author(&thief, "tab"), "nobody else is there");
        assert_eq!(peers.all().len(), 1);
        peers.leave(&thief);
        assert!(peers.is_empty());
        assert!(peers.table().users.is_empty());
    }

    #[test]
    fn a_name_belongs_to_one_principal_at_all_relays() {
        let peers = Peers::default();
        let [alice, mallory] = ["alice", "mallory"].map(|name| Principal(name.into()));
        let here = session(&peers, "tab", "alice");
        peers.join(&here);
        assert!(!peers.claim_elsewhere("tab", &mallory) && peers.claim_elsewhere("tab", &alice));
        assert!(peers.claim_elsewhere("phone", &alice));
        assert!(!peers.claim_elsewhere("phone", &mallory));
        let thief = session(&peers, "thief", "mallory");
        assert!(!peers.claim_author(&thief, "phone"), "she uses it at another relay");
        assert!(peers.claim_author(&here, "phone"));
        for n in 0..2 * MAX_ELSEWHERE {
            peers.claim_elsewhere(&n.to_string(), &mallory);
        }
        assert_eq!(peers.table().elsewhere.len(), MAX_ELSEWHERE);
    }

    #[test]
    fn a_shared_worker_speaks_for_its_tabs_and_nobody_else_does() {
        let peers = Peers::default();
        let worker = session(&peers, "worker", "alice");
        let thief = session(&peers, "tab-1", "mallory");
        peers.join(&worker);
        assert!(peers.claim_author(&worker, "tab-1") && peers.claim_author(&worker, "tab-2"));
        peers.join(&thief);
        assert!(peers.claim_author(&worker, "tab-1") && !peers.claim_author(&thief, "tab-1"));
        assert!(!peers.claim_author(&thief, "tab-2") && !peers.claim_author(&thief, "worker"));
        let tab = session(&peers, "tab-2", "alice");
        peers.join(&tab);
        assert!(peers.claim_author(&tab, "tab-2") && !peers.claim_author(&worker, "tab-2"));
        for n in 0..1000 {
            assert!(peers.claim_author(&worker, &format!("tab-of-many-{n}")));
        }
        assert!(peers.table().users.len() < 2 * SPOKEN_FOR);
        for session in [&worker, &thief, &tab] {
            peers.leave(session);
        }
        assert!(peers.table().users.is_empty() && peers.table().spoken.is_empty());
    }
}
