//! How many of something are open.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_counted_before_it_is_let_in() {
        let counter = Arc::new(Counter::default());
        let (first, _second) = (counter.enter(2), counter.enter(2));
        assert!(first.is_some() && counter.enter(2).is_none());
        let _third = counter.enter(3).expect("a reload holds at once");
        drop(first);
        assert!(counter.enter(2).is_none() && counter.enter(3).is_some());
    }
}
