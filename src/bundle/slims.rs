//! Slim forms of uploaded bundles that were made of late.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::base::lock::lock;

/// What all that are kept may take.
const MOST: usize = 16 << 20;

/// The slim forms, the latest last.
#[derive(Debug, Default)]
pub struct Slims {
    kept: Mutex<VecDeque<(String, Bytes)>>,
}

impl Slims {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(String, Bytes)>> {
        lock(&self.kept)
    }

    /// The one of this ETag.
    pub fn get(&self, etag: &str) -> Option<Bytes> {
        self.kept().iter().find(|(known, _)| known == etag).map(|(_, slim)| slim.clone())
    }

    /// Keep one, and forget the oldest.
    pub fn keep(&self, etag: String, slim: Bytes) {
        let mut kept = self.kept();
        kept.retain(|(known, _)| *known != etag);
        kept.push_back((etag, slim));
        while kept.iter().map(|(_, slim)| slim.len()).sum::<usize>() > MOST {
            kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_within_their_limit() {
        let slims = Slims::default();
        for n in 0..5 {
            slims.keep(n.to_string(), Bytes::from(vec![n; MOST / 4]));
        }
        assert_eq!(slims.get("0"), None);
        assert_eq!(slims.get("4").map(|slim| slim.len()), Some(MOST / 4));
        slims.keep("large".to_owned(), Bytes::from(vec![0; MOST + 1]));
        assert_eq!(slims.kept().len(), 0);
    }
}
