//! `.tonk` bundles.
//!
//! A bundle is a ZIP of `manifest.json` and automerge saves under
//! `storage/<id[0..2]>/<id[2..]>/<snapshot|incremental>/<name>`. The slim form holds only the
//! manifest and the root document: a client boots from it and fetches the other documents by sync.
//!
//! | to find | look in |
//! |---|---|
//! | opening bundles, their documents, the slim form | [`Bundle`] in `archive` |
//! | checks of a ZIP before it is opened | `directory` |
//! | `manifest.json` | [`Manifest`] |
//! | writing bundles | [`pack`](pack()) |
//! | the bundle at `/.manifest.tonk`, reloaded when its file changes | [`served`], [`watch`] |
//! | telling live documents of a new version | `sync::rooms::Rooms::bundle_changed` |
//! | merging it into one | `sync::room::live`, in `merge_bundle` |
//! | verifying an upload before it is stored | `http::uploads`, [`import`] |
//! | storing uploaded bundles | [`store`] |
//! | the disk space of uploads that are being received | [`disk_budget`] |
//! | merging a bundle's documents into storage | [`import`] |
//! | a cache of slim forms | [`slim_cache`] |
//! | checking uploaded bundles for `fsck` | [`fsck`] |
//! | everything about bundles that request handlers need | [`services`] |

mod archive;
mod directory;
pub mod disk_budget;
mod error;
pub mod fsck;
pub mod import;
mod manifest;
mod pack;
pub mod served;
pub mod services;
pub mod slim_cache;
pub mod store;
pub mod watch;

pub use self::{
    archive::{Bundle, MaxInflated},
    error::BundleError,
    manifest::{Manifest, minimal_manifest},
    pack::pack,
};

#[cfg(test)]
mod tests;
