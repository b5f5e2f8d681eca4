//! The store on local disks.
//!
//! | to find | look in |
//! |---|---|
//! | the names of files and folders | `layout` |
//! | durable writes, and reads of whole files | `files` |
//! | automerge-repo's folder layout as a [`ChunkStore`](super::ChunkStore) | [`nodefs`] |
//! | the write-ahead journal in front of these folders | [`journal`] |
//! | the documents in a folder, and their chunks | [`walk`] |
//! | moving a damaged chunk to quarantine | [`nodefs`], in `quarantine` |
//! | listing, releasing and purging what is in quarantine | [`quarantine`] |
//! | deleted documents, and blocked ones | [`tombstones`], [`blocked`], both as [`marks`] |
//! | discarding writes to a deleted document | `journal::writer`, `journal::chunk_store` |
//! | free space on the disks | [`space`] |
//! | backups that were made of this storage | [`backups`] |
//! | a restore that replaces everything | [`restore_marker`] |
//! | uploaded bundles that were imported | [`imported`] |

pub mod backups;
pub mod blocked;
mod files;
pub mod imported;
pub mod journal;
mod layout;
pub mod marks;
pub mod nodefs;
pub mod quarantine;
pub mod restore_marker;
pub mod space;
pub mod tombstones;
pub mod walk;

pub(crate) use self::{files::MAX_FILE, layout::TMP};
