//! When each token was last used, for whoever wonders whether it can go: by the token's hash, in a file beside the
//! documents.

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
/// The largest file that is read.
const MAX_FILE: u64 = 64 << 20;
/// Tokens that are remembered: more than a file of tokens holds.
const MOST: usize = 200_000;

/// When each token was last used.
pub struct LastUse {
    file: PathBuf,
    temporary: PathBuf,
    seconds: Mutex<BTreeMap<String, u64>>,
    is_changed: AtomicBool,
}

/// What a relay has noted in a folder of documents; nothing where it has not.
pub fn read(documents: &Path) -> BTreeMap<String, SystemTime> {
    let at = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    noted(&documents.join(FILE))
        .into_iter()
        .filter_map(|(hash, seconds)| Some((hash, at(seconds)?)))
        .collect()
}

/// What stands in a file, in seconds since 1970; nothing where there is none.
#[expect(clippy::disallowed_methods, reason = "read before anything is served, or by a command")]
fn noted(file: &Path) -> BTreeMap<String, u64> {
    let text = folder::read(file, MAX_FILE).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

impl LastUse {
    /// Continues from what is recorded in the folder of documents. Files are written in the folder
    /// `temporary` of the same file system, and then moved.
    pub fn new(documents: &Path, temporary: PathBuf) -> Self {
        let file = documents.join(FILE);
        let seconds = Mutex::new(noted(&file));
        Self { file, temporary, seconds, is_changed: AtomicBool::new(false) }
    }

    /// A token is used now.
    pub fn note(&self, hash: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut seconds = lock(&self.seconds);
        let is_full = seconds.len() >= MOST;
        match seconds.get_mut(hash) {
            Some(at) if *at == now => return,
            Some(at) => *at = now,
            None if is_full => return,
            None => _ = seconds.insert(hash.to_owned(), now),
        }
        self.is_changed.store(true, Ordering::Relaxed);
    }

    /// Write what has changed. Blocks.
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
    fn what_was_used_is_known_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let temporary = folder.path().join("temporary");
        fs::create_dir(&temporary).expect("made");
        let used = LastUse::new(folder.path(), temporary.clone());
        used.save().expect("nothing to save");
        assert!(!folder.path().join(FILE).exists());
        used.note("aa");
        used.save().expect("saved");
        let again = LastUse::new(folder.path(), temporary);
        again.note("bb");
        again.save().expect("saved");
        let noted = read(folder.path());
        assert_eq!(noted.keys().collect::<Vec<_>>(), ["aa", "bb"]);
        assert!(noted["aa"].elapsed().expect("past") < Duration::from_secs(60));
    }
}
