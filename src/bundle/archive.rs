//! The documents of a bundle, and its slim form.

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
    time::{Duration, Instant},
};

use bytes::Bytes;
use zip::ZipArchive;

use super::{
    directory,
    error::BundleError,
    manifest::{MANIFEST, MAX_MANIFEST, Manifest},
    pack::pack_entries,
};
use crate::{
    base::document_id::DocumentId,
    config::{Config, Size},
    document::{
        chunk::ChunkKind,
        gate::{Document, Rules},
        unpacked::{self, NotUnpacked, Origin},
    },
};

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

/// Limits on the unpacked size of a bundle.
#[derive(Clone, Copy, Debug)]
pub struct MaxInflated {
    /// The limit for the whole bundle in bytes (`bundles.max_inflated`).
    pub bundle: u64,
    /// The limit for each document in memory (`sync.max_inflated`).
    pub document: Size,
}

impl MaxInflated {
    /// No limit, for bundles that the operator's own commands read.
    pub const UNLIMITED: Self = Self { bundle: u64::MAX, document: Size(u64::MAX) };

    /// The limits of `config`.
    pub fn of(config: &Config) -> Self {
        Self { bundle: config.bundles.max_inflated.0, document: config.sync.max_inflated }
    }
}

/// Bytes that may still be unpacked. Sizes that an archive declares are not trusted.
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
    /// Opens a bundle. Checks its directory and manifest, but not its documents.
    ///
    /// # Errors
    /// It is not a bundle, or unpacks to more than `max_inflated`.
    pub fn open(mut reader: R, max_inflated: MaxInflated) -> Result<Self, BundleError> {
        directory::check(&mut reader, max_inflated.bundle)?;
        let mut zip = ZipArchive::new(reader)?;
        let mut budget = Budget { left: max_inflated.bundle, limit: max_inflated.bundle };
        let manifest_json = match zip.by_name(MANIFEST) {
            Ok(entry) if entry.size() > MAX_MANIFEST => {
                return Err(BundleError::BadManifest(format!("larger than {MAX_MANIFEST} bytes")));
            }
            Ok(entry) => budget.read(entry.take(MAX_MANIFEST))?,
            Err(_) => return Err(BundleError::NoManifest),
        };
        let manifest = Manifest::parse(&manifest_json)?;

        let mut documents: BTreeMap<DocumentId, Vec<Chunk>> = BTreeMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index)?;
            let name = entry.name()?.into_owned();
            if entry.is_dir() {
                continue;
            }
            if let Some((document, kind)) = document_of(&name)? {
                documents.entry(document).or_default().push(Chunk { index, name, kind });
            }
        }
        for chunks in documents.values_mut() {
            // Increments build on snapshots.
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

    /// The bytes of `manifest.json`.
    pub fn manifest_json(&self) -> &[u8] {
        &self.manifest_json
    }

    /// The documents that the bundle holds.
    pub fn documents(&self) -> Vec<DocumentId> {
        self.documents.keys().copied().collect()
    }

    /// Returns one document as an automerge save.
    ///
    /// # Errors
    /// A chunk of the document does not unpack or parse.
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
                NotUnpacked::Malformed => format!("is not an automerge document: it {error}"),
            };
            return Err(BundleError::Entry { name: name(), problem });
        }
        let problem = match Document::read(&save, Rules::Admission) {
            Ok(read) if read.heads().is_empty() => "contains no change".to_owned(),
            Ok(mut read) if chunks.len() > 1 => return Ok(read.automerge().save().into()),
            Ok(_) => return Ok(save.into()),
            Err(refusal) => return Err(BundleError::Refused { document, refusal }),
        };
        Err(BundleError::Entry { name: name(), problem })
    }

    /// Reads every document, without keeping any in memory.
    ///
    /// # Errors
    /// A document does not parse.
    pub fn verify(&mut self) -> Result<(), BundleError> {
        self.verify_some(&mut self.documents().into_iter(), Duration::MAX)
    }

    /// Reads the documents of `left`, without keeping any in memory, until none is left or `time`
    /// is over.
    ///
    /// # Errors
    /// A document does not parse.
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

    /// Returns the slim form: the manifest and the root document's entries.
    ///
    /// # Errors
    /// An entry of the root document does not unpack.
    pub fn slim(&mut self) -> Result<Bytes, BundleError> {
        let root = self.documents.get(&self.manifest.root).cloned().unwrap_or_default();
        // The limit is for one use of a bundle; reading its documents was another.
        self.budget.left = self.budget.limit;
        let mut entries = Vec::new();
        for chunk in root {
            entries.push((self.read(&chunk)?, chunk.name));
        }
        self.budget.left = self.budget.limit;
        let entries = entries.iter().map(|(data, name)| (name.as_str(), data.as_slice()));
        pack_entries(&self.manifest_json, entries)
    }

    fn read(&mut self, chunk: &Chunk) -> Result<Vec<u8>, BundleError> {
        let entry = self
            .zip
            .by_index(chunk.index)
            .map_err(|error| BundleError::entry(&chunk.name, &error.to_string()))?;
        self.budget.read(entry).map_err(|error| match error {
            BundleError::Io(error) => BundleError::entry(&chunk.name, &error.to_string()),
            other => other,
        })
    }
}

/// The document and kind of an entry `storage/AA/REST/kind/name`; `None` for other entries.
fn document_of(name: &str) -> Result<Option<(DocumentId, ChunkKind)>, BundleError> {
    let Some(path) = name.strip_prefix("storage/") else {
        return Ok(None);
    };
    let parts: Vec<&str> = path.split('/').collect();
    let &[first, rest, kind, _] = parts.as_slice() else {
        return Err(BundleError::entry(name, "expected storage/AA/REST/snapshot/NAME"));
    };
    let document = format!("{first}{rest}").parse();
    match (first.len(), document, ChunkKind::from_name(kind)) {
        (2, Ok(document), Some(kind)) => Ok(Some((document, kind))),
        (2, Ok(_), None) => Err(BundleError::entry(name, "expected a snapshot or an incremental")),
        _ => Err(BundleError::entry(name, "the folders do not form a document id")),
    }
}
