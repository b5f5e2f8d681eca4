//! Counts what is open, up to a limit.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The number of open connections or sessions. Each takes a permit before it is admitted, so that
/// no burst exceeds the limit.
#[derive(Debug, Default)]
pub struct Counter(AtomicUsize);

impl Counter {
    /// Returns a permit, or `None` if `most` are taken. The limit is a parameter, so that a reload
    /// can change it.
    pub fn try_acquire(self: &Arc<Self>, most: usize) -> Option<Permit> {
        let more = |open: usize| (open < most).then_some(open + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Permit(self.clone()))
    }
}

/// Counts as one in a [`Counter`] until it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Counter>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_permits_are_given_than_the_limit() {
        let counter = Arc::new(Counter::default());
        let (first, _second) = (counter.try_acquire(2), counter.try_acquire(2));
        assert!(first.is_some() && counter.try_acquire(2).is_none());
        let _third = counter.try_acquire(3).expect("a higher limit applies at once");
        drop(first);
        assert!(counter.try_acquire(2).is_none() && counter.try_acquire(3).is_some());
    }
}
