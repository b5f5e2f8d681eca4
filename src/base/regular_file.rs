//! Reads regular files of bounded size. Nothing here waits for the writer of a FIFO or reads an
//! endless device.

#![allow(
    clippy::disallowed_methods,
    reason = "these functions block, and are disallowed themselves in async code"
)]

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// Opens a regular file for reading. Follows symbolic links: this is for files that the config or
/// an argument names. For files that are found in a folder, see [`crate::base::folder`].
///
/// # Errors
/// The file cannot be opened, or is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    check(file)
}

/// Returns an open file if it is a regular one. The descriptor is checked, since the path may name
/// another file now.
pub(crate) fn check(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("is not a regular file"))
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`], or the file is larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_open(open(path)?, limit)
}

/// Reads an open file of at most `limit` bytes.
pub(crate) fn read_open(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(format!("is larger than {limit} bytes"));
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large());
    }
    let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // The file may grow while it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut data)?;
    if data.len() as u64 > limit { Err(too_large()) } else { Ok(data) }
}

/// Reads a regular file as text.
///
/// # Errors
/// As [`read`], or the file is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| io::Error::other("is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "12345").expect("written");
        assert_eq!(read(&at("file"), 5).expect("read"), b"12345");
        let problem = |path: &Path| read(path, 4).expect_err("refused").to_string();
        assert_eq!(problem(&at("file")), "is larger than 4 bytes");
        mkfifoat(CWD, at("fifo"), Mode::RUSR).expect("made");
        assert_eq!(problem(&at("fifo")), "is not a regular file");
        assert_eq!(problem(folder.path()), "is not a regular file");
        assert_eq!(problem(Path::new("/dev/zero")), "is not a regular file");
    }
}
