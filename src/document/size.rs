//! How large a document may be: as it is stored, in changes, and in memory.

use super::{
    load::joined,
    unpacked::{self, NotUnpacked, Origin, Unpacked},
};
use crate::{
    config::{Config, Size},
    document::chunk::StoredChunk,
};

/// How large a document may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxDocument {
    /// As it is stored (`storage.max_document`).
    pub stored: Size,
    /// Changes in it (`storage.max_changes`).
    pub changes: u64,
    /// In memory, where its size does not explain more (`sync.max_inflated`).
    pub inflated: Size,
}

impl MaxDocument {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        let (storage, sync) = (&config.storage, &config.sync);
        let (stored, changes) = (storage.max_document, storage.max_changes);
        Self { stored, changes, inflated: sync.max_inflated }
    }

    /// Which limit a document is over: its size as it is stored, and what that unpacks to.
    ///
    /// # Errors
    /// That one, for a log line.
    pub fn check(&self, size: usize, unpacked: Unpacked) -> Result<(), String> {
        if size as u64 > self.stored.0 {
            return Err(format!(
                "{size} bytes are more than {} (storage.max_document)",
                self.stored
            ));
        }
        if unpacked.changes > self.changes {
            let changes = unpacked.changes;
            return Err(format!(
                "{changes} changes are more than {} (storage.max_changes)",
                self.changes
            ));
        }
        let (bytes, allowed) = (unpacked.bytes, self.allowed(size));
        if bytes > allowed {
            let (limit, operations) = (self.inflated, unpacked.operations);
            return Err(format!("it {}", NotUnpacked::TooMuch { limit, operations, bytes }));
        }
        Ok(())
    }

    /// What a stored document of that size may take in memory.
    fn allowed(&self, size: usize) -> u64 {
        unpacked::allowed(size, Origin::Storage, self.inflated)
    }

    /// The same for a document that is loaded, and takes what it really takes.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_resident(&self, size: usize, unpacked: &Unpacked) -> Result<(), String> {
        self.check(size, Unpacked { bytes: unpacked.resident(), ..*unpacked })
    }

    /// The same of chunks that are not unpacked yet. Returns what they unpack to.
    pub fn check_chunks(&self, chunks: &[StoredChunk]) -> Result<Unpacked, String> {
        let size: usize = chunks.iter().map(|(_, data)| data.len()).sum();
        self.check(size, Unpacked::default())?;
        let of = |chunks: &[u8]| match unpacked::of(chunks, Origin::Storage, self.inflated) {
            Ok(unpacked) => Ok(unpacked),
            Err(more @ NotUnpacked::TooMuch { .. }) => Err(format!("it {more}")),
            // What is broken is put aside when it is loaded.
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
