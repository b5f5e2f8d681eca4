//! Every metric of the relay, with its name.
//!
//! Each subsystem has one struct. The doc comment of a field is the HELP text of the metric. No
//! label has values that a client chooses: document ids and peer ids are only in the log and in
//! `status`.

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector, process_collector::ProcessCollector,
};

/// Seconds, from 100 us to a minute.
const SECONDS: [f64; 12] =
    [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0];

/// A metric that can be created from its name, HELP text and labels.
trait Metric: Collector + Clone + Sized + 'static {
    fn create(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self>;
}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        impl Metric for $kind {
            fn create(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
                Self::with_opts(Opts::new(name, help))
            }
        }
    )*};
}
plain!(IntCounter, IntGauge, Gauge);

impl Metric for IntCounterVec {
    fn create(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Metric for IntGaugeVec {
    fn create(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Metric for Histogram {
    fn create(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))
    }
}

impl Metric for HistogramVec {
    fn create(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)
    }
}

fn register<M: Metric>(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<M> {
    let metric = M::create(name, help.trim(), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

macro_rules! metrics {
    ($(
        $(#[doc = $about:literal])+
        $group:ident {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $kind:ident = $name:literal [$($label:literal),*];
            )*
        }
    )*) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        pub struct $group {
            $( $(#[doc = $help])+ pub $field: $kind, )*
        }

        impl $group {
            fn register(registry: &Registry) -> prometheus::Result<Self> {
                Ok(Self {
                    $( $field: register(registry, $name, concat!($($help),+), &[$($label),*])?, )*
                })
            }
        }
    )*

        /// Returns the relay's metrics for the manual. Those of the process are not included.
        pub fn described() -> Vec<Described> {
            vec![$($( Described {
                name: $name,
                help: concat!($($help),+).trim(),
                labels: &[$($label),*],
            }, )*)*]
        }
    };
}

/// The description of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// Its HELP text.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

metrics! {
    /// Sessions: the WebSocket connections.
    SessionMetrics {
        /// Open WebSocket connections.
        open: IntGauge = "tonk_relay_connections" [];
        /// WebSocket connections that ended, by outcome: the reason why the relay closed them, or
        /// "peer" if the peer did.
        ended: IntCounterVec = "tonk_relay_connections_ended_total" ["outcome"];
        /// WebSocket connections that the relay refused, or closed for something the peer did, by
        /// reason.
        refused: IntCounterVec = "tonk_relay_refused_total" ["reason"];
        /// Messages after which reads from a connection were throttled, by the limit that was
        /// exceeded.
        throttled: IntCounterVec = "tonk_relay_throttled_total" ["reason"];
        /// Sign-ins of WebSockets and HTTP requests, by outcome: "admitted", or the reason for the
        /// refusal.
        sign_ins: IntCounterVec = "tonk_relay_sign_ins_total" ["outcome"];
        /// Protocol messages, by direction and type.
        messages: IntCounterVec = "tonk_relay_messages_total" ["direction", "type"];
        /// Bytes of protocol messages, by direction and type.
        message_bytes: IntCounterVec = "tonk_relay_message_bytes_total" ["direction", "type"];
        /// Messages that were dropped, by reason.
        dropped: IntCounterVec = "tonk_relay_messages_dropped_total" ["reason"];
        /// Documents for which changes of a peer were refused, by reason.
        refused_documents: IntCounterVec = "tonk_relay_documents_refused_total" ["reason"];
        /// Ephemeral messages that were forwarded, counted once for each receiver.
        ephemera: IntCounter = "tonk_relay_ephemera_forwarded_total" [];
        /// Bytes in the send queues of all sessions.
        unsent: IntGauge = "tonk_relay_unsent_bytes" [];
        /// Bytes of partially received messages over 16 KiB, across all connections.
        in_flight: IntGauge = "tonk_relay_arriving_bytes" [];
        /// Refused WebSockets that are still being closed.
        closing: IntGauge = "tonk_relay_connections_refused" [];
        /// Received bytes that wait to be handled by their documents, across all sessions.
        unread: IntGauge = "tonk_relay_received_queue_bytes" [];
        /// Panics in session tasks.
        panics: IntCounter = "tonk_relay_session_panics_total" [];
    }

    /// Rooms: the live documents.
    RoomMetrics {
        /// Documents in memory, by state: live, or opening (being loaded or requested from peers).
        rooms: IntGaugeVec = "tonk_relay_rooms" ["state"];
        /// Unknown documents that sessions wait for.
        waiting: IntGauge = "tonk_relay_rooms_waiting" [];
        /// Documents that left memory, by reason.
        unloaded: IntCounterVec = "tonk_relay_rooms_unloaded_total" ["reason"];
        /// Tasks of room engines that are running.
        engine_tasks: IntGauge = "tonk_relay_room_engine_tasks" [];
        /// Panics in rooms; each affected one document.
        panics: IntCounter = "tonk_relay_room_panics_total" [];
        /// Seconds from a session's first message about a document until it has joined the room.
        join_seconds: Histogram = "tonk_relay_room_join_seconds" [];
        /// Seconds from a session's first message about a document until it was sent the relay's
        /// changes.
        sync_seconds: Histogram = "tonk_relay_room_first_sync_seconds" [];
        /// Seconds from the arrival of a sync message until it is applied and the answers are
        /// queued. Acknowledgements that wait for the next message are not counted.
        message_seconds: Histogram = "tonk_relay_message_seconds" [];
        /// New changes that were applied to documents.
        changes: IntCounter = "tonk_relay_changes_applied_total" [];
        /// Requests for unknown documents, by outcome: forwarded, unavailable or found; "probe" is
        /// the relay's own probe.
        requests: IntCounterVec = "tonk_relay_unknown_requests_total" ["outcome"];
    }

    /// Documents on disk.
    StorageMetrics {
        /// Duration of storage operations in seconds, by operation.
        seconds: HistogramVec = "tonk_relay_storage_seconds" ["operation"];
        /// Storage operations that failed, by operation.
        failures: IntCounterVec = "tonk_relay_storage_failures_total" ["operation"];
        /// Writes that were retried.
        retries: IntCounter = "tonk_relay_storage_retries_total" [];
        /// Writes that are not durable yet.
        queue: IntGauge = "tonk_relay_storage_queue" [];
        /// Bytes that are not durable yet.
        unsaved_bytes: IntGauge = "tonk_relay_storage_unsaved_bytes" [];
        /// Free bytes on the disk of the documents or of the bundles, whichever has less.
        free_bytes: IntGauge = "tonk_relay_storage_free_bytes" [];
        /// Commits of the journal or to the database. Each makes the pending writes of all documents durable.
        commits: IntCounter = "tonk_relay_storage_commits_total" [];
        /// Chunks that were committed to the database.
        committed_chunks: IntCounter = "tonk_relay_database_chunks_total" [];
        /// 1 while the relay is not connected to the database of its config.
        database_away: IntGauge = "tonk_relay_database_away" [];
        /// Times that the relay has connected to the database again.
        reconnects: IntCounter = "tonk_relay_database_reconnects_total" [];
        /// Times that the database had lost commits, or may have, so that what it has was read again.
        losses: IntCounter = "tonk_relay_database_losses_total" [];
        /// Relays that share the database and were there within the last minute, this one included.
        relays: IntGauge = "tonk_relay_cluster_relays" [];
        /// Hints that something was stored, by what happened to them: sent, received or lost.
        hints: IntCounterVec = "tonk_relay_cluster_hints_total" ["event"];
        /// How full the server's queue of notifications is, which all databases share: 1 is full, and
        /// then no hint can be sent.
        notification_queue: Gauge = "tonk_relay_cluster_notification_queue_ratio" [];
        /// Messages between relays about presence and requested documents, by what happened to
        /// them: sent, received or dropped.
        relay_messages: IntCounterVec = "tonk_relay_cluster_messages_total" ["event"];
        /// Times that the relay has looked for what others have stored, by the cause: a hint, or
        /// the poll once a second.
        looks: IntCounterVec = "tonk_relay_cluster_looks_total" ["cause"];
        /// Rows of others that were found, by the cause of the look.
        rows: IntCounterVec = "tonk_relay_cluster_rows_total" ["cause"];
        /// Those of them whose document was in memory here, too, or waited for. Their share of all
        /// committed chunks, and 1, is how many relays have a document that is changed.
        live_rows: IntCounter = "tonk_relay_cluster_live_rows_total" [];
        /// How long the oldest transaction of the database server that has written something has
        /// been open, in seconds, since this relay has first seen it.
        oldest_transaction: Gauge = "tonk_relay_database_oldest_transaction_seconds" [];
        /// Times that all live documents were read again, because what others had stored was not
        /// known.
        resyncs: IntCounter = "tonk_relay_cluster_resyncs_total" [];
        /// Seconds from the commit of another relay until its chunks were handed to the rooms of
        /// their documents here.
        news_seconds: Histogram = "tonk_relay_cluster_news_seconds" [];
        /// Bytes of chunks in the journal that are not checkpointed into the folders yet.
        journal_bytes: IntGauge = "tonk_relay_storage_journal_bytes" [];
        /// Chunks in the journal that are not checkpointed into the folders yet.
        journal_chunks: IntGauge = "tonk_relay_storage_journal_chunks" [];
        /// Chunks that were checkpointed from the journal into the folders.
        moved: IntCounter = "tonk_relay_storage_moved_chunks_total" [];
        /// Stored chunks that do not parse. In a folder they were moved to quarantine.
        broken_chunks: IntCounter = "tonk_relay_storage_broken_chunks_total" [];
        /// Chunks in quarantine.
        quarantined: IntGauge = "tonk_relay_quarantined_chunks" [];
        /// Documents that an operator has blocked.
        blocked: IntGauge = "tonk_relay_blocked_documents" [];
        /// Time of the last complete backup, in seconds since 1970; 0 if there never was one.
        backed_up_at: Gauge = "tonk_relay_backup_timestamp_seconds" [];
        /// Snapshots of the served bundle that have no change in common with the stored document
        /// of the same id.
        unrelated_snapshots: IntCounter = "tonk_relay_storage_unrelated_snapshots_total" [];
    }

    /// Bundles, served and uploaded.
    BundleMetrics {
        /// Loads of the served bundle, by result.
        loads: IntCounterVec = "tonk_relay_bundle_loads_total" ["result"];
        /// Time at which the served bundle was last loaded, in seconds since 1970.
        loaded_at: Gauge = "tonk_relay_bundle_loaded_timestamp_seconds" [];
        /// Always 1, with the SHA-256 of the served bundle's file.
        info: IntGaugeVec = "tonk_relay_bundle_info" ["sha256"];
        /// Uploads, by result.
        uploads: IntCounterVec = "tonk_relay_bundle_uploads_total" ["result"];
        /// Disk space reserved for uploads in progress, in bytes.
        receiving: IntGauge = "tonk_relay_bundle_receiving_bytes" [];
        /// Imports of uploaded bundles into the documents, by result.
        imports: IntCounterVec = "tonk_relay_bundle_imports_total" ["result"];
        /// Downloads of uploaded bundles, by result.
        downloads: IntCounterVec = "tonk_relay_bundle_downloads_total" ["result"];
    }

    /// HTTP.
    HttpMetrics {
        /// Open HTTP connections by listener, without those that were upgraded to WebSockets.
        sockets: IntGaugeVec = "tonk_relay_http_connections" ["listener"];
        /// TLS handshakes, by result: done, failed, or late.
        handshakes: IntCounterVec = "tonk_relay_tls_handshakes_total" ["result"];
        /// Time at which the TLS certificate expires, in seconds since 1970; 0 without TLS.
        certificate_until: Gauge = "tonk_relay_tls_certificate_until_timestamp_seconds" [];
        /// HTTP requests, by route and status.
        requests: IntCounterVec = "tonk_relay_http_requests_total" ["route", "status"];
        /// Seconds until the head of the response, by route.
        seconds: HistogramVec = "tonk_relay_http_request_seconds" ["route"];
    }

    /// The process.
    ProcessMetrics {
        /// Tasks that ended, by task and verdict: restart, fatal, or expected during a shutdown.
        task_exits: IntCounterVec = "tonk_relay_task_exits_total" ["task", "verdict"];
        /// Config reloads, by result.
        reloads: IntCounterVec = "tonk_relay_config_reloads_total" ["result"];
        /// Seconds that a task occupied an async worker thread each time it ran, by task. Long
        /// times delay everything else on that thread.
        poll_seconds: HistogramVec = "tonk_relay_poll_seconds" ["task"];
        /// Seconds since the graceful shutdown began; 0 while serving.
        drain_seconds: Gauge = "tonk_relay_drain_seconds" [];
        /// Whether /readyz is 200; updated every 5 s.
        ready: IntGauge = "tonk_relay_ready" [];
        /// 1 for each failed check that makes /readyz 503.
        failed: IntGaugeVec = "tonk_relay_not_ready" ["check"];
        /// 1 for each failed check that does not affect /readyz.
        degraded: IntGaugeVec = "tonk_relay_degraded" ["check"];
        /// Duration of the last self-probe in seconds: the relay connects to itself and syncs a
        /// document.
        probe_seconds: Gauge = "tonk_relay_probe_seconds" [];
        /// Self-probes without an answer in time. systemd's watchdog is not notified after these.
        probe_failures: IntCounter = "tonk_relay_probe_failures_total" [];
        /// Configured limits, by key, in the unit of the key.
        limits: IntGaugeVec = "tonk_relay_limit" ["key"];
        /// Always 1, with the version.
        build: IntGaugeVec = "tonk_relay_build_info" ["version"];
        /// Time at which the process started, in seconds since 1970.
        started_at: Gauge = "tonk_relay_start_timestamp_seconds" [];
    }
}

/// All metrics and their registry.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each struct says what it is")]
pub struct Metrics {
    registry: Registry,
    pub sessions: SessionMetrics,
    pub rooms: RoomMetrics,
    pub storage: StorageMetrics,
    pub bundles: BundleMetrics,
    pub http: HttpMetrics,
    pub process: ProcessMetrics,
}

impl Metrics {
    /// Creates and registers all metrics.
    ///
    /// # Errors
    /// A name is invalid or used twice.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let metrics = Self {
            sessions: SessionMetrics::register(&registry)?,
            rooms: RoomMetrics::register(&registry)?,
            storage: StorageMetrics::register(&registry)?,
            bundles: BundleMetrics::register(&registry)?,
            http: HttpMetrics::register(&registry)?,
            process: ProcessMetrics::register(&registry)?,
            registry,
        };
        metrics.process.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.process.started_at.set(now());
        // Counters that alerts use exist from the start, otherwise an alert misses the first event.
        for result in ["loaded", "failed"] {
            metrics.bundles.loads.with_label_values(&[result]);
        }
        for result in ["applied", "refused"] {
            metrics.process.reloads.with_label_values(&[result]);
        }
        for operation in ["load", "put", "delete", "quarantine"] {
            metrics.storage.failures.with_label_values(&[operation]);
        }
        Ok(metrics)
    }

    /// Returns the metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// The metrics of a collector are inconsistent.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }
}

/// Returns the seconds since 1970.
pub fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_exported_with_help_and_labels() {
        let metrics = Metrics::new().expect("names are good and stand once");
        metrics.http.requests.with_label_values(&["/", "200"]).inc();
        let text = String::from_utf8(metrics.text().expect("encodes")).expect("UTF-8");
        assert!(
            text.contains("# HELP tonk_relay_connections Open WebSocket connections.\n"),
            "{text}"
        );
        assert!(text.contains("tonk_relay_http_requests_total{route=\"/\",status=\"200\"} 1\n"));
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
