//! How large a document may be: in storage, in changes, and in memory.

use super::{
    chunk::StoredChunk,
    load::joined,
    unpacked::{self, NotUnpacked, Origin, Unpacked},
};
use crate::config::{Config, Size};

/// How large a document may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxDocument {
    /// Bytes in storage (`storage.max_document`).
    pub stored: Size,
    /// Number of changes (`storage.max_changes`).
    pub changes: u64,
    /// Bytes in memory (`sync.max_inflated`). A large stored document may use more.
    pub inflated: Size,
}

impl MaxDocument {
    /// Returns the configured limits.
    pub fn of(config: &Config) -> Self {
        let (storage, sync) = (&config.storage, &config.sync);
        let (stored, changes) = (storage.max_document, storage.max_changes);
        Self { stored, changes, inflated: sync.max_inflated }
    }

    /// Checks a document of `size` stored bytes, which unpack to this.
    ///
    /// # Errors
    /// The limit that it exceeds, for a log line.
    pub fn check(&self, size: usize, unpacked: Unpacked) -> Result<(), String> {
        if size as u64 > self.stored.0 {
            return Err(format!("{size} bytes exceed {} (storage.max_document)", self.stored));
        }
        if unpacked.changes > self.changes {
            let changes = unpacked.changes;
            return Err(format!("{changes} changes exceed {} (storage.max_changes)", self.changes));
        }
        let (bytes, allowed) = (unpacked.bytes, self.allowed(size));
        if bytes > allowed {
            let (limit, operations) = (self.inflated, unpacked.operations);
            return Err(format!("it {}", NotUnpacked::TooMuch { limit, operations, bytes }));
        }
        Ok(())
    }

    /// How many bytes in memory a stored document of this size may take.
    fn allowed(&self, size: usize) -> u64 {
        unpacked::allowed(size, Origin::Storage, self.inflated)
    }

    /// Checks a loaded document by the memory that it takes now, which is less than unpacking it
    /// took.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_resident(&self, size: usize, unpacked: &Unpacked) -> Result<(), String> {
        self.check(size, Unpacked { bytes: unpacked.resident(), ..*unpacked })
    }

    /// Checks chunks that are not unpacked yet. Returns what they unpack to.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_chunks(&self, chunks: &[StoredChunk]) -> Result<Unpacked, String> {
        let size: usize = chunks.iter().map(|(_, data)| data.len()).sum();
        self.check(size, Unpacked::default())?;
        let of = |chunks: &[u8]| match unpacked::of(chunks, Origin::Storage, self.inflated) {
            Ok(unpacked) => Ok(unpacked),
            Err(more @ NotUnpacked::TooMuch { .. }) => Err(format!("it {more}")),
            // Loading the document moves broken chunks aside.
            Err(NotUnpacked::Malformed) => Ok(Unpacked::default()),
        };
        let unpacked = match chunks {
            [(_, only)] => of(only)?,
            _ => of(&joined(chunks))?,
        };
        self.check(size, unpacked)?;
        Ok(unpacked)
    }
}
