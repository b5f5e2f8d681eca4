//! Quotas of what each account may store: new documents and bytes.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{addresses::limit_key, bucket::Bucket};
use crate::{
    base::lock::lock,
    config::{Limits, Rate},
};

/// Accounts to remember. Beyond this, the one whose quota of bytes is fullest is forgotten.
const MAX_ACCOUNTS: usize = 50_000;
/// The period of `limits.stored_bytes`.
const STORED_BYTES_PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whose quota something is charged to: a principal that has signed in, or an address. Has no owner
/// if a proxy does not report the address of the client; such an account has no limits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account(Option<Arc<str>>);

impl Account {
    /// Returns the account of a principal that has signed in.
    pub fn named(name: &Arc<str>) -> Self {
        Self(Some(name.clone()))
    }

    /// Whether the owner is known.
    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the account of an address, if it is known.
    pub fn at(address: Option<IpAddr>) -> Self {
        Self(address.map(|address| limit_key(address).to_string().into()))
    }
}

/// What each account has stored.
#[derive(Debug, Default)]
pub struct Quotas(Mutex<HashMap<Account, Stored>>);

#[derive(Debug)]
struct Stored {
    new_documents: Bucket,
    bytes: Bucket,
}

impl Quotas {
    fn with<T>(
        &self,
        account: &Account,
        take: impl FnOnce(&mut Stored, Instant) -> T,
    ) -> Option<T> {
        account.0.as_ref()?;
        let now = Instant::now();
        let mut table = lock(&self.0);
        if table.len() >= MAX_ACCOUNTS && !table.contains_key(account) {
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

    /// Charges new documents. False, and nothing is charged, if the quota is used up.
    fn take_documents(&self, account: &Account, documents: u64, limits: &Limits) -> bool {
        let take = |stored: &mut Stored, now| {
            stored.new_documents.try_take(documents, limits.new_documents, now)
        };
        self.with(account, take).unwrap_or(true)
    }

    /// Begins a charge to `account` that is refunded unless it is kept.
    pub fn charge(self: &Arc<Self>, account: Account) -> Charge {
        Charge { quotas: self.clone(), account, documents: 0, bytes: 0 }
    }

    /// Charges bytes to be stored. False, and nothing is charged, if the quota is used up.
    fn take_bytes(&self, account: &Account, bytes: u64, limits: &Limits) -> bool {
        let take =
            |stored: &mut Stored, now| stored.bytes.try_take(bytes, stored_bytes(limits), now);
        self.with(account, take).unwrap_or(true)
    }
}

/// A charge for something that may still fail. Dropping it refunds all that was not kept.
#[derive(Debug)]
pub struct Charge {
    quotas: Arc<Quotas>,
    account: Account,
    documents: u64,
    bytes: u64,
}

impl Charge {
    /// Charges bytes that are to be stored. False if `limits.stored_bytes` is used up.
    pub fn bytes(&mut self, bytes: u64, limits: &Limits) -> bool {
        let is_charged = self.quotas.take_bytes(&self.account, bytes, limits);
        self.bytes += if is_charged { bytes } else { 0 };
        is_charged
    }

    /// Charges new documents. False if `limits.new_documents` is used up.
    pub fn documents(&mut self, documents: u64, limits: &Limits) -> bool {
        let is_charged = self.quotas.take_documents(&self.account, documents, limits);
        self.documents += if is_charged { documents } else { 0 };
        is_charged
    }

    /// Keeps the charge for bytes: they are stored.
    pub fn keep_bytes(&mut self) {
        self.bytes = 0;
    }

    /// Keeps the charge for this many documents, which were new.
    pub fn keep_documents(&mut self, new: u64) {
        self.documents = self.documents.saturating_sub(new);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let (documents, bytes) = (self.documents, self.bytes);
        if documents > 0 || bytes > 0 {
            self.quotas.with(&self.account, |stored, _| {
                stored.new_documents.refund(documents);
                stored.bytes.refund(bytes);
            });
        }
    }
}

fn stored_bytes(limits: &Limits) -> Rate {
    Rate::bytes_per(limits.stored_bytes, STORED_BYTES_PERIOD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    #[test]
    fn each_account_has_its_own_quota() {
        let quotas = Quotas::default();
        let limits = Limits {
            new_documents: Rate::per_hour(2),
            stored_bytes: Size(100),
            ..Limits::default()
        };
        let ann = Account::named(&"token:ann".into());
        assert!(
            quotas.take_documents(&ann, 2, &limits) && !quotas.take_documents(&ann, 1, &limits)
        );
        assert!(quotas.take_documents(&Account::named(&"token:bob".into()), 1, &limits));
        assert!(quotas.take_bytes(&ann, 100, &limits) && !quotas.take_bytes(&ann, 1, &limits));
        let unknown = Account::at(None);
        assert!((0..9).all(|_| quotas.take_documents(&unknown, 1, &limits)));
    }

    #[test]
    fn a_charge_that_is_not_kept_is_refunded() {
        let quotas = Arc::new(Quotas::default());
        let limits = Limits {
            new_documents: Rate::per_hour(4),
            stored_bytes: Size(100),
            ..Limits::default()
        };
        let ann = Account::named(&"token:ann".into());
        for _ in 0..5 {
            let mut failed = quotas.charge(ann.clone());
            assert!(failed.bytes(60, &limits) && failed.bytes(40, &limits));
            assert!(!failed.bytes(1, &limits), "the quota is used up, and this is not charged");
            assert!(failed.documents(4, &limits) && !failed.documents(1, &limits));
        }
        let mut stored = quotas.charge(ann.clone());
        assert!(stored.bytes(100, &limits) && stored.documents(4, &limits));
        stored.keep_bytes();
        stored.keep_documents(3);
        drop(stored);
        let mut next = quotas.charge(ann);
        assert!(!next.bytes(1, &limits), "stored bytes stay charged");
        assert!(next.documents(1, &limits) && !next.documents(1, &limits), "one was not new");
    }
}
