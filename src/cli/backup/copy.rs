//! Copies documents and uploaded bundles from a relay into a backup.

use std::{io, path::Path};

use automerge::ReadDoc;
use bytes::Bytes;
use hyper::Method;
use sha2::{Digest, Sha256};

use super::answer::BackupAnswer;
use crate::{
    admin::{client::AdminError, storage::bundles::ListedBundle},
    base::{folder, hex::hex},
    bundle::{Bundle, MaxInflated},
    cli::{
        backup_folder::{BackupIndex, Copied, bundle_file, snapshots, verify_bundle},
        error::CliError,
        files::write_file,
        relay::Relay,
    },
    document::{
        chunk::Key,
        compare::Relation,
        gate::{Document, Rules},
        load,
    },
    storage::local::{MAX_FILE, walk::Listed},
};

/// Copy a document. What an earlier copy has of it is in the new one too, or the earlier one stays.
pub(super) fn copy(
    relay: &mut Relay,
    folder: &Path,
    listed: &Listed,
    earlier: Option<&Copied>,
    answer: &mut BackupAnswer,
) -> Result<Option<Copied>, CliError> {
    let document = listed.document;
    let content = match relay.content(document, false) {
        Ok(Some(content)) => content,
        Ok(None) => return Ok(None),
        Err(CliError::Admin(AdminError::Refused(reason))) => {
            answer.fail(document, reason);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let is_whole = content.broken.is_empty();
    for chunk in content.broken {
        answer.fail("a broken chunk", chunk);
    }
    let snapshots = snapshots(folder, document);
    let earlier = earlier.and_then(|earlier| {
        let data = folder::read(&snapshots.join(&earlier.sha256), MAX_FILE).ok()?;
        (hex(&Sha256::digest(&data)) == earlier.sha256).then_some(data)
    });
    let data = match joined(&content.data, earlier.as_deref()) {
        Joined::New => content.data,
        Joined::Both(data) => {
            let fault = "the relay lacks changes that are in the earlier copy; they are kept";
            answer.fail(document, fault);
            data
        }
        Joined::Unrelated => {
            let fault = "it has no change in common with the earlier copy, which stays";
            answer.fail(document, fault);
            return Ok(None);
        }
        Joined::Nothing => {
            answer.fail(document, "nothing of it can be read");
            return Ok(None);
        }
    };
    let sha256 = hex(&Sha256::digest(&data));
    write_file(&snapshots.join(&sha256), &data)?;
    let fingerprint = if is_whole { listed.fingerprint.clone() } else { String::new() };
    Ok(Some(Copied { fingerprint, sha256, bytes: data.len() as u64 }))
}

/// What a new copy of a document is with an earlier one.
enum Joined {
    /// The new one has all of the earlier one.
    New,
    /// It does not: both together.
    Both(Vec<u8>),
    /// They are two documents.
    Unrelated,
    /// There is nothing in the new one.
    Nothing,
}

fn joined(new: &[u8], earlier: Option<&[u8]>) -> Joined {
    let load = |data: &[u8]| load::load(&[(Key::StorageId, data.to_vec())]).doc;
    let mut new = load(new);
    if new.heads().is_empty() && !new.has_orphans() {
        return Joined::Nothing;
    }
    let Some(mut earlier) = earlier.map(load) else { return Joined::New };
    match Relation::of(earlier.automerge(), new.automerge()) {
        Relation::Contained if !earlier.has_orphans() => Joined::New,
        Relation::Unrelated if !new.heads().is_empty() => Joined::Unrelated,
        Relation::Contained | Relation::Newer | Relation::Unrelated => {
            // Its changes that wait for others may find them here.
            let missing = |doc: &mut Document| doc.automerge().get_missing_deps(&[]);
            match earlier.admit(&new.automerge().save(), Rules::Stored) {
                Ok(_)
                    if earlier.heads() == new.heads()
                        && missing(&mut earlier) == missing(&mut new) =>
                {
                    Joined::New
                }
                Ok(_) => Joined::Both(earlier.automerge().save()),
                Err(_) => Joined::Unrelated,
            }
        }
    }
}

pub(super) fn copy_bundles(
    relay: &mut Relay,
    folder: &Path,
    made: &mut BackupIndex,
    answer: &mut BackupAnswer,
) -> Result<(), CliError> {
    let bundles: Vec<ListedBundle> = match relay.ask(Method::GET, "/bundles") {
        Err(CliError::Admin(AdminError::Refused(reason))) => {
            answer.fail("the uploaded bundles", reason);
            return Ok(());
        }
        bundles => bundles?,
    };
    for id in made.bundles.keys().filter(|id| !bundles.iter().any(|listed| listed.id == **id)) {
        answer.kept_bundles.push(*id);
    }
    for ListedBundle { id, etag } in bundles {
        let file = bundle_file(folder, id);
        if made.bundles.get(&id) == Some(&etag) {
            if verify_bundle(&file).is_ok() {
                continue;
            }
            answer.damaged.push(file.display().to_string());
        }
        let data = match relay.fetch(Method::GET, &format!("/bundles/{id}"), Bytes::new()) {
            Ok(data) => data,
            Err(error @ CliError::Admin(AdminError::Refused(_) | AdminError::Http(_))) => {
                answer.fail(format!("bundle {id}"), error);
                continue;
            }
            // Deleted since it was listed.
            Err(CliError::Admin(AdminError::Missing(_))) => continue,
            Err(error) => return Err(error),
        };
        let verified = Bundle::open(io::Cursor::new(data.clone()), MaxInflated::UNLIMITED)
            .and_then(|mut bundle| bundle.verify());
        if let Err(error) = verified {
            answer.fail(format!("bundle {id}"), error);
            continue;
        }
        write_file(&file, &data)?;
        made.bundles.insert(id, etag);
    }
    Ok(())
}
