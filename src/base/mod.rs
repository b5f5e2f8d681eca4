//! What every other part builds on and what knows nothing of the relay: identifiers, file access,
//! locks, text.
//!
//! [`folder`] and [`regular_file`] open files that others may plant: links, FIFOs, endless files.
//! [`blocking`] moves file calls off the async threads.

pub mod backoff;
pub mod blocking;
pub mod closing;
pub mod document_id;
pub mod folder;
pub mod hex;
pub mod lock;
pub mod principal;
pub mod regular_file;
pub mod run_to_completion;
pub mod session_id;
pub mod text;
