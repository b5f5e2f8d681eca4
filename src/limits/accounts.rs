//! Who pays for what is stored, and what each has had stored.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{addresses::counted_as, bucket::Bucket};
use crate::{
    base::lock::lock,
    config::{Limits, Rate},
};

/// Principals that are counted; for a further one that of which least is known is forgotten.
const COUNTED: usize = 50_000;
/// `limits.stored_bytes` is for so long.
const STORED_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);

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
    use super::*;
    use crate::config::Size;

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
}
