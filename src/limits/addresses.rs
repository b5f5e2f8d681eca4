//! Connections by the address that they come from.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::Instant,
};

use super::bucket::Bucket;
use crate::{base::lock::lock, config::Rate};

/// Addresses that are counted; for a further one that of which least is known is forgotten.
const COUNTED: usize = 50_000;

/// What an address is counted as: an IPv6 one by its /64, which is what one site has.
pub fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// Which limit of an address is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum AddressLimit {
    Connections,
    Handshakes,
}

/// Connections by the address that they come from.
#[derive(Debug, Default)]
pub struct Addresses(Mutex<HashMap<IpAddr, Address>>);

#[derive(Debug)]
struct Address {
    open: [usize; 2],
    /// Bytes of messages that are on their way.
    arriving: u64,
    handshakes: Bucket,
}

/// What is counted at an address. A session has been a connection until its upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Connection,
    Session,
}

/// A connection that is counted at its address for as long as this lives.
#[derive(Debug)]
pub struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
    kind: Kind,
}

impl Place {
    /// Count bytes of a message that is on its way, if those of its address are `most` then.
    pub fn hold(&self, bytes: u64, most: u64) -> bool {
        self.with(|found| {
            let sum = found.arriving.saturating_add(bytes);
            let is_held = sum <= most;
            if is_held {
                found.arriving = sum;
            }
            is_held
        })
        .unwrap_or(true)
    }

    /// They are not held any more.
    pub fn give_back(&self, bytes: u64) {
        self.with(|found| found.arriving = found.arriving.saturating_sub(bytes));
    }

    fn with<T>(&self, change: impl FnOnce(&mut Address) -> T) -> Option<T> {
        lock(&self.addresses.0).get_mut(&self.address).map(change)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let kind = self.kind;
        self.with(|found| {
            let open = found.of(kind);
            *open = open.saturating_sub(1);
        });
    }
}

impl Address {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match (kind, &mut self.open) {
            (Kind::Connection, [connections, _]) => connections,
            (Kind::Session, [_, sessions]) => sessions,
        }
    }
}

impl Addresses {
    /// Count a connection or session from `address`: at most `most` of them, and `handshakes` new ones if that is limited.
    ///
    /// # Errors
    /// The limit that it is over.
    pub fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        kind: Kind,
        most: usize,
        handshakes: Option<Rate>,
    ) -> Result<Place, AddressLimit> {
        let now = Instant::now();
        let mut table = lock(&self.0);
        let address = counted_as(address);
        if table.len() >= COUNTED && !table.contains_key(&address) {
            // There are fewer connections than places: one of them is nobody's now.
            let idle = table.iter().filter(|(_, found)| found.open == [0, 0]);
            let fullest =
                idle.max_by(|(_, a), (_, b)| a.handshakes.left.total_cmp(&b.handshakes.left));
            if let Some(forgotten) = fullest.map(|(address, _)| *address) {
                table.remove(&forgotten);
            }
        }
        let found = table.entry(address).or_insert_with(|| Address {
            open: [0, 0],
            arriving: 0,
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
        Ok(Place { addresses: self.clone(), address, kind })
    }

    /// How many addresses are counted.
    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_handshakes() {
        let addresses = Arc::new(Addresses::default());
        let enter = |address: &str| {
            let address = address.parse().expect("an address");
            addresses.enter(address, Kind::Session, 2, Some(Rate::a_second(3)))
        };
        let first = enter("2001:db8::1").expect("a place");
        let _second = enter("2001:db8::2").expect("a place");
        assert_eq!(enter("2001:db8::3").expect_err("one /64"), AddressLimit::Connections);
        drop(first);
        let _third = enter("2001:db8::4").expect("a place");
        let _other = enter("2001:db8:0:1::1").expect("another /64");
        let quick = |_| enter("198.51.100.1").map(drop);
        assert_eq!((0..8).map(quick).filter(Result::is_ok).count(), 6, "twice the rate at once");
        assert_eq!(enter("198.51.100.1").expect_err("too quick"), AddressLimit::Handshakes);
        let connection = addresses
            .enter([198, 51, 100, 1].into(), Kind::Connection, 1, None)
            .expect("none of its sessions");
        assert!(connection.hold(60, 100) && !connection.hold(60, 100));
        connection.give_back(60);
        assert!(connection.hold(100, 100));
    }
}
