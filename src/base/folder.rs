//! Reads and changes files in folders that another user may own.
//!
//! A command that root runs must not use root's rights for what the owner of such a folder plants there: symbolic
//! links, hard links to files of others, names that change while the command runs. So a [`Folder`] is an open
//! descriptor, and everything happens relative to it. Root reaches it component by component, and follows only
//! symbolic links of its own in folders of its own. Other users have no rights that a link could borrow: for them
//! links on the way to a folder work as usual.

#![allow(clippy::disallowed_methods, reason = "for commands, and for threads that may block")]

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, fstat, mkdirat,
        openat, readlinkat, renameat, statat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use crate::base::{document_id::DocumentId, regular_file};

/// As many symbolic links as the kernel follows on the way to a file (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// An open folder.
#[derive(Debug)]
pub struct Folder {
    file: File,
    path: PathBuf,
}

/// What is in a folder.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// Its path, by the path of the folder.
    pub path: PathBuf,
    /// Whether it is a folder. A link that [`Folder::open`] follows to one counts.
    pub is_folder: bool,
    /// Whether it is a regular file. A link is none.
    pub is_file: bool,
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// It cannot be opened, or root would have to follow a link of another user.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::find(path, false)
    }

    /// Opens a folder, which is made if it is not there, with those above it.
    ///
    /// # Errors
    /// As [`Self::open`], or it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::find(path, true)
    }

    fn find(path: &Path, creates: bool) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let file = if geteuid().is_root() {
            match walk(&path, creates)? {
                Reached { folder, file: None, .. } => folder,
                // The folder does not exist; opening it gives the exact error.
                Reached { folder, file: Some(name), .. } => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                    openat(&folder, name, flags | OFlags::CLOEXEC, Mode::empty())?
                }
            }
        } else {
            if creates {
                std::fs::create_dir_all(&path)?;
            }
            openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?
        };
        Ok(Self { file: listable(&file)?, path })
    }

    /// Opens the folder that holds the file `path`, or would hold it, and returns it with the file's name. A link in
    /// the place of the file is followed, as one on the way to it.
    ///
    /// # Errors
    /// As [`Self::open`], or `path` is a folder.
    pub fn holding(path: &Path) -> io::Result<(Self, OsString)> {
        let path = std::path::absolute(path)?;
        // Another user follows links by rights of its own: the result is the same as by path.
        let Reached { folder, file, path } = walk(&path, false)?;
        let name = file.ok_or(io::ErrorKind::IsADirectory)?;
        Ok((Self { file: listable(&folder)?, path }, name))
    }

    /// The open folder.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its path when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file in the folder for reading. Links are not followed, and root does not open another user's
    /// file that the folder's owner may have linked there.
    ///
    /// # Errors
    /// The file cannot be opened, is not a regular file, or is one that is refused.
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.file, name.as_ref(), flags, Mode::empty()) {
            Err(Errno::LOOP) => return Err(refused_link()),
            opened => regular_file::check(opened?.into())?,
        };
        let (found, folder) = (fstat(&file)?, fstat(&self.file)?);
        let is_foreign = found.st_nlink > 1 && found.st_uid != folder.st_uid;
        if is_foreign && folder.st_uid != 0 && geteuid().is_root() {
            let problem = "is a hard link to another user's file, which root does not read";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
        }
        Ok(file)
    }

    /// Reads a file in the folder of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Self::open_file`], or it is larger.
    pub fn read(&self, name: impl AsRef<OsStr>, limit: u64) -> io::Result<Vec<u8>> {
        regular_file::read_open(self.open_file(name)?, limit)
    }

    /// What is known of a file in the folder; nothing if there is none.
    ///
    /// # Errors
    /// It cannot be told, or is not a regular file.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Option<Stat>> {
        match statat(&self.file, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => {
                Err(io::Error::other("is not a regular file"))
            }
            found => Ok(Some(found?)),
        }
    }

    /// Writes a file in the folder as a whole or not at all. Its content is synchronised, its name is not: that takes
    /// [`Self::file`]. It has the given mode less the umask, or is `like` another: it has that one's mode, and if root
    /// writes it, its owner and group too.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(
        &self,
        name: impl AsRef<OsStr>,
        data: &[u8],
        mode: u32,
        like: Option<&Stat>,
    ) -> io::Result<()> {
        let aside = format!(".tmp-{}", DocumentId::random());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let first = if like.is_some() { 0o600 } else { mode };
        let file = openat(&self.file, &aside, flags, Mode::from_raw_mode(first))?;
        let written = (|| {
            let mut file = File::from(file);
            file.write_all(data)?;
            if let Some(like) = like {
                if geteuid().is_root() {
                    let (owner, group) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
                    fchown(&file, Some(owner), Some(group))?;
                }
                fchmod(&file, Mode::from_raw_mode(like.st_mode & 0o777))?;
            }
            file.sync_all()?;
            Ok(renameat(&self.file, &aside, &self.file, name.as_ref())?)
        })();
        if written.is_err() {
            let _ = unlinkat(&self.file, &aside, AtFlags::empty());
        }
        written
    }

    /// Deletes a file in the folder, if it exists.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        match unlinkat(&self.file, name.as_ref(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Deletes a folder in this one, with all that is in it. Links in it are deleted and not followed.
    ///
    /// # Errors
    /// Something in it cannot be deleted.
    pub fn remove_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = listable(&openat(&self.file, name, flags, Mode::empty())?)?;
        let inner = Self { file, path: self.path.join(name) };
        for (name, kind) in inner.names()? {
            match kind {
                FileType::Directory => inner.remove_folder(name)?,
                _ => inner.remove(name)?,
            }
        }
        Ok(unlinkat(&self.file, name, AtFlags::REMOVEDIR)?)
    }

    /// What is in the folder, in the order of the names.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn entries(&self) -> io::Result<Vec<Item>> {
        let entry = |(name, kind): (OsString, FileType)| {
            let path = self.path.join(name);
            let is_folder = match kind {
                FileType::Symlink => Self::open(&path).is_ok(),
                kind => kind == FileType::Directory,
            };
            Item { path, is_folder, is_file: kind == FileType::RegularFile }
        };
        let mut entries: Vec<Item> = self.names()?.into_iter().map(entry).collect();
        entries.sort_unstable();
        Ok(entries)
    }

    fn names(&self) -> io::Result<Vec<(OsString, FileType)>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.file)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Not every file system tells.
                FileType::Unknown => match statat(&self.file, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => continue,
                    found => FileType::from_raw_mode(found?.st_mode),
                },
                kind => kind,
            };
            names.push((name, kind));
        }
        Ok(names)
    }
}

/// Reads a regular file of at most `limit` bytes that was found in a folder which another user may own.
///
/// # Errors
/// As [`Folder::open_file`], or it is larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    regular_file::read_open(open_file(path)?, limit)
}

/// Opens a regular file that was found in a folder which another user may own.
///
/// # Errors
/// As [`Folder::open_file`].
pub fn open_file(path: &Path) -> io::Result<File> {
    match (geteuid().is_root(), path.parent(), path.file_name()) {
        (true, Some(folder), Some(name)) => Folder::open(folder)?.open_file(name),
        _ => regular_file::open(path),
    }
}

/// The user and group by whose rights files below a folder are to be changed: the owner of the innermost folder on the
/// way to it that is not root's, because that user could exchange what is further in; root if all of them are.
///
/// # Errors
/// The way leads over another user's link.
pub fn owner(path: &Path) -> io::Result<(u32, u32)> {
    let mut owner = (0, 0);
    let mut folders: Vec<&Path> = path.ancestors().collect();
    folders.reverse();
    for folder in folders {
        match Folder::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            opened => {
                let found = fstat(opened?.file())?;
                if found.st_uid != 0 {
                    owner = (found.st_uid, found.st_gid);
                }
            }
        }
    }
    Ok(owner)
}

/// Checks that the file system of a folder that can be written tells upper case from lower case: ids of documents may
/// differ in case alone.
///
/// # Errors
/// It does not, or the folder cannot be written.
pub fn check_case(folder: &Path) -> io::Result<()> {
    const NAMES: (&str, &str) = ("case-probe", "CASE-PROBE");
    let folder = Folder::open(folder)?;
    folder.write(NAMES.0, b"", 0o600, None)?;
    let other = folder.stat(NAMES.1);
    folder.remove(NAMES.0)?;
    if other?.is_some() {
        let problem = "the file system takes names that differ only in case for the same, and documents have such names: \
                       choose a folder on another one";
        return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
    }
    Ok(())
}

fn refused_link() -> io::Error {
    let problem = "is a symbolic link, which is not followed here";
    io::Error::new(io::ErrorKind::PermissionDenied, problem)
}

/// The same folder, opened so that it can be listed and synchronised.
fn listable(folder: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(folder, ".", flags, Mode::empty())?.into())
}

/// Where a way through folders leads.
struct Reached {
    folder: OwnedFd,
    /// The path of the folder, without links.
    path: PathBuf,
    /// The name in the folder of what is not a folder itself: a file, or nothing yet.
    file: Option<OsString>,
}

/// Goes from folder to folder without letting the kernel follow links. `creates`: makes those that are not there.
fn walk(path: &Path, creates: bool) -> io::Result<Reached> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = || openat(CWD, "/", flags | OFlags::DIRECTORY, Mode::empty());
    let (mut folder, mut so_far, mut links) = (root()?, PathBuf::from("/"), 0);
    let mut names = names_of(path);
    while let Some(name) = names.pop_front() {
        let mut next = openat(&folder, &name, flags, Mode::empty());
        if creates && next.as_ref().is_err_and(|error| *error == Errno::NOENT) {
            match mkdirat(&folder, &name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            next = openat(&folder, &name, flags, Mode::empty());
        }
        let next = match next {
            Err(Errno::NOENT) if names.is_empty() => {
                return Ok(Reached { folder, path: so_far, file: Some(name) });
            }
            next => next?,
        };
        let found = fstat(&next)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                if name == ".." {
                    so_far.pop();
                } else {
                    so_far.push(&name);
                }
                folder = next;
            }
            FileType::Symlink => {
                links += 1;
                let is_trusted = found.st_uid == 0 && fstat(&folder)?.st_uid == 0;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                if geteuid().is_root() && !is_trusted {
                    let problem = format!(
                        "{} is a symbolic link of another user, which root does not follow",
                        so_far.join(&name).display()
                    );
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
                }
                let target = readlinkat(&next, "", Vec::new())?.into_bytes();
                let target = PathBuf::from(OsString::from_vec(target));
                if target.is_absolute() {
                    (folder, so_far) = (root()?, PathBuf::from("/"));
                }
                let mut all = names_of(&target);
                all.append(&mut names);
                names = all;
            }
            _ if names.is_empty() => {
                return Ok(Reached { folder, path: so_far, file: Some(name) });
            }
            _ => return Err(io::ErrorKind::NotADirectory.into()),
        }
    }
    Ok(Reached { folder, path: so_far, file: None })
}

fn names_of(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn commands_and_storage_read_and_write_files_by_this_alone() {
        // What follows links, waits for a FIFO, or reads without an end; and what root would do by a path.
        let reads = ["fs::read(", "fs::read_to_string(", "File::open(", "fs::read_link("];
        let writes = [
            "fs::write(",
            "File::create",
            "fs::rename(",
            "fs::remove_",
            "fs::create_dir",
            "fs::copy(",
            "set_permissions(",
            "chown(",
            "tempfile",
        ];
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        let mut folders = vec![source.join("cli"), source.join("storage")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("lists") {
                let path = entry.expect("an entry").path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
            let text = fs::read_to_string(file).expect("reads");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let is_command = !file.starts_with(source.join("storage"));
            let banned = reads.iter().chain(writes.iter().filter(|_| is_command));
            for call in banned {
                // As a whole word: nodefs::read( is not fs::read(.
                let found = code.match_indices(call).any(|(at, _)| {
                    !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
                });
                assert!(!found, "{}: {call} belongs to crate::base::folder", file.display());
            }
        }
    }

    #[test]
    fn a_folder_is_changed_where_it_was_opened() {
        let outer = tempfile::tempdir().expect("a folder");
        let path = outer.path().join("a/b");
        assert_eq!(Folder::open(&path).expect_err("none").kind(), io::ErrorKind::NotFound);
        let folder = Folder::create(&path).expect("made");
        let elsewhere = outer.path().join("elsewhere");
        fs::rename(&path, outer.path().join("moved")).expect("moved");
        fs::create_dir(&elsewhere).expect("made");
        symlink(&elsewhere, &path).expect("linked");
        folder.write("file", b"text", 0o600, None).expect("written");
        assert_eq!(fs::read(outer.path().join("moved/file")).expect("there"), b"text");
        assert_eq!(folder.read("file", 4).expect("read"), b"text");
        assert_eq!(fs::read_dir(&elsewhere).expect("lists").count(), 0);
        symlink("file", outer.path().join("moved/link")).expect("linked");
        folder.read("link", 4).expect_err("a link");
        folder.remove("file").expect("removed");
        folder.remove("file").expect("it is gone already");
    }

    #[test]
    fn a_link_in_the_place_of_a_file_leads_to_its_folder() {
        let outer = tempfile::tempdir().expect("a folder");
        let folder = outer.path().canonicalize().expect("there");
        fs::create_dir(folder.join("to")).expect("made");
        symlink("to/../to/file", folder.join("link")).expect("linked");
        let (found, name) = Folder::holding(&folder.join("link")).expect("found");
        assert_eq!((found.path(), name), (&*folder.join("to"), OsString::from("file")));
        symlink("circle", folder.join("circle")).expect("linked");
        Folder::holding(&folder.join("circle")).expect_err("never ends");
        Folder::holding(&folder).expect_err("a folder");
    }

    #[test]
    fn a_file_system_that_does_not_tell_case_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        check_case(folder.path()).expect("tells");
        // Where it does not, this one is there as soon as the other is.
        fs::write(folder.path().join("CASE-PROBE"), "").expect("written");
        let refused = check_case(folder.path()).expect_err("refused").to_string();
        assert!(refused.contains("differ only in case"), "{refused}");
    }
}
