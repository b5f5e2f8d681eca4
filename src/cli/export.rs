//! `tonk-relay export`: writes an app's documents into a bundle.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use automerge::{Automerge, ObjId, ObjType, ROOT, ReadDoc, ScalarValueRef, ValueRef};
use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde::Serialize;

use super::{
    arguments::document_id,
    error::{CliError, io_error, path_error},
    output::show,
    progress::Progress,
    relay::{Relay, StorageArguments},
};
use crate::{
    admin::client::AdminError,
    base::{document_id::DocumentId, folder::Folder, text::Count},
    bundle,
};

/// `tonk-relay export`
#[derive(Debug, Args)]
pub(super) struct ExportArguments {
    /// The id of the app's root document, or its automerge: URL
    #[arg(value_name = "ROOT_ID", value_parser = document_id)]
    root: DocumentId,
    /// The bundle file to write
    #[arg(value_name = "FILE.tonk")]
    file: PathBuf,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

/// What an export wrote.
#[derive(Debug, Serialize)]
struct ExportReport {
    root: DocumentId,
    documents: usize,
    bytes: u64,
    /// Documents that are mentioned but not stored here.
    missing: Vec<DocumentId>,
    /// Chunks that are left out because they do not parse.
    broken: Vec<String>,
}

pub(super) fn run(arguments: &ExportArguments) -> Result<(), CliError> {
    let (root, file) = (arguments.root, &arguments.file);
    if !arguments.force && file.exists() {
        return Err(path_error(file, "already exists; --force overwrites it"));
    }
    let mut relay = arguments.storage.relay.stored()?;
    let manifest =
        relay.fetch(Method::GET, &format!("/bundles/{root}/manifest.json"), Bytes::new());
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(CliError::Admin(AdminError::Missing(_))) => bundle::minimal_manifest(root).into(),
        Err(error) => return Err(error),
    };
    let Collected { documents, missing, broken } = collect(&mut relay, root)?;
    if !documents.contains_key(&root) {
        return Err(path_error(file, format!("the root document {root} is not stored")));
    }
    let data = bundle::pack(&manifest, &documents).map_err(|error| path_error(file, error))?;
    // A symbolic link is followed, and a file that exists keeps its permissions and owner.
    let (folder, name) = Folder::open_parent(file).map_err(io_error(file))?;
    let earlier = folder.stat(&name).map_err(io_error(file))?;
    folder.write(&name, &data, 0o666, earlier.as_ref()).map_err(io_error(file))?;
    let (documents, bytes) = (documents.len(), data.len() as u64);
    let report = ExportReport { root, documents, bytes, missing, broken };
    show(arguments.storage.json, &report, || describe(&report, file));
    let is_whole = report.missing.is_empty() && report.broken.is_empty();
    if is_whole { Ok(()) } else { Err(CliError::Reported(1)) }
}

/// The documents of an app.
#[derive(Default)]
struct Collected {
    documents: BTreeMap<DocumentId, Vec<u8>>,
    missing: Vec<DocumentId>,
    broken: Vec<String>,
}

/// Reads the root document, and all documents that are mentioned in it or in one of the others.
fn collect(relay: &mut Relay, root: DocumentId) -> Result<Collected, CliError> {
    let mut collected = Collected::default();
    let mut seen = BTreeSet::from([root]);
    let mut pending = VecDeque::from([root]);
    let progress = Progress::new("documents");
    while let Some(document) = pending.pop_front() {
        progress.set(collected.documents.len(), seen.len());
        let Some(content) = relay.content(document, true)? else {
            collected.missing.push(document);
            continue;
        };
        collected.broken.extend(content.broken);
        let doc = Automerge::load(&content.data)
            .map_err(|error| CliError::Document(document, error.into()))?;
        pending.extend(mentioned_in(&doc).into_iter().filter(|mentioned| seen.insert(*mentioned)));
        collected.documents.insert(document, doc.save());
    }
    progress.end();
    Ok(collected)
}

fn describe(report: &ExportReport, file: &Path) -> String {
    let ExportReport { documents, bytes, .. } = report;
    let (documents, bytes) = (Count(*documents, "document"), Count(*bytes, "byte"));
    let mut text = format!("{}: {documents}, {bytes}\n", file.display());
    for document in &report.missing {
        text.push_str(&format!("referenced, but not stored here: {document}\n"));
    }
    for chunk in &report.broken {
        text.push_str(&format!("broken and left out: {chunk}\n"));
    }
    text
}

/// Returns the documents that a document mentions: all texts in it that are an id or an automerge:
/// URL.
fn mentioned_in(doc: &Automerge) -> Vec<DocumentId> {
    /// Length of the longest text that can be an automerge: URL.
    const MAX_URL: usize = 64;
    let mut mentioned = Vec::new();
    let mut objects: Vec<(ObjId, ObjType)> = vec![(ROOT, ObjType::Map)];
    while let Some((object, kind)) = objects.pop() {
        let mut texts = Vec::new();
        let mut visit = |value: ValueRef<'_>, id: ObjId| match value {
            ValueRef::Object(kind) => objects.push((id, kind)),
            ValueRef::Scalar(ScalarValueRef::Str(text)) => texts.push(text.into_owned()),
            ValueRef::Scalar(_) => {}
        };
        match kind {
            ObjType::Text if doc.length(&object) <= MAX_URL => texts.extend(doc.text(&object)),
            ObjType::Text => {}
            ObjType::List => {
                for item in doc.list_range(&object, ..) {
                    let id = item.id();
                    visit(item.value, id);
                }
            }
            ObjType::Map | ObjType::Table => {
                for item in doc.map_range(&object, ..) {
                    let id = item.id();
                    visit(item.value, id);
                }
            }
        }
        mentioned.extend(texts.iter().filter_map(|text| document_id(text).ok()));
    }
    mentioned
}

#[cfg(test)]
mod tests {
    use automerge::{AutomergeError, transaction::Transactable};

    use super::*;

    #[test]
    fn mentioned_documents_are_found_in_all_kinds_of_values() {
        let ids: Vec<DocumentId> = (1..=3).map(|n| DocumentId::from_bytes([n; 16])).collect();
        let mut doc = Automerge::new();
        doc.transact::<_, _, AutomergeError>(|edit| {
            edit.put(ROOT, "a scalar", ids[0].to_string())?;
            let list = edit.put_object(ROOT, "children", ObjType::List)?;
            let child = edit.insert_object(&list, 0, ObjType::Map)?;
            let text = edit.put_object(&child, "pointer", ObjType::Text)?;
            edit.splice_text(&text, 0, 0, &format!("automerge:{}", ids[1]))?;
            edit.insert(&list, 1, ids[2].to_string())?;
            edit.put(ROOT, "no id", "2XehcERzGALTcjP7C7VxwFJdWoEX")?;
            Ok(())
        })
        .expect("an edit");
        let mut found = mentioned_in(&doc);
        found.sort_unstable();
        assert_eq!(found, ids);
    }
}
