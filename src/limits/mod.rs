//! What one connection, one address and one principal may use: rates as token buckets, and who is counted.
//!
//! governor, the crate for such limits, fixes its quota when a limiter is made, so that a reload could not change it, and
//! takes nothing that is larger than its burst, as a message may be. A bucket here is two numbers, and is told the rate.
//! [`turns`] are permits for long work, which principals take in turn.

pub mod turns;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    base::lock::lock,
    config::{Limits, Rate},
};

/// Addresses and principals that are counted; for a further one that of which least is known is forgotten.
const COUNTED: usize = 50_000;
/// `limits.stored_bytes` is for so long.
const STORED_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is left of a rate. It may go into debt, which has to be waited for.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { left: f64::INFINITY, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + elapsed * a_second(rate)).min(burst(rate));
    }

    /// Take `amount`, whether or not it is there. Returns how long to wait until it is.
    pub fn take(&mut self, amount: u64, rate: Rate, now: Instant) -> Duration {
        self.refill(rate, now);
        self.left -= as_f64(amount);
        if self.left >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.left / a_second(rate)).unwrap_or(Duration::MAX)
    }

    /// Take `amount` if something is left. A part of it is enough, so that nothing is too large for ever.
    pub fn try_take(&mut self, amount: u64, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= as_f64(amount);
        }
        is_left
    }

    /// Put back what was taken for nothing.
    pub fn give_back(&mut self, amount: u64) {
        self.left += as_f64(amount);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a limit needs no more than 53 bits")]
fn as_f64(amount: u64) -> f64 {
    amount as f64
}

fn a_second(rate: Rate) -> f64 {
    as_f64(rate.count) / rate.per.as_secs_f64()
}

/// What may come at once: of a rate a second twice as much, of longer ones all.
fn burst(rate: Rate) -> f64 {
    as_f64(rate.count) * (2.0 / rate.per.as_secs_f64()).max(1.0)
}

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

/// How many of something are open. They are counted before they are let in, so that no burst gets past the limit.
#[derive(Debug, Default)]
pub struct Counter(AtomicUsize);

impl Counter {
    /// Counts one more for as long as what this returns lives; none if there are `most` already.
    pub fn enter(self: &Arc<Self>, most: usize) -> Option<Permit> {
        let more = |open: usize| (open < most).then_some(open + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Permit(self.clone()))
    }
}

/// One of what a [`Counter`] counts, for as long as this lives.
#[derive(Debug)]
pub struct Permit(Arc<Counter>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
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

/// Who pays for what is stored: a principal that has signed in, or an address. None for what comes through a proxy that
/// does not tell from where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account(Option<Arc<str>>);

impl Account {
    /// Of a principal that has signed in.
    pub fn named(name: &Arc<str>) -> Self {
        Self(Some(name.clone()))
    }

    /// Whether it is known whose it is.
    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Of an address.
    pub fn at(address: Option<IpAddr>) -> Self {
        Self(address.map(|address| counted_as(address).to_string().into()))
    }
}

/// What each principal has had stored.
#[derive(Debug, Default)]
pub struct Principals(Mutex<HashMap<Account, Stored>>);

#[derive(Debug)]
struct Stored {
    new_documents: Bucket,
    bytes: Bucket,
}

impl Principals {
    fn with<T>(
        &self,
        account: &Account,
        take: impl FnOnce(&mut Stored, Instant) -> T,
    ) -> Option<T> {
        account.0.as_ref()?;
        let now = Instant::now();
        let mut table = lock(&self.0);
        if table.len() >= COUNTED && !table.contains_key(account) {
            let fullest =
                table.iter().max_by(|(_, a), (_, b)| a.bytes.left.total_cmp(&b.bytes.left));
            if let Some(forgotten) = fullest.map(|(account, _)| account.clone()) {
                table.remove(&forgotten);
            }
        }
        let stored = table
            .entry(account.clone())
            .or_insert_with(|| Stored { new_documents: Bucket::new(now), bytes: Bucket::new(now) });
        Some(take(stored, now))
    }

    /// Count new documents, or none. False if there were too many of late.
    pub fn may_create(&self, account: &Account, documents: u64, limits: &Limits) -> bool {
        let take = |stored: &mut Stored, now| {
            stored.new_documents.try_take(documents, limits.new_documents, now)
        };
        self.with(account, take).unwrap_or(true)
    }

    /// Begins a charge to `account` that is refunded unless it is kept.
    pub fn charge(self: &Arc<Self>, account: Account) -> Charge {
        Charge { principals: self.clone(), account, documents: 0, bytes: 0 }
    }

    /// Count bytes that are to be stored. False if there were too many of late.
    pub fn may_store(&self, account: &Account, bytes: u64, limits: &Limits) -> bool {
        let take =
            |stored: &mut Stored, now| stored.bytes.try_take(bytes, stored_bytes(limits), now);
        self.with(account, take).unwrap_or(true)
    }
}

/// What something that may still fail is charged to its account. Dropping it refunds all that was not kept.
#[derive(Debug)]
pub struct Charge {
    principals: Arc<Principals>,
    account: Account,
    documents: u64,
    bytes: u64,
}

impl Charge {
    /// Charges bytes that are to be stored. False if `limits.stored_bytes` is used up.
    pub fn bytes(&mut self, bytes: u64, limits: &Limits) -> bool {
        let is_charged = self.principals.may_store(&self.account, bytes, limits);
        self.bytes += if is_charged { bytes } else { 0 };
        is_charged
    }

    /// Charges new documents. False if `limits.new_documents` is used up.
    pub fn documents(&mut self, documents: u64, limits: &Limits) -> bool {
        let is_charged = self.principals.may_create(&self.account, documents, limits);
        self.documents += if is_charged { documents } else { 0 };
        is_charged
    }

    /// Keeps the charge for bytes: they are stored.
    pub fn keep_bytes(&mut self) {
        self.bytes = 0;
    }

    /// Keeps the charge for this many documents, those that were new.
    pub fn keep_documents(&mut self, new: u64) {
        self.documents = self.documents.saturating_sub(new);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let (documents, bytes) = (self.documents, self.bytes);
        if documents > 0 || bytes > 0 {
            self.principals.with(&self.account, |stored, _| {
                stored.new_documents.give_back(documents);
                stored.bytes.give_back(bytes);
            });
        }
    }
}

fn stored_bytes(limits: &Limits) -> Rate {
    Rate::bytes_in(limits.stored_bytes, STORED_WITHIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Size;

    #[test]
    fn what_is_over_the_rate_has_to_be_waited_for() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let rate = Rate::a_second(10);
        assert_eq!(bucket.take(20, rate, now), Duration::ZERO, "twice a second's at once");
        assert_eq!(bucket.take(5, rate, now), Duration::from_millis(500));
        let later = now + Duration::from_millis(500);
        assert!(!bucket.try_take(1, rate, later), "the debt is paid, and nothing is left");
        assert!(bucket.try_take(1, rate, later + Duration::from_millis(101)));
        let doubled = Rate::a_second(20);
        assert!(
            bucket.try_take(1, doubled, later + Duration::from_millis(200)),
            "a reload holds at once"
        );
        let mut hourly = Bucket::new(now);
        assert!((0..3).all(|_| hourly.try_take(1, Rate::an_hour(3), now)));
        assert!(!hourly.try_take(1, Rate::an_hour(3), now));
        let mut large = Bucket::new(now);
        assert!(large.try_take(1_000_000, rate, now), "nothing is too large for a full one");
        assert!(!large.try_take(1, rate, now + Duration::from_secs(60)));
    }

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

    #[test]
    fn what_is_open_is_counted_before_it_is_let_in() {
        let counter = Arc::new(Counter::default());
        let (first, _second) = (counter.enter(2), counter.enter(2));
        assert!(first.is_some() && counter.enter(2).is_none());
        let _third = counter.enter(3).expect("a reload holds at once");
        drop(first);
        assert!(counter.enter(2).is_none() && counter.enter(3).is_some());
    }

    #[test]
    fn principals_are_counted_apart() {
        let principals = Principals::default();
        let limits = Limits {
            new_documents: Rate::an_hour(2),
            stored_bytes: Size(100),
            ..Limits::default()
        };
        let ann = Account::named(&"token:ann".into());
        assert!(
            principals.may_create(&ann, 2, &limits) && !principals.may_create(&ann, 1, &limits)
        );
        assert!(principals.may_create(&Account::named(&"token:bob".into()), 1, &limits));
        assert!(
            principals.may_store(&ann, 100, &limits) && !principals.may_store(&ann, 1, &limits)
        );
        let unknown = Account::at(None);
        assert!((0..9).all(|_| principals.may_create(&unknown, 1, &limits)));
    }

    #[test]
    fn a_charge_that_is_not_kept_is_refunded() {
        let principals = Arc::new(Principals::default());
        let limits = Limits {
            new_documents: Rate::an_hour(4),
            stored_bytes: Size(100),
            ..Limits::default()
        };
        let ann = Account::named(&"token:ann".into());
        for _ in 0..5 {
            let mut failed = principals.charge(ann.clone());
            assert!(failed.bytes(60, &limits) && failed.bytes(40, &limits));
            assert!(!failed.bytes(1, &limits), "all is used, and this is not charged");
            assert!(failed.documents(4, &limits) && !failed.documents(1, &limits));
        }
        let mut stored = principals.charge(ann.clone());
        assert!(stored.bytes(100, &limits) && stored.documents(4, &limits));
        stored.keep_bytes();
        stored.keep_documents(3);
        drop(stored);
        let mut next = principals.charge(ann);
        assert!(!next.bytes(1, &limits), "what is stored stays charged");
        assert!(next.documents(1, &limits) && !next.documents(1, &limits), "one was not new");
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_and_its_burst(
            steps in proptest::collection::vec((0u64..200, 1u64..50), 1..100), count in 1u64..100,
        ) {
            let start = Instant::now();
            let (mut now, mut bucket, mut passed, mut last) = (start, Bucket::new(start), 0, 0);
            for (pause, amount) in steps {
                now += Duration::from_millis(pause);
                if bucket.try_take(amount, Rate::a_second(count), now) {
                    passed += amount;
                    last = amount;
                }
            }
            let most = 2.0 * count as f64 + count as f64 * (now - start).as_secs_f64();
            prop_assert!((passed - last) as f64 <= most + 1e-6, "{passed} of {most}");
        }
    }
}
