//! The folders that watched paths lead through. All of them share one inotify instance: a user may have 128.

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

/// How often the file is looked at when nothing was reported.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// Symlinks that a path may lead through, as the kernel has it (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

static SHARED: LazyLock<Shared> = LazyLock::new(Shared::new);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The process's watcher, and whom it tells.
struct Shared {
    /// Held while watches are added and removed. None where the system reports no changes.
    watcher: Mutex<Option<RecommendedWatcher>>,
    /// Never held while the watcher is called: its thread takes this lock with every event, and answers calls.
    listeners: Arc<Mutex<Listeners>>,
}

/// By folder, everybody whose path leads through it.
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
        let told = listeners.clone();
        let watcher = recommended_watcher(move |event: notify::Result<notify::Event>| {
            tell(&mut lock(&told), event.ok());
        })
        .inspect_err(|error| {
            warn!(
                "file changes are not reported; watched files are checked every {LOOK:?}: {error}"
            );
        });
        Self { watcher: Mutex::new(watcher.ok()), listeners }
    }
}

/// Notifies the listeners of the folder that an event names. An event without a path concerns all
/// listeners.
fn tell(listeners: &mut Listeners, event: Option<notify::Event>) {
    let notify = |concerned: &[(u64, mpsc::Sender<()>)]| {
        for (_, changes) in concerned {
            // One signal says all: the receiver looks for itself.
            let _ = changes.try_send(());
        }
    };
    match event {
        // Programs read files in /etc whenever they start. Reading a file does not change it.
        Some(event) if event.kind.is_access() && !is_written(event.kind) => {}
        Some(event) if !event.paths.is_empty() => {
            for path in &event.paths {
                for folder in path.parent().into_iter().chain([path.as_path()]) {
                    listeners.get(folder).map(Vec::as_slice).into_iter().for_each(notify);
                }
            }
        }
        _ => listeners.values().map(Vec::as_slice).for_each(notify),
    }
}

fn is_written(kind: EventKind) -> bool {
    kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

impl WatchedFolders {
    /// None yet; `changes` hears of what happens in them.
    pub(super) fn new(changes: mpsc::Sender<()>) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, changes, folders: BTreeSet::new() }
    }

    /// Watch the folders through which `path` leads now. Blocks.
    pub(super) fn renew(&mut self, path: &Path) {
        let folders = folders_of(path);
        replace(self.id, &self.changes, &self.folders, &folders);
        self.folders = folders;
    }
}

/// Watch folders for a listener instead of those that it had before. Blocks for as long as the watcher's thread takes to answer.
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
        for gone in before.difference(folders) {
            if let Some(concerned) = listeners.get_mut(gone) {
                concerned.retain(|(listener, _)| *listener != id);
                if concerned.is_empty() {
                    listeners.remove(gone);
                    unused.push(gone);
                }
            }
        }
        for new in folders.difference(before) {
            listeners.entry(new.clone()).or_default().push((id, changes.clone()));
        }
    }
    for folder in unused {
        // It fails for a folder that was removed, which is as good.
        let _ = watcher.unwatch(folder);
    }
    for folder in folders {
        // Also those that are watched: a path that names another folder now needs a new watch. It fails for a folder that is
        // missing, whose parent is watched.
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
    fn symlinks_that_lead_in_circles_end() {
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
