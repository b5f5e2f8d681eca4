//! Applies a changed config to the running relay: all of it, or none of it.

mod keys;

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
use tracing_subscriber::filter::Targets;

use super::report;
use crate::{
    admin::reload::{Reload, ReloadAnswer},
    auth::Policy,
    base::{blocking, regular_file, run_to_completion::RunToCompletion},
    bundle::watch::{BundleKeeper, PathWatch, PreparedBundle},
    config::{
        Config, check, levels,
        load::{self, LoadedConfig},
        reload,
    },
    http::tls::{PreparedCertificate, TlsKeeper},
    observe::{
        health::{Health, Phase},
        log::{LogLevel, Repeats},
        metrics::ProcessMetrics,
        systemd,
    },
    sync::session::shared::Sessions,
};

/// Reloads the config.
#[expect(missing_docs, reason = "the types say it")]
pub struct Reloader {
    /// The config in effect.
    pub loaded: Mutex<LoadedConfig>,
    pub config: watch::Sender<Arc<Config>>,
    pub keeper: Arc<BundleKeeper>,
    pub tls: Arc<TlsKeeper>,
    pub sessions: Arc<Sessions>,
    pub log_level: Option<LogLevel>,
    pub repeats: Arc<Repeats>,
    pub health: Arc<Health>,
    pub metrics: ProcessMetrics,
    /// Reloads that have begun. A drain does not wait for them, since they store nothing.
    pub unfinished: RunToCompletion,
}

/// Why a reload was refused. The former config stays in effect.
#[derive(Debug)]
pub struct Refused {
    /// The reasons, one line each.
    pub problems: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

/// A new config, with everything that it names loaded.
struct Prepared<'a> {
    new: LoadedConfig,
    /// The keys whose values differ.
    changed: Vec<String>,
    log_filter: Targets,
    policy: Policy,
    /// `None` if the current one stays in use.
    certificate: Option<PreparedCertificate<'a>>,
    /// `None` if the current one is still served.
    bundle: Option<PreparedBundle<'a>>,
}

impl Reloader {
    /// Begins a reload, which continues even if the returned handle is dropped. Its result is the
    /// keys that changed.
    ///
    /// # Errors
    /// The config file has a fault, changes a key that needs a restart, or names a file that cannot
    /// be used.
    pub fn start(self: &Arc<Self>) -> JoinHandle<Result<Vec<String>, Refused>> {
        let reloader = self.clone();
        self.unfinished.spawn(async move { reloader.reload().await })
    }

    /// Returns what the admin socket reloads with.
    pub fn admin_handle(self: &Arc<Self>) -> Reload {
        let reloader = self.clone();
        Arc::new(move || {
            let reloading = reloader.start();
            Box::pin(async move {
                let (changed, problems) = match reloading.await {
                    Ok(Ok(changed)) => (changed, Vec::new()),
                    Ok(Err(refused)) => (Vec::new(), refused.problems),
                    Err(panic) => (Vec::new(), vec![format!("the reload failed: {panic}")]),
                };
                ReloadAnswer { applied: problems.is_empty(), changed, problems }
            })
        })
    }

    async fn reload(&self) -> Result<Vec<String>, Refused> {
        // Held to the end, so that only one reload runs at a time.
        let mut loaded = self.loaded.lock().await;
        if self.health.report().phase != Phase::Running {
            return Err(refused(["the relay is starting or stopping".to_owned()]));
        }
        systemd::reloading();
        let prepared = self.prepare(&loaded).await;
        let result = prepared.map(|prepared| self.commit(&mut loaded, prepared));
        match &result {
            Ok(changed) => {
                info!(changed = changed.join(" "), "config reloaded");
                self.health.set_degraded("reload", None);
                self.metrics.reloads.with_label_values(&["applied"]).inc();
            }
            Err(refused) => {
                error!(reason = %refused, "config not reloaded; the previous config stays in \
                                           effect");
                self.health.set_degraded("reload", Some(refused.to_string()));
                self.metrics.reloads.with_label_values(&["refused"]).inc();
            }
        }
        systemd::ready(&report::status_line(&self.health.report()));
        result
    }

    /// Reads the config file and everything that it names, and changes nothing.
    async fn prepare(&self, now: &LoadedConfig) -> Result<Prepared<'_>, Refused> {
        let file = now.file.clone().ok_or_else(|| {
            refused(["the relay was started without a config file, so there is nothing to reload"
                .to_owned()])
        })?;
        let faults = |faults: Vec<load::Fault>| refused(faults.iter().map(ToString::to_string));
        let new = blocking::run(move || read(&file)).await.map_err(faults)?;
        let at = |key: &str, problem: &dyn fmt::Display| {
            refused([new.fault(key, problem.to_string()).to_string()])
        };
        let changes = reload::compare(&now.config, &new.config);
        if !changes.restart.is_empty() {
            let needs = |key: &String| new.fault(key, "needs a restart to change").to_string();
            return Err(refused(changes.restart.iter().map(needs)));
        }
        if let Some(why) = reload::weakens_sign_in(&now.config, &new.config) {
            let key = if new.config.auth.mode.is_open() { "auth.mode" } else { "auth.anonymous" };
            return Err(at(key, &why));
        }
        let log_filter = levels::filter(&new.config.log.level);
        let log_filter = log_filter.map_err(|error| refused([error.to_string()]))?;
        // Read with every reload, since the file may change without the config.
        let (auth, has_shared) = (new.config.auth.clone(), new.config.cluster.is_set());
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        let policy = blocking::run(move || Policy::load(&auth, has_shared)).await;
        let policy = policy.map_err(|error| at(error.key(), &error))?;
        let degraded = self.health.report().degraded;
        let mut certificate = None;
        if degraded.contains_key("tls") || changes.live.iter().any(|key| key.starts_with("tls.")) {
            let prepared = self.tls.prepare(&new.config.tls).await;
            certificate = Some(prepared.map_err(|error| at(error.key(), &error))?);
        }
        let bundle_keys =
            ["bundle.path", "bundles.max_inflated", "sync.max_inflated", "http.public_url"];
        let mut bundle = None;
        if degraded.contains_key("bundle")
            || changes.live.iter().any(|key| bundle_keys.contains(&key.as_str()))
        {
            let prepared = self.keeper.prepare(&new.config).await;
            bundle = Some(prepared.map_err(|error| at("bundle.path", &error))?);
        }
        Ok(Prepared { new, changed: changes.live, log_filter, policy, certificate, bundle })
    }

    /// Puts a prepared config into effect, which cannot fail. Returns the keys that changed.
    fn commit(&self, now: &mut LoadedConfig, prepared: Prepared<'_>) -> Vec<String> {
        let Prepared { new, changed, log_filter, policy, certificate, bundle } = prepared;
        if let Some(log_level) = &self.log_level {
            log_level.set(log_filter);
        }
        self.repeats.set_window(new.config.log.repeat.0);
        report::show_limits(&new.config, &self.metrics);
        self.config.send_replace(Arc::new(new.config.clone()));
        if let Some(certificate) = certificate {
            self.tls.install(certificate);
        }
        if let Some(bundle) = bundle {
            self.keeper.serve(bundle);
        }
        self.sessions.auth.set(policy);
        self.sessions.revalidate_all();
        report::show_sign_in(&new.config, &self.health);
        report::log_warnings(&new);
        *now = new;
        changed
    }

    /// Watches the config file. Applies a change, or logs that there is one. Runs forever.
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
                    "the config file has changed and is not in effect; run `tonk-relay \
                     --check-config`, then `tonk-relay reload`"
                );
            }
        }
    }
}

/// Reads and checks a config file.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn read(file: &Path) -> Result<LoadedConfig, Vec<load::Fault>> {
    let loaded = load::read_file(file)?;
    let faults = check::check(&loaded);
    if faults.is_empty() { Ok(loaded) } else { Err(faults) }
}

fn refused(problems: impl IntoIterator<Item = String>) -> Refused {
    Refused { problems: problems.into_iter().collect() }
}
