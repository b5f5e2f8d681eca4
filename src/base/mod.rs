//! What every other part builds on and what does not depend on the rest of the relay: identifiers,
//! file access, locks, tasks, text.
//!
//! [`folder`] and [`regular_file`] open files safely that others may have planted: links, FIFOs,
//! endless files. [`blocking`] moves file calls off the async threads, and [`run_to_completion`]
//! owns tasks that must finish even if their callers are cancelled.

pub mod backoff;
pub mod blocking;
pub mod document_id;
pub mod folder;
pub mod hex;
pub mod lock;
pub mod principal;
pub mod regular_file;
pub mod run_to_completion;
pub mod session_id;
pub mod text;
pub mod user;
