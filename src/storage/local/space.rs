//! Free space on the disks. Below `storage.min_free` the relay accepts no new documents and no
//! uploads, so that the remaining space is left for edits.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    config::{Config, Size},
    observe::{health::Health, metrics::StorageMetrics},
};

/// How often the free space is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// The free space on the disks of documents and of uploads.
#[derive(Debug)]
pub struct Space {
    is_low: watch::Sender<bool>,
    config: watch::Receiver<Arc<Config>>,
    health: Arc<Health>,
    metrics: StorageMetrics,
}

impl Space {
    /// Measures the disks that `config` names. [`Self::run`] does so repeatedly.
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        health: Arc<Health>,
        metrics: StorageMetrics,
    ) -> Self {
        let measured = measure(&config.borrow());
        let space = Self { is_low: watch::Sender::new(false), config, health, metrics };
        space.record(measured);
        space
    }

    /// Whether less than `storage.min_free` is free.
    pub fn is_low(&self) -> bool {
        *self.is_low.borrow()
    }

    /// Whether `bytes` can be written to the disk of uploads while `storage.min_free` stays free.
    /// Measures the disk, because [`Self::is_low`] may be a second old and an upload can write
    /// gigabytes in that time. Blocks.
    pub fn has_room_for_upload(&self, bytes: u64) -> bool {
        let config = self.config.borrow().clone();
        let needed = config.storage.min_free.0.saturating_add(bytes);
        !self.is_low() && free(&config.bundles.path).is_none_or(|free| free >= needed)
    }

    /// Waits until enough space is free.
    pub async fn wait_until_not_low(&self) {
        // The sender exists as long as `self`.
        let _ = self.is_low.subscribe().wait_for(|is_low| !is_low).await;
    }

    /// Measures the disks repeatedly, forever.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(MEASURE_INTERVAL).await;
            let config = self.config.borrow().clone();
            // A disk that hangs blocks this thread only.
            let measured = tokio::task::spawn_blocking(move || measure(&config)).await;
            self.record(measured.ok().flatten());
        }
    }

    fn record(&self, measured: Option<(u64, PathBuf)>) {
        let Some((free, path)) = measured else { return };
        let min_free = self.config.borrow().storage.min_free;
        self.metrics.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        let is_low = free < min_free.0;
        let fault = is_low.then(|| {
            let (path, free) = (path.display(), Size(free));
            format!(
                "{path}: {free} free, which is less than storage.min_free ({min_free}); \
                     refusing new documents and uploads"
            )
        });
        let has_changed =
            self.is_low.send_if_modified(|was| std::mem::replace(was, is_low) != is_low);
        match &fault {
            Some(fault) if has_changed => warn!("{fault}"),
            None if has_changed => info!(
                "free disk space is above storage.min_free again; accepting new documents and \
                 uploads"
            ),
            _ => {}
        }
        self.health.set_degraded("space", fault);
    }
}

/// The free bytes and the path of the disk that has least.
fn measure(config: &Config) -> Option<(u64, PathBuf)> {
    let disks = [&config.storage.path, &config.bundles.path];
    disks.into_iter().filter_map(|path| Some((free(path)?, path.clone()))).min()
}

/// The bytes that a process without root privileges may still write.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn free(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
