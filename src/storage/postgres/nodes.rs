//! The relays that use the database, and how often each has written: what was seen of that tells
//! whether the database has lost something since.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio_postgres::{Client, Statement};

use crate::storage::relay_report::SeenRelay;

/// The id of one run of a relay.
pub(super) type NodeId = [u8; 16];

/// A relay that was seen or heard within this time may be running.
pub(super) const PRESENT: Duration = Duration::from_secs(60);
/// A row that is missing was deleted, and not lost, if its relay had not been seen for this long.
const FORGOTTEN: f64 = 12.0 * 3600.0;

/// The relays as they were at one time.
pub(super) struct Nodes {
    /// Which run of the server that was: it changes with a restart, a crash, a promotion and a
    /// restore.
    server: String,
    /// How often each relay had written, and how many seconds ago it had been seen.
    writes: HashMap<NodeId, (i64, f64)>,
    /// Relays that may be running, besides this one.
    pub(super) others: usize,
    /// The server's time in milliseconds since 1970.
    pub(super) time: i64,
    /// How full the server's queue of notifications is, up to 1.
    pub(super) queue: f64,
    /// The relays that may be running, this one included.
    pub(super) present: Vec<SeenRelay>,
    read_at: Instant,
}

impl Nodes {
    /// No relay of no server.
    pub(super) fn none() -> Self {
        let (server, writes, read_at) = (String::new(), HashMap::new(), Instant::now());
        Self { server, writes, others: 0, time: 0, queue: 0.0, present: Vec::new(), read_at }
    }

    /// Reads what is known of the relays, with the statement `statements::NODES`.
    pub(super) async fn read(
        client: &Client,
        statement: &Statement,
        own: &NodeId,
    ) -> Result<Self, tokio_postgres::Error> {
        let mut nodes = Self::none();
        for row in client.query(statement, &[]).await? {
            (nodes.server, nodes.time) = (row.try_get(3)?, row.try_get(4)?);
            nodes.queue = row.try_get(5)?;
            let Ok(id) = NodeId::try_from(row.try_get::<_, &[u8]>(0)?) else { continue };
            let (writes, age): (i64, f64) = (row.try_get(1)?, row.try_get(2)?);
            nodes.writes.insert(id, (writes, age));
            if age < PRESENT.as_secs_f64() {
                nodes.others += usize::from(id != *own);
                let (name, version): (&str, &str) = (row.try_get(6)?, row.try_get(7)?);
                nodes.present.push(SeenRelay::new(name, version, age, row.try_get(8)?));
            }
        }
        Ok(nodes)
    }

    /// Whether the same run of the server answers now.
    pub(super) fn is_same_server(&self, now: &Self) -> bool {
        self.server == now.server
    }

    /// Whether something may be missing now that was read after this.
    ///
    /// It is if a relay has written less than it had. Where others were running and the server is
    /// another one, there may have been more that was read and not counted yet.
    pub(super) fn has_lost(&self, now: &Self) -> bool {
        let since = self.read_at.elapsed().as_secs_f64();
        let has_fewer = |(id, (writes, age)): (&NodeId, &(i64, f64))| match now.writes.get(id) {
            Some((now, _)) => now < writes,
            None => age + since < FORGOTTEN,
        };
        // Nothing was read yet, or since the last loss.
        if self.server.is_empty() {
            return false;
        }
        let is_alone = self.others == 0 && now.others == 0;
        self.writes.iter().any(has_fewer) || (!is_alone && !self.is_same_server(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(server: &str, writes: &[(u8, i64)], others: usize) -> Nodes {
        let writes = writes.iter().map(|(id, writes)| ([*id; 16], (*writes, 1.0))).collect();
        Nodes { server: server.to_owned(), writes, others, ..Nodes::none() }
    }

    #[test]
    fn fewer_writes_mean_a_loss() {
        let seen = nodes("a", &[(1, 5), (2, 7)], 0);
        assert!(!seen.has_lost(&nodes("b", &[(1, 5), (2, 9), (3, 1)], 0)));
        assert!(seen.has_lost(&nodes("a", &[(1, 5), (2, 6)], 1)));
        assert!(seen.has_lost(&nodes("a", &[(1, 5)], 0)));
        let mut long_ago = nodes("a", &[(1, 5)], 0);
        long_ago.writes.insert([2; 16], (7, 2.0 * FORGOTTEN));
        assert!(!long_ago.has_lost(&nodes("a", &[(1, 5)], 0)), "it was swept");
    }

    #[test]
    fn with_others_a_restart_may_be_a_loss() {
        let seen = nodes("a", &[(1, 5), (2, 7)], 1);
        assert!(seen.has_lost(&nodes("b", &[(1, 5), (2, 7)], 1)));
        assert!(!seen.has_lost(&nodes("a", &[(1, 5), (2, 7)], 1)));
        assert!(!Nodes::none().has_lost(&nodes("b", &[(1, 5), (2, 7)], 1)));
        let alone = nodes("a", &[(1, 5)], 0);
        assert!(alone.has_lost(&nodes("b", &[(1, 5), (2, 7)], 1)), "one has come since");
    }
}
