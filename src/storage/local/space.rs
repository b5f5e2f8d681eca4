//! How much room the disks have: below `storage.min_free` no new document and no upload is taken, so that what
//! is left is there for edits.

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

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Whether there is room for what is new.
#[derive(Debug)]
pub struct Space {
    is_low: watch::Sender<bool>,
    config: watch::Receiver<Arc<Config>>,
    health: Arc<Health>,
    metrics: StorageMetrics,
}

impl Space {
    /// The space of the disks that `config` names; looked at once, and then by [`Self::run`].
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        health: Arc<Health>,
        metrics: StorageMetrics,
    ) -> Self {
        let least = measure(&config.borrow());
        let space = Self { is_low: watch::Sender::new(false), config, health, metrics };
        space.note(least);
        space
    }

    /// Whether nothing new is taken.
    pub fn is_low(&self) -> bool {
        *self.is_low.borrow()
    }

    /// Whether `bytes` can be written to the disk of uploads and `storage.min_free` stays free. Asks the disk, so it blocks:
    /// [`Self::is_low`] is up to a second old, in which an upload writes gigabytes.
    pub fn has_room_for_upload(&self, bytes: u64) -> bool {
        let config = self.config.borrow().clone();
        let needed = config.storage.min_free.0.saturating_add(bytes);
        !self.is_low() && free(&config.bundles.path).is_none_or(|free| free >= needed)
    }

    /// Wait until there is room again.
    pub async fn is_back(&self) {
        // The sender is ours: it is there.
        let _ = self.is_low.subscribe().wait_for(|is_low| !is_low).await;
    }

    /// Look again and again.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let config = self.config.borrow().clone();
            // A disk that hangs holds this thread, and nothing else.
            let measured = tokio::task::spawn_blocking(move || measure(&config)).await;
            self.note(measured.ok().flatten());
        }
    }

    fn note(&self, measured: Option<(u64, PathBuf)>) {
        let Some((free, path)) = measured else { return };
        let least = self.config.borrow().storage.min_free;
        self.metrics.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        let is_low = free < least.0;
        let fault = is_low.then(|| {
            let (path, free) = (path.display(), Size(free));
            format!("{path}: {free} are free, less than storage.min_free ({least}): no new documents, no uploads")
        });
        let has_changed =
            self.is_low.send_if_modified(|was| std::mem::replace(was, is_low) != is_low);
        match &fault {
            Some(fault) if has_changed => warn!("{fault}"),
            None if has_changed => info!("there is room for new documents again"),
            _ => {}
        }
        self.health.set_degraded("space", fault);
    }
}

/// The disk with the least room, and how much that is.
fn measure(config: &Config) -> Option<(u64, PathBuf)> {
    let disks = [&config.storage.path, &config.bundles.path];
    disks.into_iter().filter_map(|path| Some((free(path)?, path.clone()))).min()
}

/// Bytes that a process that is not root may still write.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn free(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
