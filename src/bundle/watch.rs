//! Reloading the served bundle when its file changes: when it is rewritten in place or replaced by
//! a rename, or when a symlink on its path is switched.
//!
//! Every folder that the path leads through is watched, also behind symlinks. After a change the
//! file must stay the same for a short time; then it is read as a whole. It is also checked every
//! `folders::POLL_INTERVAL`, for file systems that report no changes (NFS, some overlays).

mod folders;

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::{MutexGuard, mpsc, watch};
use tracing::{error, info, warn};

use self::folders::WatchedFolders;
use super::{
    MaxInflated,
    served::{ServeError, Served, ServedBundle},
};
use crate::{
    base::{blocking, lock::lock},
    config::Config,
    observe::{
        health::Health,
        metrics::{self, BundleMetrics},
    },
};

/// How long the file must not change before it is read.
const SETTLE_TIME: Duration = Duration::from_millis(150);

/// Watches the file that one path leads to.
pub struct PathWatch {
    path: PathBuf,
    /// Locked only on threads that may block.
    folders: Arc<Mutex<WatchedFolders>>,
    events: mpsc::Receiver<()>,
    seen: Option<Identity>,
}

/// Metadata that differs between two states of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// The time of the inode, which a change of permissions changes.
    changed: (i64, i64),
}

impl Identity {
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|found: Metadata| Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl PathWatch {
    /// Watches `path` for changes from now on.
    pub async fn new(path: &Path) -> Self {
        let path = path.to_owned();
        blocking::run(move || {
            let seen = Identity::of(&path);
            Self::start(path, seen)
        })
        .await
    }

    /// Watches `path` for changes since the state `seen`.
    async fn since(path: &Path, seen: Option<Identity>) -> Self {
        let path = path.to_owned();
        blocking::run(move || Self::start(path, seen)).await
    }

    /// Blocks.
    fn start(path: PathBuf, seen: Option<Identity>) -> Self {
        let (sender, events) = mpsc::channel(1);
        let mut folders = WatchedFolders::new(sender);
        folders.renew(&path);
        Self { path, folders: Arc::new(Mutex::new(folders)), events, seen }
    }

    /// Waits until the path leads to another file, or to one with another content, that no longer
    /// changes.
    pub async fn changed(&mut self) {
        // It may have changed before it was watched.
        let mut check_now = self.identity().await != self.seen;
        loop {
            tokio::select! {
                () = std::future::ready(()), if std::mem::take(&mut check_now) => {}
                Some(()) = self.events.recv() => {}
                () = tokio::time::sleep(folders::POLL_INTERVAL) => {}
            }
            let Some(mut now) = self.check().await else { continue };
            loop {
                tokio::time::sleep(SETTLE_TIME).await;
                let later = self.identity().await;
                if later == now {
                    break;
                }
                now = later;
            }
            while self.events.try_recv().is_ok() {}
            self.renew_watches().await;
            self.seen = now;
            return;
        }
    }

    async fn identity(&self) -> Option<Identity> {
        let path = self.path.clone();
        blocking::run(move || Identity::of(&path)).await
    }

    /// Returns the state of the file if it has changed. Otherwise renews the watches.
    async fn check(&self) -> Option<Option<Identity>> {
        let (path, folders, seen) = (self.path.clone(), self.folders.clone(), self.seen.clone());
        blocking::run(move || {
            let now = Identity::of(&path);
            if now != seen {
                return Some(now);
            }
            lock(&folders).renew(&path);
            None
        })
        .await
    }

    async fn renew_watches(&self) {
        let (path, folders) = (self.path.clone(), self.folders.clone());
        blocking::run(move || {
            lock(&folders).renew(&path);
        })
        .await;
    }
}

/// A bundle that is ready to be served, or none if none is configured. No other bundle is loaded
/// while this exists.
pub struct PreparedBundle<'a> {
    read: Option<(Arc<ServedBundle>, Option<Identity>)>,
    path: PathBuf,
    public_url: String,
    _loading: MutexGuard<'a, ()>,
}

/// Serves a bundle, and reloads it when its file changes.
pub struct BundleKeeper {
    config: watch::Receiver<Arc<Config>>,
    served: watch::Sender<Option<Arc<ServedBundle>>>,
    health: Arc<Health>,
    metrics: BundleMetrics,
    /// The file as it was when the served bundle was read.
    seen: Mutex<Option<Identity>>,
    /// Held while a bundle is loaded.
    loading: tokio::sync::Mutex<()>,
}

impl BundleKeeper {
    /// Creates a keeper that does not serve a bundle yet.
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        health: Arc<Health>,
        metrics: BundleMetrics,
    ) -> Self {
        let (served, _) = watch::channel(None);
        Self {
            config,
            served,
            health,
            metrics,
            seen: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// The served bundle, as a channel that reports every change of it.
    pub fn served(&self) -> Served {
        self.served.subscribe()
    }

    /// Reads the bundle that `config` names, if it names one, without serving it.
    ///
    /// # Errors
    /// The file cannot be read or is not a bundle.
    pub async fn prepare(&self, config: &Config) -> Result<PreparedBundle<'_>, ServeError> {
        let loading = self.loading.lock().await;
        self.read(config, loading).await
    }

    async fn read<'a>(
        &'a self,
        config: &Config,
        loading: MutexGuard<'a, ()>,
    ) -> Result<PreparedBundle<'a>, ServeError> {
        let path = config.bundle.path.clone();
        let public_url = config.http.public_url.clone();
        if path.as_os_str().is_empty() {
            return Ok(PreparedBundle { read: None, path, public_url, _loading: loading });
        }
        let max_inflated = MaxInflated::of(config);
        let reading = tokio::task::spawn_blocking({
            let path = path.clone();
            move || {
                let identity = Identity::of(&path);
                ServedBundle::load(&path, max_inflated).map(|bundle| (Arc::new(bundle), identity))
            }
        });
        let read = reading.await.unwrap_or_else(|panic| {
            let source = std::io::Error::other(panic);
            Err(ServeError::Unreadable { path: path.clone(), source })
        });
        match read {
            Ok(read) => {
                Ok(PreparedBundle { read: Some(read), path, public_url, _loading: loading })
            }
            Err(error) => {
                self.metrics.loads.with_label_values(&["failed"]).inc();
                Err(error)
            }
        }
    }

    /// Serves a prepared bundle.
    pub fn serve(&self, prepared: PreparedBundle<'_>) {
        let PreparedBundle { read, path, public_url, _loading } = prepared;
        self.metrics.info.reset();
        self.health.set_degraded("bundle", None);
        let Some((bundle, identity)) = read else {
            self.served.send_replace(None);
            return;
        };
        *lock(&self.seen) = identity;
        self.metrics.loads.with_label_values(&["loaded"]).inc();
        self.metrics.loaded_at.set(metrics::now());
        self.metrics.info.with_label_values(&[&bundle.sha256]).set(1);
        warn_of_other_servers(&bundle.network_uris, &public_url);
        info!(
            path = %path.display(),
            sha256 = bundle.sha256,
            documents = bundle.documents.len(),
            bytes = bundle.file.len(),
            "serving the bundle"
        );
        self.served.send_replace(Some(bundle));
    }

    /// Reloads the bundle whenever its file changes, forever.
    pub async fn run(&self) {
        let mut config = self.config.clone();
        loop {
            let path = config.borrow_and_update().bundle.path.clone();
            if path.as_os_str().is_empty() {
                if config.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let seen = lock(&self.seen).clone();
            let mut file = PathWatch::since(&path, seen).await;
            loop {
                tokio::select! {
                    () = file.changed() => self.reload().await,
                    changed = config.changed() => match changed {
                        Err(_) => return,
                        Ok(()) if config.borrow().bundle.path != path => break,
                        Ok(()) => {}
                    },
                }
            }
        }
    }

    async fn reload(&self) {
        let loading = self.loading.lock().await;
        // Read after the lock was acquired: a config reload may have named another file meanwhile.
        let config = self.config.borrow().clone();
        match self.read(&config, loading).await {
            Ok(prepared) => self.serve(prepared),
            Err(error) => {
                error!("cannot serve the changed bundle; still serving the last good one: {error}");
                self.health.set_degraded("bundle", Some(error.to_string()));
            }
        }
    }
}

/// Warns if a bundle sends clients to other servers only.
fn warn_of_other_servers(network_uris: &[String], public_url: &str) {
    let host = |url: &str| {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        rest.split(['/', '?']).next().unwrap_or(rest).to_ascii_lowercase()
    };
    if !public_url.is_empty()
        && !network_uris.is_empty()
        && !network_uris.iter().any(|uri| host(uri) == host(public_url))
    {
        warn!(
            network_uris = network_uris.join(" "),
            public_url,
            "the served bundle sends clients to other servers: none of its networkUris is \
             http.public_url"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    async fn expect_change(watch: &mut PathWatch, what: &str) {
        tokio::time::timeout(Duration::from_secs(5), watch.changed())
            .await
            .unwrap_or_else(|_| panic!("{what} was not noticed"));
    }

    #[tokio::test]
    async fn a_change_anywhere_on_the_path_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for release in ["r1", "r2", "r3"] {
            fs::create_dir(at(release)).expect("made");
            fs::write(at(release).join("app.tonk"), release).expect("written");
        }
        symlink("r1", at("current")).expect("linked");
        symlink("current/app.tonk", at("app.tonk")).expect("linked");
        let mut watch = PathWatch::new(&at("app.tonk")).await;

        fs::write(at("r1/app.tonk"), "in place").expect("written");
        expect_change(&mut watch, "a rewrite in place").await;
        fs::write(at("r1/new"), "by rename").expect("written");
        fs::rename(at("r1/new"), at("r1/app.tonk")).expect("renamed");
        expect_change(&mut watch, "a rename over it").await;
        for release in ["r2", "r3"] {
            symlink(release, at("next")).expect("linked");
            fs::rename(at("next"), at("current")).expect("renamed");
            expect_change(&mut watch, "a switched symlink").await;
        }
        fs::write(at("r3/app.tonk"), "in place again").expect("written");
        expect_change(&mut watch, "a rewrite behind the switched symlink").await;
        fs::remove_dir_all(at("r3")).expect("removed");
        expect_change(&mut watch, "its removal").await;
        fs::create_dir(at("r3")).expect("made");
        fs::write(at("r3/app.tonk"), "back").expect("written");
        expect_change(&mut watch, "its return").await;
    }

    #[tokio::test]
    async fn two_watches_in_one_folder_are_independent() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "1").expect("written");
        fs::write(at("b"), "1").expect("written");
        let (mut a, mut b) = (PathWatch::new(&at("a")).await, PathWatch::new(&at("b")).await);
        fs::write(at("a"), "two").expect("written");
        expect_change(&mut a, "the first").await;
        drop(a);
        fs::write(at("b"), "two").expect("written");
        expect_change(&mut b, "the other, which is still watched").await;
    }
}
