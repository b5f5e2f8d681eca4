//! Limits by the address of clients: connections, handshakes, and memory for unfinished messages.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::Instant,
};

use super::bucket::Bucket;
use crate::{base::lock::lock, config::Rate};

/// Addresses to remember. Beyond this, an idle one whose bucket is fullest is forgotten.
const MAX_ADDRESSES: usize = 50_000;

/// Returns the address under which a client is limited. An IPv6 client is limited by its /64, since
/// one site usually has a whole /64.
pub fn limit_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// A limit by address that is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum AddressLimit {
    Connections,
    Handshakes,
}

/// What each address uses.
#[derive(Debug, Default)]
pub struct Addresses(Mutex<HashMap<IpAddr, Address>>);

#[derive(Debug)]
struct Address {
    /// Open connections and sessions.
    open: [usize; 2],
    /// Bytes of messages that are partially received.
    in_flight: u64,
    handshakes: Bucket,
}

/// What is counted. A connection becomes a session with its upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum SlotKind {
    Connection,
    Session,
}

/// A connection or session, which counts for its address until this is dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    addresses: Arc<Addresses>,
    address: IpAddr,
    kind: SlotKind,
}

impl ConnectionSlot {
    /// Reserves memory for a partially received message. False if its address would then exceed
    /// `most` bytes.
    pub fn reserve(&self, bytes: u64, most: u64) -> bool {
        self.with(|found| {
            let sum = found.in_flight.saturating_add(bytes);
            let fits = sum <= most;
            if fits {
                found.in_flight = sum;
            }
            fits
        })
        .unwrap_or(true)
    }

    /// Releases memory that was reserved.
    pub fn release(&self, bytes: u64) {
        self.with(|found| found.in_flight = found.in_flight.saturating_sub(bytes));
    }

    fn with<T>(&self, change: impl FnOnce(&mut Address) -> T) -> Option<T> {
        lock(&self.addresses.0).get_mut(&self.address).map(change)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let kind = self.kind;
        self.with(|found| {
            let open = found.of(kind);
            *open = open.saturating_sub(1);
        });
    }
}

impl Address {
    fn of(&mut self, kind: SlotKind) -> &mut usize {
        match (kind, &mut self.open) {
            (SlotKind::Connection, [connections, _]) => connections,
            (SlotKind::Session, [_, sessions]) => sessions,
        }
    }
}

impl Addresses {
    /// Counts a connection or session from `address`, of which `most` may be open. `handshakes`
    /// limits the rate of new ones.
    ///
    /// # Errors
    /// The limit that is exceeded.
    pub fn acquire(
        self: &Arc<Self>,
        address: IpAddr,
        kind: SlotKind,
        most: usize,
        handshakes: Option<Rate>,
    ) -> Result<ConnectionSlot, AddressLimit> {
        let now = Instant::now();
        let mut table = lock(&self.0);
        let address = limit_key(address);
        if table.len() >= MAX_ADDRESSES && !table.contains_key(&address) {
            // Fewer connections than addresses are allowed, so some address is idle.
            let idle = table.iter().filter(|(_, found)| found.open == [0, 0]);
            let fullest =
                idle.max_by(|(_, a), (_, b)| a.handshakes.left.total_cmp(&b.handshakes.left));
            if let Some(forgotten) = fullest.map(|(address, _)| *address) {
                table.remove(&forgotten);
            }
        }
        let found = table.entry(address).or_insert_with(|| Address {
            open: [0, 0],
            in_flight: 0,
            handshakes: Bucket::new(now),
        });
        if handshakes.is_some_and(|rate| !found.handshakes.try_take(1, rate, now)) {
            return Err(AddressLimit::Handshakes);
        }
        let open = found.of(kind);
        if *open >= most {
            return Err(AddressLimit::Connections);
        }
        *open += 1;
        Ok(ConnectionSlot { addresses: self.clone(), address, kind })
    }

    /// Returns how many addresses are remembered.
    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether no address is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_handshakes_and_memory_of_an_address_are_limited() {
        let addresses = Arc::new(Addresses::default());
        let acquire = |address: &str| {
            let address = address.parse().expect("an address");
            addresses.acquire(address, SlotKind::Session, 2, Some(Rate::per_second(3)))
        };
        let first = acquire("2001:db8::1").expect("a slot");
        let _second = acquire("2001:db8::2").expect("a slot");
        assert_eq!(acquire("2001:db8::3").expect_err("one /64"), AddressLimit::Connections);
        drop(first);
        let _third = acquire("2001:db8::4").expect("a slot");
        let _other = acquire("2001:db8:0:1::1").expect("another /64");
        let quick = |_| acquire("198.51.100.1").map(drop);
        assert_eq!(
            (0..8).map(quick).filter(Result::is_ok).count(),
            6,
            "the burst is twice the rate"
        );
        assert_eq!(acquire("198.51.100.1").expect_err("too quick"), AddressLimit::Handshakes);
        let connection = addresses
            .acquire([198, 51, 100, 1].into(), SlotKind::Connection, 1, None)
            .expect("connections are counted apart from sessions");
        assert!(connection.reserve(60, 100) && !connection.reserve(60, 100));
        connection.release(60);
        assert!(connection.reserve(100, 100));
    }
}
