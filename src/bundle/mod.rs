//! `.tonk` bundles: reading and verifying them, and making the slim form. Pure, apart from the reader.
//!
//! A bundle is a ZIP of `manifest.json` and automerge saves under
//! `storage/<id[0..2]>/<id[2..]>/<snapshot|incremental>/<name>`. The slim form holds the manifest and the
//! root document alone: a client boots from it and finds the rest by sync.
//!
//! [`served`] is the bundle at `/.manifest.tonk`, [`watch`] swaps it when its file changes, [`store`] keeps
//! the uploaded ones, [`slims`] their slim forms for a while, and [`import`] makes documents of them. [`disk_budget`] bounds what
//! bundles that are being received take of the disk.

pub mod build;
pub mod disk_budget;
pub mod fsck;
pub mod import;
pub mod served;
pub mod slims;
pub mod store;
pub mod watch;

use std::{
    collections::{BTreeMap, HashSet},
    io::{Cursor, Read, Seek, SeekFrom, Write},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::Deserialize;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::{
    base::document_id::DocumentId,
    config::{Config, Size},
    document::{
        chunk::ChunkKind,
        gate::{Document, Refusal, Rules},
        unpacked::{self, NotUnpacked, Origin},
    },
};

/// More entries than any bundle needs: real ones have 2 to 29.
const MAX_ENTRIES: usize = 20_000;
/// More bytes than the directory of so many entries needs: 200 an entry.
const MAX_DIRECTORY: u64 = 4 << 20;
const MANIFEST: &str = "manifest.json";
const MAX_MANIFEST: u64 = 1 << 20;

/// What is wrong with a bundle. The texts end up in answers to uploads and in the log.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BundleError {
    #[error("not a ZIP archive: {0}")]
    NotZip(String),
    #[error("manifest.json not found")]
    NoManifest,
    #[error("manifest.json is not valid: {0}")]
    BadManifest(String),
    #[error("manifestVersion {0} is not supported, expected 1")]
    ManifestVersion(String),
    #[error("rootId not found in manifest")]
    NoRootId,
    #[error("rootId {0}")]
    BadRootId(#[from] crate::base::document_id::BadDocumentId),
    #[error("entry {name:?}: {problem}")]
    Entry { name: String, problem: String },
    #[error("document {document}: its changes {refusal}")]
    Refused { document: DocumentId, refusal: Refusal },
    #[error("document {document}: {reason}")]
    Unfit { document: DocumentId, reason: String },
    #[error("more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    #[error("unpacks to more than {limit} bytes (max_inflated)")]
    TooLarge { limit: u64 },
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// What the relay reads of a manifest; the slim form keeps the whole of it, byte for byte.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The document that a client opens first; also the bundle's id.
    pub root: DocumentId,
    /// Where the bundle tells clients to synchronise.
    pub network_uris: Vec<String>,
}

/// A chunk of a document within a bundle.
#[derive(Debug, Clone)]
struct Chunk {
    index: usize,
    name: String,
    kind: ChunkKind,
}

/// An opened bundle whose names and sizes have been checked, but not yet its documents.
pub struct Bundle<R> {
    zip: ZipArchive<R>,
    manifest: Manifest,
    manifest_json: Vec<u8>,
    documents: BTreeMap<DocumentId, Vec<Chunk>>,
    budget: Budget,
    max_document: Size,
}

/// Whether the end of an archive's directory is where it must be (APPNOTE.TXT 4.3.16): zip looks for it in all of a file.
fn ends_as_zip(reader: &mut (impl Read + Seek)) -> std::io::Result<bool> {
    const SIGNATURE: [u8; 4] = [0x50, 0x4b, 0x05, 0x06];
    /// Its own size, and the longest comment.
    const END: u64 = 22 + 0xffff;
    let size = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(size.saturating_sub(END)))?;
    let mut end = Vec::new();
    reader.by_ref().take(END).read_to_end(&mut end)?;
    Ok(end.windows(4).any(|bytes| bytes == SIGNATURE))
}

/// A reader from which an archive's directory is read. zip makes some hundred bytes of memory of every entry before it can
/// be asked how many there are.
struct Opening<'a, R> {
    reader: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Opening<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::Error::other("the archive's directory is too long"));
        }
        let read = self.reader.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

impl<R: Seek> Seek for Opening<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.reader.seek(to)
    }
}

/// What a bundle may unpack to.
#[derive(Clone, Copy, Debug)]
pub struct MaxInflated {
    /// All of it, in bytes (`bundles.max_inflated`).
    pub bundle: u64,
    /// Each of its documents, in memory (`sync.max_inflated`).
    pub document: Size,
}

impl MaxInflated {
    /// No limit: for what the operator's own commands read.
    pub const ANY: Self = Self { bundle: u64::MAX, document: Size(u64::MAX) };

    /// As configured.
    pub fn of(config: &Config) -> Self {
        Self { bundle: config.bundles.max_inflated.0, document: config.sync.max_inflated }
    }
}

/// Bytes that may still be unpacked. What an archive declares is not believed.
struct Budget {
    left: u64,
    limit: u64,
}

impl Budget {
    fn read(&mut self, from: impl Read) -> Result<Vec<u8>, BundleError> {
        let mut out = Vec::new();
        let read = from.take(self.left.saturating_add(1)).read_to_end(&mut out)?;
        self.left = (self.left)
            .checked_sub(read as u64)
            .ok_or(BundleError::TooLarge { limit: self.limit })?;
        Ok(out)
    }
}

impl<R: Read + Seek> Bundle<R> {
    /// Open a bundle: its directory and manifest are read and checked, its documents are not yet.
    ///
    /// # Errors
    /// Whatever makes it no bundle, or one that unpacks to more than `max_inflated`.
    pub fn open(mut reader: R, max_inflated: MaxInflated) -> Result<Self, BundleError> {
        if !ends_as_zip(&mut reader)? {
            let problem = "it does not end as one does".to_owned();
            return Err(BundleError::NotZip(problem));
        }
        let mut opening = Opening { reader: &mut reader, left: MAX_DIRECTORY };
        let opened = ZipArchive::new(&mut opening).map(drop);
        if opened.is_err() && opening.left == 0 {
            return Err(BundleError::TooManyEntries);
        }
        opened.map_err(|error| BundleError::NotZip(error.to_string()))?;
        let mut zip = ZipArchive::new(&mut reader).map_err(not_zip)?;
        if zip.len() > MAX_ENTRIES {
            return Err(BundleError::TooManyEntries);
        }
        let directory = zip.central_directory_start();
        let mut declared = 0u64;
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(not_zip)?;
            declared = declared.saturating_add(entry.size());
        }
        drop(zip);
        if declared > max_inflated.bundle {
            return Err(BundleError::TooLarge { limit: max_inflated.bundle });
        }
        // ZipArchive folds entries of one name into the last: the names are read here as they stand.
        let names = entry_names(&mut reader, directory)?;
        let mut seen = HashSet::new();
        for name in &names {
            check_name(name)?;
            if !seen.insert(name.as_str()) {
                return Err(entry_error(name, "stands in the archive twice"));
            }
        }
        let mut zip = ZipArchive::new(reader).map_err(|e| BundleError::NotZip(e.to_string()))?;
        let mut budget = Budget { left: max_inflated.bundle, limit: max_inflated.bundle };
        let manifest_json = match zip.by_name(MANIFEST) {
            Ok(entry) if entry.size() > MAX_MANIFEST => {
                return Err(BundleError::BadManifest(format!("larger than {MAX_MANIFEST} bytes")));
            }
            Ok(entry) => budget.read(entry.take(MAX_MANIFEST))?,
            Err(_) => return Err(BundleError::NoManifest),
        };
        let manifest = parse_manifest(&manifest_json)?;

        let mut documents: BTreeMap<DocumentId, Vec<Chunk>> = BTreeMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(not_zip)?;
            let name = entry.name().map_err(not_zip)?.into_owned();
            if entry.is_dir() {
                continue;
            }
            if let Some((document, kind)) = document_of(&name)? {
                documents.entry(document).or_default().push(Chunk { index, name, kind });
            }
        }
        for chunks in documents.values_mut() {
            // Snapshots first: increments build on them.
            chunks.sort_by(|a, b| {
                (b.kind == ChunkKind::Snapshot).cmp(&(a.kind == ChunkKind::Snapshot))
            });
        }
        let max_document = max_inflated.document;
        Ok(Self { zip, manifest, manifest_json, documents, budget, max_document })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as it stands in the bundle.
    pub fn manifest_json(&self) -> &[u8] {
        &self.manifest_json
    }

    /// The documents that the bundle holds.
    pub fn documents(&self) -> Vec<DocumentId> {
        self.documents.keys().copied().collect()
    }

    /// One document as an automerge save.
    ///
    /// # Errors
    /// A chunk of it that does not unpack or does not parse.
    pub fn document(&mut self, document: DocumentId) -> Result<Bytes, BundleError> {
        let chunks = self.documents.get(&document).cloned().unwrap_or_default();
        let mut save = Vec::new();
        for chunk in &chunks {
            save.extend(self.read(chunk)?);
        }
        let name = || chunks.first().map_or(String::new(), |chunk| chunk.name.clone());
        if let Err(error) = unpacked::of(&save, Origin::Peer, self.max_document) {
            let problem = match error {
                NotUnpacked::TooMuch { .. } => error.to_string(),
                NotUnpacked::Malformed => format!("is no automerge document: it {error}"),
            };
            return Err(BundleError::Entry { name: name(), problem });
        }
        let problem = match Document::read(&save, Rules::Admission) {
            Ok(read) if read.heads().is_empty() => "holds no change".to_owned(),
            Ok(mut read) if chunks.len() > 1 => return Ok(read.automerge().save().into()),
            Ok(_) => return Ok(save.into()),
            Err(refusal) => return Err(BundleError::Refused { document, refusal }),
        };
        Err(BundleError::Entry { name: name(), problem })
    }

    /// Read every document, and forget it again.
    ///
    /// # Errors
    /// The first document that does not parse.
    pub fn verify(&mut self) -> Result<(), BundleError> {
        self.verify_some(&mut self.documents().into_iter(), Duration::MAX)
    }

    /// Reads documents of `left` and forgets them again, until there are none or `time` is over.
    ///
    /// # Errors
    /// The first document that does not parse.
    pub fn verify_some(
        &mut self,
        left: &mut impl Iterator<Item = DocumentId>,
        time: Duration,
    ) -> Result<(), BundleError> {
        let began = Instant::now();
        for document in left {
            self.document(document)?;
            if began.elapsed() >= time {
                break;
            }
        }
        Ok(())
    }

    /// The slim form: the manifest and the root document's entries, and nothing else.
    ///
    /// # Errors
    /// An entry of the root document that does not unpack.
    pub fn slim(&mut self) -> Result<Bytes, BundleError> {
        let root = self.documents.get(&self.manifest.root).cloned().unwrap_or_default();
        // What the documents have used up is no matter here: the limit is for one use of a bundle.
        self.budget.left = self.budget.limit;
        let mut entries = Vec::new();
        for chunk in root {
            entries.push((self.read(&chunk)?, chunk.name));
        }
        self.budget.left = self.budget.limit;
        let entries = entries.iter().map(|(data, name)| (name.as_str(), data.as_slice()));
        write(&self.manifest_json, entries)
    }

    fn read(&mut self, chunk: &Chunk) -> Result<Vec<u8>, BundleError> {
        let entry = self
            .zip
            .by_index(chunk.index)
            .map_err(|error| entry_error(&chunk.name, &error.to_string()))?;
        self.budget.read(entry).map_err(|error| match error {
            BundleError::Io(error) => entry_error(&chunk.name, &error.to_string()),
            other => other,
        })
    }
}

/// A ZIP of a manifest and entries.
fn write<'a>(
    manifest_json: &'a [u8],
    entries: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Bytes, BundleError> {
    // The time of every entry is ZIP's first, so that the same entries always make the same bytes.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(zip::DateTime::default());
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in std::iter::once((MANIFEST, manifest_json)).chain(entries) {
        out.start_file(name, options).map_err(not_zip)?;
        out.write_all(data)?;
    }
    Ok(out.finish().map_err(not_zip)?.into_inner().into())
}

/// A bundle of automerge saves, named as Tonk names them.
///
/// # Errors
/// It is too large for a ZIP.
pub fn pack(
    manifest_json: &[u8],
    documents: &BTreeMap<DocumentId, Vec<u8>>,
) -> Result<Bytes, BundleError> {
    let name =
        |document: &DocumentId| format!("storage/{}/snapshot/bundle_export", document.folder());
    let named: Vec<(String, &Vec<u8>)> =
        documents.iter().map(|(document, save)| (name(document), save)).collect();
    write(manifest_json, named.iter().map(|(name, save)| (name.as_str(), save.as_slice())))
}

/// The manifest of a bundle of which nothing but its root is known.
pub fn minimal_manifest(root: DocumentId) -> Vec<u8> {
    let manifest = serde_json::json!({
        "manifestVersion": 1,
        "version": { "major": 1, "minor": 0 },
        "rootId": root.to_string(),
        "entrypoints": [],
        "networkUris": [],
    });
    serde_json::to_vec_pretty(&manifest).unwrap_or_default()
}

fn not_zip(error: zip::result::ZipError) -> BundleError {
    BundleError::NotZip(error.to_string())
}

fn entry_error(name: &str, problem: &str) -> BundleError {
    BundleError::Entry { name: name.to_owned(), problem: problem.to_owned() }
}

fn parse_manifest(json: &[u8]) -> Result<Manifest, BundleError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields {
        manifest_version: Option<serde_json::Value>,
        root_id: Option<serde_json::Value>,
        #[serde(default)]
        network_uris: Option<Vec<String>>,
    }
    let fields: Fields =
        serde_json::from_slice(json).map_err(|e| BundleError::BadManifest(e.to_string()))?;
    match &fields.manifest_version {
        None => {}
        Some(version) if version.as_u64() == Some(1) => {}
        Some(other) => return Err(BundleError::ManifestVersion(other.to_string())),
    }
    let root = match fields.root_id {
        Some(serde_json::Value::String(id)) if !id.is_empty() => id.parse()?,
        _ => return Err(BundleError::NoRootId),
    };
    Ok(Manifest { root, network_uris: fields.network_uris.unwrap_or_default() })
}

/// Names as they stand in the central directory (APPNOTE.TXT 4.3.12).
fn entry_names(reader: &mut (impl Read + Seek), start: u64) -> Result<Vec<String>, BundleError> {
    const SIGNATURE: [u8; 4] = [0x50, 0x4b, 0x01, 0x02];
    reader.seek(SeekFrom::Start(start))?;
    let mut reader = std::io::BufReader::new(reader);
    let mut names = Vec::new();
    loop {
        let mut header = [0u8; 46];
        match reader.read_exact(&mut header) {
            Ok(()) if header.starts_with(&SIGNATURE) => {}
            _ => return Ok(names),
        }
        if names.len() >= MAX_ENTRIES {
            return Err(BundleError::TooManyEntries);
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
            entry_error(&String::from_utf8_lossy(e.as_bytes()), "the name is not UTF-8")
        })?;
        names.push(name);
    }
}

fn check_name(name: &str) -> Result<(), BundleError> {
    let relative = name.strip_suffix('/').unwrap_or(name);
    let problem = if name.starts_with('/') || name.get(1..3) == Some(":/") {
        "the path is absolute"
    } else if name.contains(['\\', '\0']) {
        "the path has a character that no bundle uses"
    } else if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "the path has an empty part, \".\" or \"..\""
    } else {
        return Ok(());
    };
    Err(entry_error(name, problem))
}

/// The document and kind of a `storage/AA/REST/kind/name` entry; none for other entries.
fn document_of(name: &str) -> Result<Option<(DocumentId, ChunkKind)>, BundleError> {
    let Some(path) = name.strip_prefix("storage/") else {
        return Ok(None);
    };
    let parts: Vec<&str> = path.split('/').collect();
    let &[first, rest, kind, _] = parts.as_slice() else {
        return Err(entry_error(name, "expected storage/AA/REST/snapshot/NAME"));
    };
    let document = format!("{first}{rest}").parse();
    match (first.len(), document, ChunkKind::from_name(kind)) {
        (2, Ok(document), Some(kind)) => Ok(Some((document, kind))),
        (2, Ok(_), None) => Err(entry_error(name, "expected a snapshot or an incremental")),
        _ => Err(entry_error(name, "the folders make no document id")),
    }
}

#[cfg(test)]
mod tests;
