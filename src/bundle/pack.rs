//! Writing bundles.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write},
};

use bytes::Bytes;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{error::BundleError, manifest::MANIFEST};
use crate::base::document_id::DocumentId;

/// Packs automerge saves into a bundle, under the names that Tonk gives them.
///
/// # Errors
/// The bundle is too large for a ZIP.
pub fn pack(
    manifest_json: &[u8],
    documents: &BTreeMap<DocumentId, Vec<u8>>,
) -> Result<Bytes, BundleError> {
    let name =
        |document: &DocumentId| format!("storage/{}/snapshot/bundle_export", document.folder());
    let named: Vec<(String, &Vec<u8>)> =
        documents.iter().map(|(document, save)| (name(document), save)).collect();
    pack_entries(manifest_json, named.iter().map(|(name, save)| (name.as_str(), save.as_slice())))
}

/// Packs a manifest and entries into a ZIP.
pub(super) fn pack_entries<'a>(
    manifest_json: &'a [u8],
    entries: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Bytes, BundleError> {
    // Every entry has ZIP's earliest time, so that the same entries always give the same bytes.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(zip::DateTime::default());
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in std::iter::once((MANIFEST, manifest_json)).chain(entries) {
        out.start_file(name, options)?;
        out.write_all(data)?;
    }
    Ok(out.finish()?.into_inner().into())
}
