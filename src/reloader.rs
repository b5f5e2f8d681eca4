//! Taking over a changed config while running: all of it, or nothing and the reason.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use crate::{
    auth::Policy,
    blocking,
    bundle::watch::{BundleKeeper, PathWatch},
    config::{Config, check, load, load::LoadedConfig, reload},
    health::{Health, Phase},
    http::tls::{TlsError, TlsKeeper},
    log::{LogLevel, Repeats},
    metrics::ProcessMetrics,
    regular_file,
    sync::sessions::Sessions,
    systemd,
};

/// Reads the config file again when asked.
#[expect(missing_docs, reason = "the types say it")]
pub struct Reloader {
    /// What is in effect now.
    pub loaded: Mutex<LoadedConfig>,
    pub config: watch::Sender<Arc<Config>>,
    pub keeper: Arc<BundleKeeper>,
    pub tls: Arc<TlsKeeper>,
    pub sessions: Arc<Sessions>,
    pub log_level: Option<LogLevel>,
    pub repeats: Arc<Repeats>,
    pub health: Arc<Health>,
    pub metrics: ProcessMetrics,
}

/// Why a config was not taken over; what was in effect still is.
#[derive(Debug)]
pub struct Refused {
    /// What is wrong, a line each.
    pub problems: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

impl Reloader {
    /// Begin to take over the config file as it is now. It goes on to its end whether or not somebody waits
    /// for the keys that changed.
    ///
    /// # Errors
    /// The file has a fault, changes a key that needs a restart, or names a bundle that cannot be served.
    pub fn start(self: &Arc<Self>) -> JoinHandle<Result<Vec<String>, Refused>> {
        let reloader = self.clone();
        tokio::spawn(async move { reloader.reload().await })
    }

    async fn reload(&self) -> Result<Vec<String>, Refused> {
        // Held throughout: reloads come one after the other.
        let mut loaded = self.loaded.lock().await;
        if self.health.report().phase != Phase::Running {
            return Err(refused(["the relay is not running yet, or not any more".to_owned()]));
        }
        systemd::reloading();
        let result = self.take_over(&mut loaded).await;
        match &result {
            Ok(changed) => {
                info!(changed = changed.join(" "), "config reloaded");
                self.health.degrade("reload", None);
                self.metrics.reloads.with_label_values(&["applied"]).inc();
            }
            Err(refused) => {
                error!(reason = %refused, "config not reloaded; the former one stays in effect");
                self.health.degrade("reload", Some(refused.to_string()));
                self.metrics.reloads.with_label_values(&["refused"]).inc();
            }
        }
        systemd::ready(&crate::app::status_line(&self.health.report()));
        result
    }

    async fn take_over(&self, loaded: &mut LoadedConfig) -> Result<Vec<String>, Refused> {
        let file = loaded.file.clone().ok_or_else(|| {
            refused(["the relay was started without a config file: there is nothing to reload"
                .to_owned()])
        })?;
        let faults = |faults: Vec<load::Fault>| refused(faults.iter().map(ToString::to_string));
        let new = blocking::run(move || read(&file)).await.map_err(faults)?;
        let changes = reload::compare(&loaded.config, &new.config);
        if !changes.restart.is_empty() {
            let needs =
                |key: &String| format!("{}: {key}: needs a restart to change", new.origins.of(key));
            return Err(refused(changes.restart.iter().map(needs)));
        }
        if let Some(why) = reload::opens(&loaded.config, &new.config) {
            let key = if new.config.auth.mode.is_open() { "auth.mode" } else { "auth.anonymous" };
            return Err(refused([format!("{}: {key}: {why}", new.origins.of(key))]));
        }
        // Read anew with every reload: the files change without the config.
        let auth = new.config.auth.clone();
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        let policy = blocking::run(move || Policy::load(&auth)).await.map_err(|error| {
            let key = error.key();
            refused([format!("{}: {key}: {error}", new.origins.of(key))])
        })?;
        let decides =
            ["bundle.path", "bundles.max_inflated", "sync.max_inflated", "http.public_url"];
        let is_degraded = self.health.report().degraded.contains_key("bundle");
        if is_degraded || changes.live.iter().any(|key| decides.contains(&key.as_str())) {
            let problem = |error| {
                refused([format!("{}: bundle.path: {error}", new.origins.of("bundle.path"))])
            };
            self.keeper.load(&new.config).await.map_err(problem)?;
        }
        let is_degraded = self.health.report().degraded.contains_key("tls");
        if is_degraded || changes.live.iter().any(|key| key.starts_with("tls.")) {
            let problem = |error: TlsError| {
                let key = error.key();
                refused([format!("{}: {key}: {error}", new.origins.of(key))])
            };
            self.tls.load(&new.config.tls).await.map_err(problem)?;
        }
        if let Some(log_level) = &self.log_level {
            log_level.set(&new.config.log.level).map_err(|error| refused([error.to_string()]))?;
        }
        self.repeats.set_window(new.config.log.repeat.0);
        crate::app::show_limits(&new.config, &self.metrics);
        self.config.send_replace(Arc::new(new.config.clone()));
        self.sessions.auth.set(policy);
        self.sessions.review(true);
        crate::app::show_sign_in(&new.config, &self.health);
        *loaded = new;
        Ok(changes.live)
    }

    /// Watch the config file: apply it, or report that it has changed. Runs for ever.
    pub async fn watch(self: &Arc<Self>) {
        let file: Option<PathBuf> = self.loaded.lock().await.file.clone();
        let Some(file) = file else {
            return std::future::pending().await;
        };
        let mut watch = PathWatch::new(&file).await;
        loop {
            watch.changed().await;
            let named = file.clone();
            #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
            let reading = move || regular_file::read_text(&named, load::MAX_FILE);
            let read = tokio::task::spawn_blocking(reading).await;
            let text = read.ok().and_then(Result::ok).unwrap_or_default();
            if text == self.loaded.lock().await.text {
                continue;
            }
            if self.config.borrow().reload.watch_config {
                // The outcome is in the log, the metrics and the status line.
                let _ = self.start().await;
            } else {
                warn!(
                    file = %file.display(),
                    "the config file has changed and is not in effect: tonk-relay --check-config, then tonk-relay reload"
                );
            }
        }
    }
}

/// The config that a file holds now.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn read(file: &Path) -> Result<LoadedConfig, Vec<load::Fault>> {
    let loaded = load::read_file(file)?;
    let faults = check::check(&loaded);
    if faults.is_empty() { Ok(loaded) } else { Err(faults) }
}

fn refused(problems: impl IntoIterator<Item = String>) -> Refused {
    Refused { problems: problems.into_iter().collect() }
}
