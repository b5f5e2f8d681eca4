//! Reads and changes files in folders that another user may own.
//!
//! A command that root runs must not use root's rights for what the owner of such a folder plants there: symbolic
//! links, hard links to files of others, names that change while the command runs. So a [`Folder`] is an open
//! descriptor, and everything happens relative to it. Root reaches it component by component, and follows only
//! symbolic links of its own in folders of its own. Other users have no rights that a link could borrow: for them
//! links on the way to a folder work as usual.

#![allow(clippy::disallowed_methods, reason = "for commands, and for threads that may block")]

mod walk;

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

use self::walk::{Reached, walk};
use crate::base::{document_id::DocumentId, regular_file};

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

#[cfg(test)]
mod tests;
