//! Reads and changes files in folders that another user may own.
//!
//! The owner of such a folder can plant symbolic links, hard links to other users' files, and names
//! that change while a command runs. A command that root runs must not apply root's rights to
//! these. A [`Folder`] is therefore an open descriptor, and all operations are relative to it. Root
//! opens it component by component, and follows only symbolic links that root owns in folders that
//! root owns. For other users, links in the path of a folder work as usual.

#![allow(clippy::disallowed_methods, reason = "for commands, and for threads that may block")]

mod resolve;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, fstat, openat,
        renameat, statat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use self::resolve::{Resolved, resolve};
use crate::base::{document_id::DocumentId, regular_file};

/// An open folder.
#[derive(Debug)]
pub struct Folder {
    file: File,
    path: PathBuf,
}

/// An entry of a folder.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its path, which begins with the path of the folder.
    pub path: PathBuf,
    /// Whether it is a folder, or a link to one that [`Folder::open`] follows.
    pub is_folder: bool,
    /// Whether it is a regular file. False for a link to one.
    pub is_file: bool,
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// The folder cannot be opened, or root would have to follow a link of another user.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_or_create(path, false)
    }

    /// Opens a folder. Creates it and its parents if they do not exist.
    ///
    /// # Errors
    /// As [`Self::open`], or the folder cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::open_or_create(path, true)
    }

    fn open_or_create(path: &Path, creates: bool) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let file = if geteuid().is_root() {
            match resolve(&path, creates)? {
                Resolved { folder, file: None, .. } => folder,
                // The folder does not exist; opening it gives the exact error.
                Resolved { folder, file: Some(name), .. } => {
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

    /// Opens the parent folder of the file `path`, which need not exist, and returns it with the
    /// file's name. If `path` is a link, its target is the file.
    ///
    /// # Errors
    /// As [`Self::open`], or `path` is a folder.
    pub fn open_parent(path: &Path) -> io::Result<(Self, OsString)> {
        let path = std::path::absolute(path)?;
        // For other users the result is the same as if the kernel resolved the path.
        let Resolved { folder, file, path } = resolve(&path, false)?;
        let name = file.ok_or(io::ErrorKind::IsADirectory)?;
        Ok((Self { file: listable(&folder)?, path }, name))
    }

    /// Returns the descriptor, for example to synchronise the folder.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns its path when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file in the folder for reading. Does not follow links. Root does not open
    /// another user's file that the folder's owner may have linked there.
    ///
    /// # Errors
    /// The file cannot be opened, is not a regular file, or is refused.
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
            let problem = "is a hard link to another user's file; root does not read it";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
        }
        Ok(file)
    }

    /// Reads a file in the folder of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Self::open_file`], or the file is larger.
    pub fn read(&self, name: impl AsRef<OsStr>, limit: u64) -> io::Result<Vec<u8>> {
        regular_file::read_open(self.open_file(name)?, limit)
    }

    /// Returns the metadata of a file in the folder, or `None` if it does not exist.
    ///
    /// # Errors
    /// The metadata cannot be read, or it is not a regular file.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Option<Stat>> {
        match statat(&self.file, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => {
                Err(io::Error::other("is not a regular file"))
            }
            found => Ok(Some(found?)),
        }
    }

    /// Writes a file in the folder atomically. Synchronises its content, but not the folder, which
    /// the caller can do with [`Self::file`]. The file gets `mode` less the umask, or the mode of
    /// `like`, and if root writes it, also the owner and group of `like`.
    ///
    /// # Errors
    /// The file cannot be written.
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
    /// The file cannot be deleted.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        match unlinkat(&self.file, name.as_ref(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Deletes a folder in this one with its contents. Links in it are deleted, not followed.
    ///
    /// # Errors
    /// The folder or an entry in it cannot be deleted.
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

    /// Returns the entries, sorted by name.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let entry = |(name, kind): (OsString, FileType)| {
            let path = self.path.join(name);
            let is_folder = match kind {
                FileType::Symlink => Self::open(&path).is_ok(),
                kind => kind == FileType::Directory,
            };
            Entry { path, is_folder, is_file: kind == FileType::RegularFile }
        };
        let mut entries: Vec<Entry> = self.names()?.into_iter().map(entry).collect();
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
                // Some file systems do not report the type.
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

/// Reads a regular file of at most `limit` bytes in a folder that another user may own.
///
/// # Errors
/// As [`Folder::open_file`], or the file is larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    regular_file::read_open(open_file(path)?, limit)
}

/// Opens a regular file in a folder that another user may own.
///
/// # Errors
/// As [`Folder::open_file`].
pub fn open_file(path: &Path) -> io::Result<File> {
    match (geteuid().is_root(), path.parent(), path.file_name()) {
        (true, Some(folder), Some(name)) => Folder::open(folder)?.open_file(name),
        _ => regular_file::open(path),
    }
}

/// Returns the user and group whose rights to use for changes below `path`: the owner of the
/// innermost folder in the path that root does not own, since that user could replace everything
/// below it. Returns root if root owns all of them.
///
/// # Errors
/// The path has a link of another user in it.
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

/// Checks that the file system of a writable folder is case-sensitive: document ids may differ only
/// in case.
///
/// # Errors
/// The file system is not case-sensitive, or the folder cannot be written.
pub fn check_case_sensitive(folder: &Path) -> io::Result<()> {
    const NAMES: (&str, &str) = ("case-probe", "CASE-PROBE");
    let folder = Folder::open(folder)?;
    folder.write(NAMES.0, b"", 0o600, None)?;
    let other = folder.stat(NAMES.1);
    folder.remove(NAMES.0)?;
    if other?.is_some() {
        let problem = "the file system does not distinguish upper and lower case in names, which \
                       document ids need; choose a folder on another file system";
        return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
    }
    Ok(())
}

fn refused_link() -> io::Error {
    let problem = "is a symbolic link, and links are not followed here";
    io::Error::new(io::ErrorKind::PermissionDenied, problem)
}

/// Opens the same folder so that it can be listed and synchronised.
fn listable(folder: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(folder, ".", flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests;
