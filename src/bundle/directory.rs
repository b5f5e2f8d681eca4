//! Checks of a ZIP's central directory, before the archive is used.

use std::{
    collections::HashSet,
    io::{self, BufReader, Read, Seek, SeekFrom},
};

use zip::ZipArchive;

use super::error::BundleError;

/// The most entries of a bundle. Real bundles have 2 to 29.
const MAX_ENTRIES: usize = 20_000;
/// The largest directory in bytes: 200 an entry.
const MAX_DIRECTORY: u64 = 4 << 20;

/// Checks the number of entries, the size that they declare, and their names.
///
/// # Errors
/// It is not a ZIP, declares more than `max_inflated` bytes, or has a name that may not be used.
pub(super) fn check(reader: &mut (impl Read + Seek), max_inflated: u64) -> Result<(), BundleError> {
    if !has_end_record(reader)? {
        let problem = "the end of the archive is missing or damaged".to_owned();
        return Err(BundleError::NotZip(problem));
    }
    let mut limited = LimitedReader { reader: &mut *reader, left: MAX_DIRECTORY };
    let opened = ZipArchive::new(&mut limited).map(drop);
    if opened.is_err() && limited.left == 0 {
        return Err(BundleError::TooManyEntries { limit: MAX_ENTRIES });
    }
    opened?;
    let mut zip = ZipArchive::new(&mut *reader)?;
    if zip.len() > MAX_ENTRIES {
        return Err(BundleError::TooManyEntries { limit: MAX_ENTRIES });
    }
    let directory = zip.central_directory_start();
    let mut declared = 0u64;
    for index in 0..zip.len() {
        declared = declared.saturating_add(zip.by_index_raw(index)?.size());
    }
    drop(zip);
    if declared > max_inflated {
        return Err(BundleError::TooLarge { limit: max_inflated });
    }
    // ZipArchive keeps only the last of several entries with one name. Names are therefore read
    // from the directory itself.
    let names = entry_names(reader, directory)?;
    let mut seen = HashSet::new();
    for name in &names {
        check_name(name)?;
        if !seen.insert(name.as_str()) {
            return Err(BundleError::entry(name, "occurs twice in the archive"));
        }
    }
    Ok(())
}

/// Whether the end-of-directory record is where it must be (APPNOTE.TXT 4.3.16). The zip crate
/// would search the whole file for it.
fn has_end_record(reader: &mut (impl Read + Seek)) -> io::Result<bool> {
    const SIGNATURE: [u8; 4] = [0x50, 0x4b, 0x05, 0x06];
    /// The record's own size, and the longest comment.
    const END: u64 = 22 + 0xffff;
    let size = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(size.saturating_sub(END)))?;
    let mut end = Vec::new();
    reader.by_ref().take(END).read_to_end(&mut end)?;
    Ok(end.windows(4).any(|bytes| bytes == SIGNATURE))
}

/// Limits how many bytes of a directory are read. The zip crate allocates some hundred bytes for
/// every entry before it can be asked how many there are.
struct LimitedReader<'a, R> {
    reader: &'a mut R,
    left: u64,
}

impl<R: Read> Read for LimitedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the archive's directory is too long"));
        }
        let read = self.reader.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

impl<R: Seek> Seek for LimitedReader<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.reader.seek(to)
    }
}

/// The names in the central directory, which begins at `start` (APPNOTE.TXT 4.3.12).
fn entry_names(reader: &mut (impl Read + Seek), start: u64) -> Result<Vec<String>, BundleError> {
    const SIGNATURE: [u8; 4] = [0x50, 0x4b, 0x01, 0x02];
    reader.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::new(reader);
    let mut names = Vec::new();
    loop {
        let mut header = [0u8; 46];
        match reader.read_exact(&mut header) {
            Ok(()) if header.starts_with(&SIGNATURE) => {}
            _ => return Ok(names),
        }
        if names.len() >= MAX_ENTRIES {
            return Err(BundleError::TooManyEntries { limit: MAX_ENTRIES });
        }
        let length = |at: usize| {
            let pair = header.get(at..at + 2).and_then(|b| b.try_into().ok());
            u16::from_le_bytes(pair.unwrap_or_default())
        };
        let mut name = vec![0; length(28).into()];
        reader.read_exact(&mut name)?;
        let skip = i64::from(length(30)) + i64::from(length(32));
        reader.seek_relative(skip)?;
        let name = String::from_utf8(name).map_err(|e| {
            BundleError::entry(&String::from_utf8_lossy(e.as_bytes()), "the name is not UTF-8")
        })?;
        names.push(name);
    }
}

fn check_name(name: &str) -> Result<(), BundleError> {
    let relative = name.strip_suffix('/').unwrap_or(name);
    let problem = if name.starts_with('/') || name.get(1..3) == Some(":/") {
        "the path is absolute"
    } else if name.contains(['\\', '\0']) {
        "the path contains a character that is not allowed in bundles"
    } else if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "the path contains an empty part, \".\" or \"..\""
    } else {
        return Ok(());
    };
    Err(BundleError::entry(name, problem))
}
