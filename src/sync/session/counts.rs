//! What sessions count in the metrics.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::observe::metrics::SessionMetrics;

/// Counts sessions and their messages. Those of the relay's own test of itself are not clients, so
/// only the bytes that they hold are counted.
#[derive(Clone, Debug)]
pub struct Counts {
    // Every session has one.
    metrics: Arc<SessionMetrics>,
    frequent: Arc<Frequent>,
    is_probe: bool,
}

/// The counters of the most frequent messages. To find one by its labels takes longer than to
/// count.
#[derive(Debug)]
struct Frequent {
    sync_in: MessageCounters,
    sync_out: MessageCounters,
    ephemeral_in: MessageCounters,
}

/// Counts messages of one direction and type.
#[derive(Debug)]
struct MessageCounters {
    messages: IntCounter,
    bytes: IntCounter,
}

impl MessageCounters {
    fn of(metrics: &SessionMetrics, direction: &str, kind: &str) -> Self {
        let labels = [direction, kind];
        Self {
            messages: metrics.messages.with_label_values(&labels),
            bytes: metrics.message_bytes.with_label_values(&labels),
        }
    }

    fn count(&self, bytes: u64) {
        self.messages.inc();
        self.bytes.inc_by(bytes);
    }
}

/// Counts a WebSocket for as long as it lives.
pub(super) struct Counted(Option<IntGauge>);

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(gauge) = &self.0 {
            gauge.dec();
        }
    }
}

impl Counts {
    /// Returns the counts of clients' sessions.
    pub fn of_clients(metrics: SessionMetrics) -> Self {
        let frequent = Frequent {
            sync_in: MessageCounters::of(&metrics, "in", "sync"),
            sync_out: MessageCounters::of(&metrics, "out", "sync"),
            ephemeral_in: MessageCounters::of(&metrics, "in", "ephemeral"),
        };
        Self { metrics: Arc::new(metrics), frequent: Arc::new(frequent), is_probe: false }
    }

    /// Returns the counts of the relay's own test of itself.
    pub fn of_probe(&self) -> Self {
        Self { is_probe: true, ..self.clone() }
    }

    /// Whether these are the sessions of the relay's own test of itself.
    pub(super) fn is_probe(&self) -> bool {
        self.is_probe
    }

    fn counted(&self) -> Option<&SessionMetrics> {
        (!self.is_probe).then_some(&self.metrics)
    }

    fn gauge(&self, gauge: fn(&SessionMetrics) -> &IntGauge) -> Counted {
        let gauge = self.counted().map(|metrics| gauge(metrics).clone());
        if let Some(gauge) = &gauge {
            gauge.inc();
        }
        Counted(gauge)
    }

    fn count(&self, counter: fn(&SessionMetrics) -> &IntCounterVec, label: &str) {
        if let Some(metrics) = self.counted() {
            counter(metrics).with_label_values(&[label]).inc();
        }
    }

    /// Counts a WebSocket that was admitted.
    pub(super) fn open(&self) -> Counted {
        self.gauge(|metrics| &metrics.open)
    }

    /// Counts a WebSocket that is told why it is refused.
    pub(super) fn closing(&self) -> Counted {
        self.gauge(|metrics| &metrics.closing)
    }

    /// Counts a WebSocket that has ended.
    pub(super) fn ended(&self, outcome: &str) {
        self.count(|metrics| &metrics.ended, outcome);
    }

    /// Counts a WebSocket that was refused, or closed for something that the peer did.
    pub(super) fn refused(&self, reason: &str) {
        self.count(|metrics| &metrics.refused, reason);
    }

    /// Counts a sign-in.
    pub fn sign_in(&self, outcome: &str) {
        self.count(|metrics| &metrics.sign_ins, outcome);
    }

    /// Counts a panic of a session's task.
    pub fn panicked(&self) {
        self.metrics.panics.inc();
    }

    /// Counts a protocol message. `direction`: "in" or "out".
    pub(super) fn message(&self, direction: &str, kind: &str, bytes: u64) {
        let Some(metrics) = self.counted() else { return };
        match (direction, kind) {
            ("in", "sync") => self.frequent.sync_in.count(bytes),
            ("out", "sync") => self.frequent.sync_out.count(bytes),
            ("in", "ephemeral") => self.frequent.ephemeral_in.count(bytes),
            _ => MessageCounters::of(metrics, direction, kind).count(bytes),
        }
    }

    /// Counts presence that was passed on.
    pub(super) fn presence(&self) {
        if let Some(metrics) = self.counted() {
            metrics.ephemera.inc();
        }
    }

    /// Counts a message that was dropped.
    pub(super) fn dropped(&self, reason: &str) {
        self.count(|metrics| &metrics.dropped, reason);
    }

    /// Counts a message after which a session is read more slowly.
    pub(super) fn throttled(&self, limit: &str) {
        self.count(|metrics| &metrics.throttled, limit);
    }

    /// Counts a document of which a peer's changes were refused.
    pub(super) fn refused_document(&self, reason: &str) {
        self.count(|metrics| &metrics.refused_documents, reason);
    }

    /// The gauge of bytes that wait to be sent.
    pub(super) fn unsent(&self) -> IntGauge {
        self.metrics.unsent.clone()
    }

    /// The gauge of received bytes that wait for their documents.
    pub(super) fn unread(&self) -> IntGauge {
        self.metrics.unread.clone()
    }

    /// The gauge of bytes of partially received messages.
    pub(super) fn in_flight(&self) -> IntGauge {
        self.metrics.in_flight.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn only_sessions_of_clients_are_counted() {
        let metrics = Metrics::new().expect("metrics").sessions;
        let clients = Counts::of_clients(metrics.clone());
        let probe = clients.of_probe();
        let _open = (clients.open(), probe.open());
        for counts in [&clients, &probe] {
            counts.message("in", "sync", 10);
            counts.ended("peer");
        }
        assert_eq!(metrics.open.get(), 1);
        assert_eq!(metrics.message_bytes.with_label_values(&["in", "sync"]).get(), 10);
        assert_eq!(metrics.ended.with_label_values(&["peer"]).get(), 1);
        drop(_open);
        assert_eq!(metrics.open.get(), 0);
    }
}
