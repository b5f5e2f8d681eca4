//! The disk space of bundles that are being received. It is reserved before it is written, in total
//! and by client address, and released when the file is deleted.

use super::store::StoredBundle;
use crate::{
    base::{
        blocking::{self, DropOnBlockingThread},
        lock::lock,
    },
    config::{Config, Size},
    limits::limit_key,
    storage::{StorageError, local::space::Space},
};
use prometheus::IntGauge;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    net::IpAddr,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// Space is reserved in steps of this many bytes, because each step asks the file system how much
/// is free.
const STEP: u64 = 1 << 20;
/// One address may use this fraction of the budget, or the space of one maximum-size upload if that
/// is larger.
const ADDRESS_FRACTION: u64 = 4;

/// Why disk space cannot be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum NoRoom {
    #[error("the relay's disk has less free space than storage.min_free")]
    Disk,
    #[error("uploads in progress use all of their disk space, {0} (bundles.receiving)")]
    Budget(Size),
    #[error("uploads in progress from this address use its whole share of bundles.receiving")]
    Share,
}

/// Why a stored bundle cannot be opened as a file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The relay's disk has no space for a copy.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The store cannot read it, or the copy cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The budget `bundles.receiving` of disk space.
#[derive(Debug)]
pub struct DiskBudget {
    space: Arc<Space>,
    config: watch::Receiver<Arc<Config>>,
    reserved: Mutex<Reserved>,
    /// Shows the reserved bytes.
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct Reserved {
    total: u64,
    /// The part of `total` that is not written yet. The file system still counts it as free.
    unwritten: u64,
    by_address: HashMap<IpAddr, u64>,
}

impl DiskBudget {
    /// Creates a budget without reservations.
    pub fn new(space: Arc<Space>, config: watch::Receiver<Arc<Config>>, gauge: IntGauge) -> Self {
        Self { space, config, reserved: Mutex::default(), gauge }
    }

    /// Begins a reservation of no space yet, for a client at that address.
    pub fn begin(self: &Arc<Self>, client: Option<IpAddr>) -> Reservation {
        let client = client.map(limit_key);
        Reservation { budget: self.clone(), client, bytes: 0, unwritten: 0 }
    }

    /// Adds to the reserved space. Returns how much of all reserved space is unwritten.
    fn add(&self, bytes: u64, client: Option<IpAddr>) -> Result<u64, NoRoom> {
        let (receiving, one_upload) = {
            let bundles = &self.config.borrow().bundles;
            (bundles.receiving, bundles.max_upload.0.saturating_add(STEP))
        };
        let share = (receiving.0 / ADDRESS_FRACTION).max(one_upload);
        let mut reserved = lock(&self.reserved);
        if reserved.total.saturating_add(bytes) > receiving.0.max(one_upload) {
            return Err(NoRoom::Budget(receiving));
        }
        if let Some(client) = client {
            let of_client = reserved.by_address.entry(client).or_default();
            if of_client.saturating_add(bytes) > share {
                return Err(NoRoom::Share);
            }
            *of_client += bytes;
        }
        reserved.total += bytes;
        reserved.unwritten += bytes;
        self.update_gauge(&reserved);
        Ok(reserved.unwritten)
    }

    /// Opens a stored bundle as a file. A bundle in an object store is copied to the local disk, on
    /// reserved space.
    ///
    /// # Errors
    /// The bundle cannot be read, or there is no space for the copy.
    pub async fn open(self: &Arc<Self>, stored: StoredBundle) -> Result<ReservedFile, OpenError> {
        let (mut reservation, copied) = (self.begin(None), stored.copied_bytes());
        let reservation =
            blocking::run(move || reservation.reserve(copied).map(|()| reservation)).await?;
        let file = stored.into_file().await?;
        Ok(ReservedFile::new(file, &Arc::new(reservation)))
    }

    fn update_gauge(&self, reserved: &Reserved) {
        self.gauge.set(i64::try_from(reserved.total).unwrap_or(i64::MAX));
    }
}

/// Reserved disk space, which is released when this is dropped. It must be kept until the file is
/// deleted.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<DiskBudget>,
    client: Option<IpAddr>,
    bytes: u64,
    unwritten: u64,
}

impl Reservation {
    /// Reserves space until `bytes` more can be written. Blocks.
    ///
    /// # Errors
    /// The disk or the budget has no space for them.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let Some(missing) = bytes.checked_sub(self.unwritten).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        let more = missing.next_multiple_of(STEP);
        let unwritten = self.budget.add(more, self.client)?;
        // Released on drop, also if the disk turns out to be full.
        self.bytes += more;
        self.unwritten += more;
        match self.budget.space.has_room_for_upload(unwritten) {
            true => Ok(()),
            false => Err(NoRoom::Disk),
        }
    }

    /// Records that reserved bytes were written.
    pub fn record_written(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        let mut reserved = lock(&self.budget.reserved);
        reserved.unwritten = reserved.unwritten.saturating_sub(bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = lock(&self.budget.reserved);
        reserved.total = reserved.total.saturating_sub(self.bytes);
        reserved.unwritten = reserved.unwritten.saturating_sub(self.unwritten);
        if let Some(client) = self.client
            && let Some(of_client) = reserved.by_address.get_mut(&client)
        {
            *of_client = of_client.saturating_sub(self.bytes);
            if *of_client == 0 {
                reserved.by_address.remove(&client);
            }
        }
        self.budget.update_gauge(&reserved);
    }
}

/// A file on reserved space. The space is released when the last reader of the file is dropped.
#[derive(Debug)]
pub struct ReservedFile(DropOnBlockingThread<(File, Arc<Reservation>)>);

impl ReservedFile {
    /// Wraps a file that was written on reserved space.
    pub fn new(file: File, reservation: &Arc<Reservation>) -> Self {
        Self(DropOnBlockingThread::new((file, reservation.clone())))
    }
}

impl Read for ReservedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.0.read(buffer)
    }
}

impl Seek for ReservedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.0.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{health::Health, metrics::Metrics};

    const MIB: u64 = 1 << 20;

    fn budget(folder: &std::path::Path, min_free: u64) -> Arc<DiskBudget> {
        let mut config = Config::default();
        config.storage.path = folder.to_owned();
        config.storage.min_free = Size(min_free);
        config.bundles.path = folder.to_owned();
        config.bundles.max_upload = Size(3 * MIB);
        config.bundles.receiving = Size(16 * MIB);
        let config = watch::channel(Arc::new(config)).1;
        let metrics = Metrics::new().expect("metrics");
        let space = Space::new(config.clone(), Arc::new(Health::default()), metrics.storage);
        Arc::new(DiskBudget::new(Arc::new(space), config, metrics.bundles.receiving))
    }

    #[test]
    fn space_is_limited_by_address_and_in_total_and_released_on_drop() {
        let folder = tempfile::tempdir().expect("a folder");
        let budget = budget(folder.path(), 1);
        let begin = |last: u8| budget.begin(Some([203, 0, 113, last].into()));
        let mut all: Vec<_> = (1..=4).map(begin).collect();
        for of_address in &mut all {
            of_address.reserve(4 * MIB - 1).expect("its share");
            of_address.reserve(4 * MIB).expect("nothing was written: it is reserved");
        }
        let mut second = begin(1);
        assert_eq!(second.reserve(1), Err(NoRoom::Budget(Size(16 * MIB))));
        drop(all.pop());
        assert_eq!(second.reserve(1), Err(NoRoom::Share));
        let mut other = begin(9);
        other.reserve(1).expect("another address");
        assert_eq!(budget.gauge.get().cast_unsigned(), 13 * MIB);
        drop((all, second, other));
        let reserved = lock(&budget.reserved);
        assert_eq!((reserved.total, reserved.unwritten, reserved.by_address.len()), (0, 0, 0));
    }

    #[test]
    fn space_that_others_have_reserved_does_not_count_as_free() {
        let folder = tempfile::tempdir().expect("a folder");
        let space = rustix::fs::statvfs(folder.path()).expect("statvfs");
        // Other programs write to this disk too, so the threshold must be far from the limit.
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let budget = budget(folder.path(), free / 2);
        assert!(budget.space.has_room_for_upload(MIB));
        lock(&budget.reserved).unwritten = free;
        let mut refused = budget.begin(None);
        assert_eq!(refused.reserve(1), Err(NoRoom::Disk));
        drop(refused);
        lock(&budget.reserved).unwritten = 0;
        budget.begin(None).reserve(1).expect("it is written or given up");
    }
}
