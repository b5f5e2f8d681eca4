//! A cache of slim forms of uploaded bundles.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::base::lock::lock;

/// The largest size of all cached slim forms together, in bytes.
const MAX_BYTES: usize = 16 << 20;

/// Slim forms by ETag. The oldest are evicted first.
#[derive(Debug, Default)]
pub struct SlimCache {
    /// The newest last.
    entries: Mutex<VecDeque<(String, Bytes)>>,
}

impl SlimCache {
    fn entries(&self) -> MutexGuard<'_, VecDeque<(String, Bytes)>> {
        lock(&self.entries)
    }

    /// Returns the slim form of the bundle with this ETag, if it is cached.
    pub fn get(&self, etag: &str) -> Option<Bytes> {
        self.entries().iter().find(|(known, _)| known == etag).map(|(_, slim)| slim.clone())
    }

    /// Adds a slim form, and evicts the oldest while the cache is too large.
    pub fn insert(&self, etag: String, slim: Bytes) {
        let mut entries = self.entries();
        entries.retain(|(known, _)| *known != etag);
        entries.push_back((etag, slim));
        while entries.iter().map(|(_, slim)| slim.len()).sum::<usize>() > MAX_BYTES {
            entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_slim_forms_are_cached_up_to_the_limit() {
        let cache = SlimCache::default();
        for n in 0..5 {
            cache.insert(n.to_string(), Bytes::from(vec![n; MAX_BYTES / 4]));
        }
        assert_eq!(cache.get("0"), None);
        assert_eq!(cache.get("4").map(|slim| slim.len()), Some(MAX_BYTES / 4));
        cache.insert("large".to_owned(), Bytes::from(vec![0; MAX_BYTES + 1]));
        assert_eq!(cache.entries().len(), 0);
    }
}
