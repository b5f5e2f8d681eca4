//! Counts of what is not durable yet.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus::IntGauge;

use crate::observe::metrics::StorageMetrics;

/// All bytes that are not durable yet.
pub(super) struct UnsavedBytes {
    bytes: AtomicU64,
    gauge: IntGauge,
}

impl UnsavedBytes {
    /// Starts at none; `gauge` shows them.
    pub(super) fn new(gauge: IntGauge) -> Self {
        Self { bytes: AtomicU64::new(0), gauge }
    }

    /// Counts bytes until the returned guard is dropped.
    pub(super) fn add(self: &Arc<Self>, bytes: usize) -> Unsaved {
        let bytes = bytes as u64;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.gauge.add(bytes.cast_signed());
        Unsaved { bytes, total: self.clone() }
    }

    pub(super) fn get(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Bytes that are counted as unsaved until this is dropped.
pub struct Unsaved {
    bytes: u64,
    total: Arc<UnsavedBytes>,
}

impl Drop for Unsaved {
    fn drop(&mut self) {
        self.total.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.total.gauge.sub(self.bytes.cast_signed());
    }
}

/// A write that is not durable yet, counted by a gauge.
pub(super) struct QueuedWrite<'a>(&'a StorageMetrics);

impl<'a> QueuedWrite<'a> {
    pub(super) fn new(metrics: &'a StorageMetrics) -> Self {
        metrics.queue.inc();
        Self(metrics)
    }
}

impl Drop for QueuedWrite<'_> {
    fn drop(&mut self) {
        self.0.queue.dec();
    }
}
