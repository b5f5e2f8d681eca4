//! Checks uploaded bundles for `tonk-relay fsck`.

use std::io;

use tokio::runtime::Handle;

use super::{Bundle, MaxInflated, store::BundleStore};
use crate::storage::{
    StorageError,
    fsck::{Check, Kind, Listener},
};

/// Reads every uploaded bundle and reports those that are broken. Blocks, so it must be called on a
/// blocking thread of `runtime`.
///
/// # Errors
/// The store cannot list them.
pub fn check_uploads(
    check: &mut Check<impl Listener>,
    uploads: &dyn BundleStore,
    max_inflated: MaxInflated,
    runtime: &Handle,
) -> Result<(), StorageError> {
    for (id, _) in runtime.block_on(uploads.list())? {
        let read = async {
            Ok::<_, StorageError>(match uploads.get(id).await? {
                Some(bundle) => Some(bundle.into_file().await?),
                None => None,
            })
        };
        let location = format!("bundle {id}");
        match runtime.block_on(read) {
            Err(error) => check.report(Kind::Unreadable, location, error, false),
            Ok(None) => continue,
            Ok(Some(file)) => {
                let verified = Bundle::open(io::BufReader::new(file), max_inflated)
                    .and_then(|mut bundle| bundle.verify());
                if let Err(error) = verified {
                    check.report(Kind::Broken, location, error, false);
                }
            }
        }
        check.summary.bundles += 1;
    }
    Ok(())
}
