//! `tonk-relay export`

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
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
    relay::StorageArguments,
};
use crate::{
    admin::client::AdminError,
    base::{document_id::DocumentId, folder::Folder},
    bundle,
};

/// `tonk-relay export`
#[derive(Debug, Args)]
pub(super) struct ExportArguments {
    /// The app's root document
    #[arg(value_name = "ROOT_ID", value_parser = document_id)]
    root: DocumentId,
    /// The bundle to write
    #[arg(value_name = "FILE.tonk")]
    file: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

/// What an export wrote.
#[derive(Debug, Serialize)]
struct ExportAnswer {
    root: DocumentId,
    documents: usize,
    bytes: u64,
    /// Documents that are mentioned, and not stored here.
    missing: Vec<DocumentId>,
    /// Chunks that are left out, for they do not parse.
    broken: Vec<String>,
}

pub(super) fn run(arguments: &ExportArguments) -> Result<(), CliError> {
    let (root, file) = (arguments.root, &arguments.file);
    if !arguments.force && file.exists() {
        return Err(path_error(file, "is there already; --force writes over it"));
    }
    let mut relay = arguments.storage.relay.stored()?;
    let manifest =
        relay.fetch(Method::GET, &format!("/bundles/{root}/manifest.json"), Bytes::new());
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(CliError::Admin(AdminError::Missing(_))) => bundle::minimal_manifest(root).into(),
        Err(error) => return Err(error),
    };
    let (mut documents, mut missing, mut broken) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut seen = BTreeSet::from([root]);
    let mut to_look_at = VecDeque::from([root]);
    let progress = Progress::new("documents");
    while let Some(document) = to_look_at.pop_front() {
        progress.is_at(documents.len(), seen.len());
        let Some(content) = relay.content(document, true)? else {
            missing.push(document);
            continue;
        };
        broken.extend(content.broken);
        let doc = Automerge::load(&content.data)
            .map_err(|error| CliError::Document(document, error.into()))?;
        for mentioned in mentioned_in(&doc) {
            if seen.insert(mentioned) {
                to_look_at.push_back(mentioned);
            }
        }
        documents.insert(document, doc.save());
    }
    progress.end();
    if !documents.contains_key(&root) {
        return Err(path_error(file, format!("nothing is stored of the root document {root}")));
    }
    let out = bundle::pack(&manifest, &documents).map_err(|error| path_error(file, error))?;
    // A link is followed, and a file that is there keeps its permissions and owner.
    let (folder, name) = Folder::open_parent(file).map_err(io_error(file))?;
    let earlier = folder.stat(&name).map_err(io_error(file))?;
    folder.write(&name, &out, 0o666, earlier.as_ref()).map_err(io_error(file))?;
    let (documents, bytes) = (documents.len(), out.len() as u64);
    let answer = ExportAnswer { root, documents, bytes, missing, broken };
    show(arguments.storage.json, &answer, || {
        let (documents, bytes) = (answer.documents, answer.bytes);
        let mut text = format!("{}: {documents} documents, {bytes} bytes\n", file.display());
        for document in &answer.missing {
            text.push_str(&format!("mentioned, and not stored here: {document}\n"));
        }
        for chunk in &answer.broken {
            text.push_str(&format!("broken, and left out: {chunk}\n"));
        }
        text
    });
    let is_whole = answer.missing.is_empty() && answer.broken.is_empty();
    if is_whole { Ok(()) } else { Err(CliError::Said(1)) }
}

/// The documents that a document mentions: texts that are an id or an automerge: URL, wherever they stand.
fn mentioned_in(doc: &Automerge) -> Vec<DocumentId> {
    /// The longest text that is looked at: an automerge: URL.
    const LONGEST: usize = 64;
    let mut mentioned = Vec::new();
    let mut objects: Vec<(ObjId, ObjType)> = vec![(ROOT, ObjType::Map)];
    while let Some((object, kind)) = objects.pop() {
        let mut texts = Vec::new();
        let mut look = |value: ValueRef<'_>, id: ObjId| match value {
            ValueRef::Object(kind) => objects.push((id, kind)),
            ValueRef::Scalar(ScalarValueRef::Str(text)) => texts.push(text.into_owned()),
            ValueRef::Scalar(_) => {}
        };
        match kind {
            ObjType::Text if doc.length(&object) <= LONGEST => texts.extend(doc.text(&object)),
            ObjType::Text => {}
            ObjType::List => {
                for item in doc.list_range(&object, ..) {
                    let id = item.id();
                    look(item.value, id);
                }
            }
            ObjType::Map | ObjType::Table => {
                for item in doc.map_range(&object, ..) {
                    let id = item.id();
                    look(item.value, id);
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
    fn mentioned_documents_are_found_wherever_they_stand() {
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
