//! Resolves a path without letting the kernel follow links.

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

/// The most symbolic links in one path, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What a path resolves to.
pub(super) struct Resolved {
    pub(super) folder: OwnedFd,
    /// The path of the folder, with links resolved.
    pub(super) path: PathBuf,
    /// The name in `folder` of a file, or of something that does not exist. `None` if the path is
    /// the folder itself.
    pub(super) file: Option<OsString>,
}

/// Resolves `path` one component at a time. Creates missing folders if `creates` is set.
///
/// # Errors
/// A component cannot be opened, or root would have to follow a link of another user.
pub(super) fn resolve(path: &Path, creates: bool) -> io::Result<Resolved> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = || openat(CWD, "/", flags | OFlags::DIRECTORY, Mode::empty());
    let (mut folder, mut reached, mut links) = (root()?, PathBuf::from("/"), 0);
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
                return Ok(Resolved { folder, path: reached, file: Some(name) });
            }
            next => next?,
        };
        let found = fstat(&next)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                if name == ".." {
                    reached.pop();
                } else {
                    reached.push(&name);
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
                        "{} is a symbolic link of another user; root does not follow it",
                        reached.join(&name).display()
                    );
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
                }
                let target = readlinkat(&next, "", Vec::new())?.into_bytes();
                let target = PathBuf::from(OsString::from_vec(target));
                if target.is_absolute() {
                    (folder, reached) = (root()?, PathBuf::from("/"));
                }
                let mut all = names_of(&target);
                all.append(&mut names);
                names = all;
            }
            _ if names.is_empty() => {
                return Ok(Resolved { folder, path: reached, file: Some(name) });
            }
            _ => return Err(io::ErrorKind::NotADirectory.into()),
        }
    }
    Ok(Resolved { folder, path: reached, file: None })
}

fn names_of(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}
