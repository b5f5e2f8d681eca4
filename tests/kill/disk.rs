//! A simulated disk that drops what was not synchronised. It replays a program's system calls, as
//! strace records them, and keeps only what a disk must have kept.
//!
//! A file has the content of its last fsync. A name is created or removed once its folder was
//! synchronised afterwards (POSIX promises no more, though most file systems do).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// The system calls that strace records, and how.
pub(crate) const STRACE: [&str; 9] = [
    "-f",
    "--seccomp-bpf",
    "-y",
    "-qqq",
    "-xx",
    "-s",
    "100000000",
    "-e",
    "trace=openat,write,writev,pwrite64,ftruncate,fallocate,fsync,fdatasync,rename,renameat,\
     renameat2,unlink,unlinkat,\
     mkdir,mkdirat,rmdir,link,linkat",
];

/// What a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    File(usize),
}

#[derive(Default)]
struct File {
    content: Vec<u8>,
    durable: Vec<u8>,
}

pub(crate) struct Disk {
    root: PathBuf,
    files: Vec<File>,
    names: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
}

impl Disk {
    /// Reads a folder. Its current content counts as durable.
    pub(crate) fn of(root: &Path) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            files: Vec::new(),
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
        };
        disk.read(root);
        disk.durable = disk.names.clone();
        disk
    }

    fn read(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).expect("lists") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                self.names.insert(path.clone(), Entry::Folder);
                self.read(&path);
            } else if path.is_file() {
                let content = fs::read(&path).expect("reads");
                self.names.insert(path, Entry::File(self.files.len()));
                self.files.push(File { durable: content.clone(), content });
            }
        }
    }

    /// Replays what strace recorded.
    pub(crate) fn play(&mut self, log: &str) {
        let mut begun: HashMap<&str, (String, Option<Vec<u8>>)> = HashMap::new();
        for line in log.lines() {
            let Some((thread, call)) = line.split_once(' ') else { continue };
            let call = call.trim_start();
            if let Some(start) = call.strip_suffix(" <unfinished ...>") {
                // Writes during a synchronisation may not be on the disk afterwards.
                let synced = start.starts_with("f").then(|| self.content_at(start)).flatten();
                begun.insert(thread, (start.to_owned(), synced));
            } else if let Some((_, end)) = call.split_once(" resumed>") {
                if let Some((start, synced)) = begun.remove(thread) {
                    self.call(&format!("{start}{end}"), synced);
                }
            } else {
                self.call(call, None);
            }
        }
    }

    fn content_at(&self, call: &str) -> Option<Vec<u8>> {
        match self.names.get(&described(call)?)? {
            Entry::File(file) => Some(self.files[*file].content.clone()),
            Entry::Folder => None,
        }
    }

    fn call(&mut self, call: &str, synced: Option<Vec<u8>>) {
        let Some((name, rest)) = call.split_once('(') else { return };
        // A call that the kill interrupted may have taken effect or not, because nobody has seen
        // its result.
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
        if result.starts_with('-') || result.starts_with('?') {
            return;
        }
        let texts = texts(arguments);
        let number = |text: &str| text.trim().trim_end_matches(')').parse::<usize>().ok();
        let last = arguments.trim_end().trim_end_matches(')').rsplit(", ").next().and_then(number);
        match name {
            "openat" => self.open(arguments, result),
            "write" | "pwrite64" => {
                let (Some(data), Some(written)) = (texts.first(), number(result)) else { return };
                // Files are written sequentially unless an offset is given.
                let at = (name == "pwrite64").then(|| last.expect("an offset"));
                self.write(arguments, data, written, at);
            }
            "ftruncate" => {
                if let Some(Entry::File(file)) =
                    described(arguments).and_then(|path| self.names.get(&path))
                {
                    self.files[*file].content.resize(last.expect("a length"), 0);
                }
            }
            "writev" | "fallocate" | "link" | "linkat" => {
                let path = described(arguments).unwrap_or_default();
                assert!(!path.starts_with(&self.root), "not simulated: {call}");
            }
            "fsync" | "fdatasync" => self.sync(arguments, synced),
            "rename" | "renameat" | "renameat2" => {
                let [from, to] = &texts[..] else { return };
                let (from, to) = (path(from), path(to));
                if let Some(entry) = self.names.remove(&from) {
                    assert!(entry != Entry::Folder, "not simulated: {call}");
                    self.names.insert(to, entry);
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                if let Some(name) = texts.first() {
                    self.names.remove(&path(name));
                }
            }
            "mkdir" | "mkdirat" => {
                if let Some(name) = texts.first()
                    && path(name).starts_with(&self.root)
                {
                    self.names.insert(path(name), Entry::Folder);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, arguments: &str, result: &str) {
        let Some(path) = described(result) else { return };
        if !path.starts_with(&self.root) {
            return;
        }
        if arguments.contains("O_CREAT") && !self.names.contains_key(&path) {
            self.names.insert(path.clone(), Entry::File(self.files.len()));
            self.files.push(File::default());
        }
        if arguments.contains("O_TRUNC")
            && let Some(Entry::File(file)) = self.names.get(&path)
        {
            self.files[*file].content.clear();
        }
    }

    /// Writes the first `written` bytes of `data` at an offset, or at the end.
    fn write(&mut self, arguments: &str, data: &[u8], written: usize, at: Option<usize>) {
        let Some(Entry::File(file)) = described(arguments).and_then(|path| self.names.get(&path))
        else {
            return;
        };
        let content = &mut self.files[*file].content;
        let at = at.unwrap_or(content.len());
        content.resize(content.len().max(at + written), 0);
        content[at..at + written].copy_from_slice(&data[..written]);
    }

    fn sync(&mut self, arguments: &str, synced: Option<Vec<u8>>) {
        let Some(path) = described(arguments) else { return };
        match self.names.get(&path) {
            Some(Entry::File(file)) => {
                let file = &mut self.files[*file];
                file.durable = synced.unwrap_or_else(|| file.content.clone());
            }
            Some(Entry::Folder) => self.sync_folder(&path),
            None if path == self.root => self.sync_folder(&path),
            None => {}
        }
    }

    fn sync_folder(&mut self, folder: &Path) {
        self.durable.retain(|path, _| path.parent() != Some(folder));
        let now = self.names.iter().filter(|(path, _)| path.parent() == Some(folder));
        self.durable.extend(now.map(|(path, entry)| (path.clone(), *entry)));
    }

    /// Restores the folder to its state after the power loss. Returns how many files differ from
    /// what the program saw.
    pub(crate) fn lose_power(self) -> usize {
        let mut lost = 0;
        fs::remove_dir_all(&self.root).expect("is removed");
        fs::create_dir(&self.root).expect("is made");
        let mut folders = HashSet::from([self.root.clone()]);
        for (path, entry) in &self.durable {
            // In the order of their names, so that a folder precedes its content.
            if !path.parent().is_some_and(|folder| folders.contains(folder)) {
                continue;
            }
            match entry {
                Entry::Folder => {
                    fs::create_dir(path).expect("is made");
                    folders.insert(path.clone());
                }
                Entry::File(file) => {
                    let file = &self.files[*file];
                    lost += usize::from(file.durable != file.content);
                    fs::write(path, &file.durable).expect("writes");
                }
            }
        }
        lost + self.names.keys().filter(|path| !self.durable.contains_key(*path)).count()
    }
}

/// The path of the first descriptor: `3<\x2f...>`.
fn described(text: &str) -> Option<PathBuf> {
    let (_, rest) = text.split_once('<')?;
    let (hex, _) = rest.split_once('>')?;
    Some(path(&unescaped(hex)))
}

/// The quoted texts among the arguments.
fn texts(arguments: &str) -> Vec<Vec<u8>> {
    arguments.split('"').skip(1).step_by(2).map(unescaped).collect()
}

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// `\x2f` is a byte; strace writes every byte in this form.
fn unescaped(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits.filter_map(|digits| u8::from_str_radix(digits.get(..2)?, 16).ok()).collect()
}
