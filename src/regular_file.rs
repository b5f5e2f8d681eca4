//! Reading files that somebody names in the config: whole, and only what ends.

#![allow(
    clippy::disallowed_methods,
    reason = "these functions block, and are disallowed themselves in async code"
)]

use std::{fs, io, path::Path};

/// Read a regular file of at most `limit` bytes. A FIFO or a device would never end.
///
/// # Errors
/// It cannot be read, is no regular file, or larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    if found.len() > limit {
        return Err(io::Error::other(format!("is larger than {limit} bytes")));
    }
    fs::read(path)
}

/// Read one as a text.
///
/// # Errors
/// As [`read`], or it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| io::Error::other("is not UTF-8"))
}
