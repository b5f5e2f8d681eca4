//! Parses chunks: whole documents, changes and bundles of changes.

use std::collections::HashSet;

use automerge::{Automerge, Bundle, Change, ChangeHash, LoadOptions, OnPartialLoad};
use sha2::{Digest, Sha256};

use super::{
    guard::catch_panic,
    refusal::{Refusal, malformed},
    tally::Tally,
};
use crate::document::unpacked;

/// The kinds of chunks.
pub(super) const DOCUMENT: u8 = 0;
const CHANGE: u8 = 1;
const DEFLATED_CHANGE: u8 = 2;
const BUNDLE: u8 = 3;

/// Whether a save of a document loads, and has these heads.
pub fn loads(saved: &[u8], heads: &[ChangeHash]) -> bool {
    catch_panic(|| Automerge::load(saved).is_ok_and(|doc| doc.get_heads() == heads))
        .unwrap_or(false)
}

/// Returns the hashes of the changes in some chunks.
///
/// # Errors
/// They do not parse.
pub fn hashes_in(bytes: &[u8]) -> Result<HashSet<ChangeHash>, Refusal> {
    let mut hashes = HashSet::new();
    for (kind, chunk) in unpacked::chunks(bytes).map_err(|error| malformed(&error))? {
        hashes.extend(changes_in(kind, chunk)?.iter().map(Change::hash));
    }
    Ok(hashes)
}

/// Loads the document in a document chunk, and counts what its changes number.
///
/// # Errors
/// It does not parse.
pub(super) fn load_document(chunk: &[u8]) -> Result<(Automerge, Tally), Refusal> {
    let options = LoadOptions::new().on_partial_load(OnPartialLoad::Error);
    let doc = catch_panic(|| Automerge::load_with_options(chunk, options))?
        .map_err(|error| malformed(&error))?;
    let tally = catch_panic(|| Tally::of(&doc))?;
    Ok((doc, tally))
}

/// Returns the changes in a chunk.
///
/// # Errors
/// It does not parse, or its checksum is wrong.
pub(in crate::document) fn changes_in(kind: u8, chunk: &[u8]) -> Result<Vec<Change>, Refusal> {
    match kind {
        CHANGE | DEFLATED_CHANGE => {
            let change =
                catch_panic(|| Change::try_from(chunk))?.map_err(|error| malformed(&error))?;
            // automerge checks it only when it reads whole documents.
            if chunk.get(4..8) != change.hash().0.get(..4) {
                return Err(Refusal::Malformed("bad checksum".to_owned()));
            }
            Ok(vec![change])
        }
        BUNDLE => {
            let contents = chunk.get(8..).unwrap_or_default();
            if chunk.get(4..8) != Sha256::digest(contents).get(..4) {
                return Err(Refusal::Malformed("bad checksum".to_owned()));
            }
            let bundle =
                catch_panic(|| Bundle::try_from(chunk))?.map_err(|error| malformed(&error))?;
            catch_panic(|| bundle.to_changes())?.map_err(|error| malformed(&error))
        }
        _ => {
            let (doc, _) = load_document(chunk)?;
            catch_panic(|| doc.get_changes(&[]))
        }
    }
}
