//! When each token was last used, so that an operator can remove unused ones. Recorded by the
//! token's hash, in a file in the folder of documents.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::base::{folder, lock::lock};

/// The file's name in the folder of documents.
pub const FILE: &str = ".token-use.json";
/// The largest such file, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// Tokens to remember: more than a file of tokens holds.
const MAX_TOKENS: usize = 200_000;

/// When each token was last used.
pub struct LastUse {
    file: PathBuf,
    temporary: PathBuf,
    seconds: Mutex<BTreeMap<String, u64>>,
    is_changed: AtomicBool,
}

/// Returns what is recorded in a folder of documents. Empty if nothing is.
pub fn read(documents: &Path) -> BTreeMap<String, SystemTime> {
    read_file(&documents.join(FILE))
        .into_iter()
        .filter_map(|(hash, seconds)| Some((hash, from_seconds(seconds)?)))
        .collect()
}

/// Converts from seconds since 1970.
pub fn from_seconds(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Reads a file, whose times are in seconds since 1970. Empty if there is none.
#[expect(clippy::disallowed_methods, reason = "read before anything is served, or by a command")]
fn read_file(file: &Path) -> BTreeMap<String, u64> {
    let text = folder::read(file, MAX_FILE).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

impl LastUse {
    /// Continues from what is recorded in the folder of documents. Files are written in the folder
    /// `temporary` of the same file system, and then moved.
    pub fn new(documents: &Path, temporary: PathBuf) -> Self {
        let file = documents.join(FILE);
        let seconds = Mutex::new(read_file(&file));
        Self { file, temporary, seconds, is_changed: AtomicBool::new(false) }
    }

    /// Records that a token is used now.
    pub fn record(&self, hash: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut seconds = lock(&self.seconds);
        let is_full = seconds.len() >= MAX_TOKENS;
        match seconds.get_mut(hash) {
            Some(at) if *at == now => return,
            Some(at) => *at = now,
            None if is_full => return,
            None => _ = seconds.insert(hash.to_owned(), now),
        }
        self.is_changed.store(true, Ordering::Relaxed);
    }

    /// Returns the records, in seconds since 1970.
    pub fn seconds(&self) -> BTreeMap<String, u64> {
        lock(&self.seconds).clone()
    }

    /// Saves the records, if any has changed. Blocks.
    ///
    /// # Errors
    /// The file cannot be written.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    pub fn save(&self) -> io::Result<()> {
        if !self.is_changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let text = serde_json::to_vec(&*lock(&self.seconds))?;
        let written = (|| {
            let mut file = tempfile::NamedTempFile::new_in(&self.temporary)?;
            io::Write::write_all(&mut file, &text)?;
            file.persist(&self.file).map_err(|error| error.error)?;
            Ok(())
        })();
        if written.is_err() {
            self.is_changed.store(true, Ordering::Relaxed);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_use_is_kept_over_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let temporary = folder.path().join("temporary");
        fs::create_dir(&temporary).expect("made");
        let used = LastUse::new(folder.path(), temporary.clone());
        used.save().expect("nothing to save");
        assert!(!folder.path().join(FILE).exists());
        used.record("aa");
        used.save().expect("saved");
        let again = LastUse::new(folder.path(), temporary);
        again.record("bb");
        again.save().expect("saved");
        let recorded = read(folder.path());
        assert_eq!(recorded.keys().collect::<Vec<_>>(), ["aa", "bb"]);
        assert!(recorded["aa"].elapsed().expect("past") < Duration::from_secs(60));
    }
}
