//! Shows operators the limits of the config, as metrics, its warnings, in the log, and the health
//! of the relay, as the line for `systemctl status`.

use tracing::warn;

use crate::{
    config::{
        AuthMode, Bundles, Config, Limits, Rate, Size, Storage, Sync, load::LoadedConfig,
        warnings::warnings,
    },
    observe::{
        health::{Health, Report, lines},
        metrics::ProcessMetrics,
    },
    sync::memory,
};

/// Exports the configured limits as metrics. Sections with limits are destructured, so that a new
/// key does not compile until it is exported or left out.
pub(super) fn show_limits(config: &Config, metrics: &ProcessMetrics) {
    let show = |key: &str, value: i64| metrics.limits.with_label_values(&[key]).set(value);
    show_per_client(&config.limits, show);
    show_sync(&config.sync, show);
    show_storage(&config.storage, show);
    show_bundles(&config.bundles, show);
}

/// Logs what the config says without effect.
pub(super) fn log_warnings(loaded: &LoadedConfig) {
    for warning in warnings(loaded) {
        warn!("config: {warning}");
    }
}

fn bytes(size: Size) -> i64 {
    i64::try_from(size.0).unwrap_or(i64::MAX)
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A rate as it is written: per second, minute or hour.
fn rate(rate: Rate) -> i64 {
    i64::try_from(rate.count).unwrap_or(i64::MAX)
}

fn show_per_client(limits: &Limits, show: impl Fn(&str, i64)) {
    let Limits {
        connections,
        connections_per_address,
        handshakes_per_address,
        messages_per_connection,
        bytes_per_connection,
        processor_per_connection,
        documents_per_connection,
        unknown_documents,
        new_documents,
        stored_bytes,
    } = limits;
    show("limits.connections", count(*connections));
    show("limits.connections_per_address", count(*connections_per_address));
    show("limits.handshakes_per_address", rate(*handshakes_per_address));
    show("limits.messages_per_connection", rate(*messages_per_connection));
    show("limits.bytes_per_connection", rate(*bytes_per_connection));
    show("limits.processor_per_connection", processor_per_connection.as_percent().into());
    show("limits.documents_per_connection", count(*documents_per_connection));
    show("limits.unknown_documents", rate(*unknown_documents));
    show("limits.new_documents", rate(*new_documents));
    show("limits.stored_bytes", bytes(*stored_bytes));
}

fn show_sync(sync: &Sync, show: impl Fn(&str, i64)) {
    let Sync {
        engine: _,
        peer_id: _,
        handshake_timeout: _,
        ping_interval: _,
        idle_unload: _,
        memory,
        max_message,
        arriving,
        message_min_rate,
        max_inflated,
        send_queue,
        receive_queue,
        forward_requests: _,
        forward_peers,
        forward_timeout: _,
    } = sync;
    show("sync.memory", bytes(Size(memory::limit(*memory))));
    show("sync.max_message", bytes(*max_message));
    show("sync.arriving", bytes(*arriving));
    show("sync.message_min_rate", bytes(*message_min_rate));
    show("sync.max_inflated", bytes(*max_inflated));
    show("sync.send_queue", bytes(*send_queue));
    show("sync.receive_queue", bytes(*receive_queue));
    show("sync.forward_peers", count(*forward_peers));
}

fn show_storage(storage: &Storage, show: impl Fn(&str, i64)) {
    let Storage {
        path: _,
        durability: _,
        commit_interval: _,
        journal_size,
        quiet: _,
        grace: _,
        min_free,
        max_unsaved,
        max_document,
        max_changes,
    } = storage;
    show("storage.journal_size", bytes(*journal_size));
    show("storage.min_free", bytes(*min_free));
    show("storage.max_unsaved", bytes(*max_unsaved));
    show("storage.max_document", bytes(*max_document));
    show("storage.max_changes", i64::try_from(*max_changes).unwrap_or(i64::MAX));
}

fn show_bundles(bundles: &Bundles, show: impl Fn(&str, i64)) {
    let Bundles {
        store: _,
        path: _,
        max_upload,
        receiving,
        max_inflated,
        keep: _,
        bucket: _,
        region: _,
        prefix: _,
        endpoint_url: _,
        path_style: _,
        timeout: _,
    } = bundles;
    show("bundles.max_upload", bytes(*max_upload));
    show("bundles.receiving", bytes(*receiving));
    show("bundles.max_inflated", bytes(*max_inflated));
}

/// Reports a relay as degraded if everyone may write.
pub(super) fn show_sign_in(config: &Config, health: &Health) {
    // If the mode is not set, only clients of this machine may write.
    let is_open = config.auth.mode != AuthMode::Unset && config.auth.lets_all_write();
    health.set_degraded("auth", is_open.then(|| "open to everybody".to_owned()));
}

/// Returns the line for `systemctl status`.
pub(super) fn status_line(report: &Report) -> String {
    match (report.ready, report.degraded.is_empty()) {
        (true, true) => "Serving".to_owned(),
        (true, false) => format!("Serving; {}", lines(&report.degraded).join("; ")),
        (false, _) => format!("Not ready: {}", lines(&report.failed).join("; ")),
    }
}
