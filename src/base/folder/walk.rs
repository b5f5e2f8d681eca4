//! The way through folders to a file.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, readlinkat},
    io::Errno,
    process::geteuid,
};

/// As many symbolic links as the kernel follows on the way to a file (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Where a way through folders leads.
pub(super) struct Reached {
    pub(super) folder: OwnedFd,
    /// The path of the folder, without links.
    pub(super) path: PathBuf,
    /// The name in the folder of what is not a folder itself: a file, or nothing yet.
    pub(super) file: Option<OsString>,
}

/// Goes from folder to folder without letting the kernel follow links. `creates`: makes those that are not there.
pub(super) fn walk(path: &Path, creates: bool) -> io::Result<Reached> {
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
