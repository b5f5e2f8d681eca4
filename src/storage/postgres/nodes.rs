//! The relays that use the database, and how often each has written: what was seen of that tells
//! whether the database has lost something since.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::statements::NODES;

/// The id of one run of a relay.
pub(super) type NodeId = [u8; 16];

/// A relay that was there within this many seconds may be running.
const PRESENT: f64 = 60.0;

/// The relays as they were at one time.
#[derive(Default)]
pub(super) struct Nodes {
    /// Which run of the server that was: it changes with a restart, a crash, a promotion and a
    /// restore.
    server: String,
    /// How often each relay had written.
    writes: HashMap<NodeId, i64>,
    /// Relays that may be running, besides this one.
    pub(super) others: usize,
}

impl Nodes {
    /// Reads what is known of the relays.
    pub(super) async fn read(client: &Client, own: &NodeId) -> Result<Self, tokio_postgres::Error> {
        let mut nodes = Self::default();
        for row in client.query(NODES, &[]).await? {
            nodes.server = row.try_get(3)?;
            let Ok(id) = NodeId::try_from(row.try_get::<_, &[u8]>(0)?) else { continue };
            nodes.writes.insert(id, row.try_get(1)?);
            if id != *own && row.try_get::<_, f64>(2)? < PRESENT {
                nodes.others += 1;
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
        let has_fewer =
            |(id, writes): (&NodeId, &i64)| now.writes.get(id).is_none_or(|n| n < writes);
        self.writes.iter().any(has_fewer) || (self.others > 0 && !self.is_same_server(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(server: &str, writes: &[(u8, i64)], others: usize) -> Nodes {
        let writes = writes.iter().map(|(id, writes)| ([*id; 16], *writes)).collect();
        Nodes { server: server.to_owned(), writes, others }
    }

    #[test]
    fn fewer_writes_mean_a_loss() {
        let seen = nodes("a", &[(1, 5), (2, 7)], 0);
        assert!(!seen.has_lost(&nodes("b", &[(1, 5), (2, 9), (3, 1)], 1)));
        assert!(seen.has_lost(&nodes("a", &[(1, 5), (2, 6)], 1)));
        assert!(seen.has_lost(&nodes("a", &[(1, 5)], 0)));
    }

    #[test]
    fn with_others_a_restart_may_be_a_loss() {
        let seen = nodes("a", &[(1, 5), (2, 7)], 1);
        assert!(seen.has_lost(&nodes("b", &[(1, 5), (2, 7)], 1)));
        assert!(!seen.has_lost(&nodes("a", &[(1, 5), (2, 7)], 1)));
    }
}
