//! The folders that watched paths lead through. They share one inotify instance, because a user may
//! have only 128.

use crate::base::{blocking, lock::lock};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
    recommended_watcher,
};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs,
    path::{Component, Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::warn;

/// How often a file is checked if no change was reported.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Symlinks that the kernel follows in one path (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

static SHARED: LazyLock<Shared> = LazyLock::new(Shared::new);
/// The next listener's id.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The watcher of this process, and its listeners.
struct Shared {
    /// Locked while watches are added and removed. `None` if the system reports no changes.
    watcher: Mutex<Option<RecommendedWatcher>>,
    /// Must not be locked while the watcher is called: the watcher's thread answers calls, and
    /// locks this for every event.
    listeners: Arc<Mutex<Listeners>>,
}

/// The listeners of each folder.
type Listeners = HashMap<PathBuf, Vec<(u64, mpsc::Sender<()>)>>;

/// The folders that decide what one path leads to.
pub(super) struct WatchedFolders {
    id: u64,
    changes: mpsc::Sender<()>,
    folders: BTreeSet<PathBuf>,
}

impl Shared {
    fn new() -> Self {
        let listeners = Arc::<Mutex<Listeners>>::default();
        let notified = listeners.clone();
        let watcher = recommended_watcher(move |event: notify::Result<notify::Event>| {
            notify_listeners(&mut lock(&notified), event.ok());
        })
        .inspect_err(|error| {
            warn!(
                "cannot watch files for changes; checking them every {POLL_INTERVAL:?} instead: \
                 {error}"
            );
        });
        Self { watcher: Mutex::new(watcher.ok()), listeners }
    }
}

/// Notifies the listeners of the folder that an event names. An event without a path concerns all
/// listeners.
fn notify_listeners(listeners: &mut Listeners, event: Option<notify::Event>) {
    let signal = |concerned: &[(u64, mpsc::Sender<()>)]| {
        for (_, changes) in concerned {
            // One pending signal is enough, because the receiver checks the file itself.
            let _ = changes.try_send(());
        }
    };
    match event {
        // Reading does not change a file, and programs often read files in /etc.
        Some(event) if event.kind.is_access() && !is_written(event.kind) => {}
        Some(event) if !event.paths.is_empty() => {
            for path in &event.paths {
                for folder in path.parent().into_iter().chain([path.as_path()]) {
                    listeners.get(folder).map(Vec::as_slice).into_iter().for_each(signal);
                }
            }
        }
        _ => listeners.values().map(Vec::as_slice).for_each(signal),
    }
}

fn is_written(kind: EventKind) -> bool {
    kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

impl WatchedFolders {
    /// Watches no folder yet. Changes are reported to `changes`.
    pub(super) fn new(changes: mpsc::Sender<()>) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, changes, folders: BTreeSet::new() }
    }

    /// Watches the folders through which `path` leads now. Blocks.
    pub(super) fn renew(&mut self, path: &Path) {
        let folders = folders_of(path);
        replace(self.id, &self.changes, &self.folders, &folders);
        self.folders = folders;
    }
}

/// Replaces the folders that a listener watches. Blocks until the watcher's thread has answered.
fn replace(
    id: u64,
    changes: &mpsc::Sender<()>,
    before: &BTreeSet<PathBuf>,
    folders: &BTreeSet<PathBuf>,
) {
    let mut watcher = lock(&SHARED.watcher);
    let Some(watcher) = &mut *watcher else { return };
    let mut unused = Vec::new();
    {
        let mut listeners = lock(&SHARED.listeners);
        for removed in before.difference(folders) {
            if let Some(concerned) = listeners.get_mut(removed) {
                concerned.retain(|(listener, _)| *listener != id);
                if concerned.is_empty() {
                    listeners.remove(removed);
                    unused.push(removed);
                }
            }
        }
        for new in folders.difference(before) {
            listeners.entry(new.clone()).or_default().push((id, changes.clone()));
        }
    }
    for folder in unused {
        // Fails if the folder was deleted; then there is no watch to remove.
        let _ = watcher.unwatch(folder);
    }
    for folder in folders {
        // Folders that were already watched are watched again, because the path may name another
        // folder now. Fails if the folder does not exist; then its parent is watched.
        let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
    }
}

impl Drop for WatchedFolders {
    fn drop(&mut self) {
        let (id, changes) = (self.id, self.changes.clone());
        let folders = std::mem::take(&mut self.folders);
        let release = move || replace(id, &changes, &folders, &BTreeSet::new());
        blocking::detach(release);
    }
}

/// The folders whose entries decide what `path` leads to.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn folders_of(path: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut left: Vec<OsString> = Vec::new();
    let push = |left: &mut Vec<OsString>, path: &Path| {
        left.extend(path.components().rev().map(|part| part.as_os_str().to_owned()));
    };
    push(&mut left, &std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let mut here = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => here = PathBuf::from("/"),
            Some(Component::ParentDir) => _ = here.pop(),
            Some(Component::Normal(name)) => {
                folders.insert(here.clone());
                let next = here.join(name);
                match fs::read_link(&next) {
                    Ok(target) if links < MAX_LINKS => {
                        links += 1;
                        push(&mut left, &target);
                    }
                    _ => here = next,
                }
            }
            _ => {}
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_loop_of_symlinks_is_followed_a_limited_number_of_times() {
        let folder = tempfile::tempdir().expect("a folder");
        symlink("b", folder.path().join("a")).expect("linked");
        symlink("a", folder.path().join("b")).expect("linked");
        assert!(folders_of(&folder.path().join("a/x")).contains(folder.path()));
    }

    #[test]
    fn all_paths_share_one_inotify_instance() {
        let instances = || {
            let entries = fs::read_dir("/proc/self/fd").expect("proc").flatten();
            let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
            links.filter(|target| target.to_string_lossy().contains("inotify")).count()
        };
        let folder = tempfile::tempdir().expect("a folder");
        let watch = |name: &str| {
            let mut watched = WatchedFolders::new(mpsc::channel(1).0);
            watched.renew(&folder.path().join(name));
            watched
        };
        let first = watch("a");
        let one = instances();
        let more: Vec<_> = ["b", "c", "d"].into_iter().map(watch).collect();
        assert_eq!(instances(), one);
        drop((first, more));
        assert!(!lock(&SHARED.listeners).contains_key(folder.path()), "nothing is left");
    }
}
