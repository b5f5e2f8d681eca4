//! Documents as bytes and as automerge: what may become part of one, how large it may be, and how
//! it is synchronized with peers. No tokio, no I/O.
//!
//! | to find | look in |
//! |---|---|
//! | whether bytes may become part of a document | [`gate`] |
//! | how a document is made of its stored chunks, without the bad ones | [`load`] |
//! | stored chunks and their keys | [`chunk`] |
//! | how a document is merged with the stored one of the same id | [`merge`] |
//! | how a live document is synchronized with its peers | [`core`] |
//! | the order in which changes can be applied | `order` |
//! | how much memory chunks take, before they are unpacked | [`unpacked`] |
//! | how large a document may be | [`size`] |
//! | automerge's sync messages, checked | [`sync_message`] |
//!
//! [`gate::Document::admit`] is the only way to change a document.

pub mod chunk;
pub mod core;
pub mod gate;
pub mod load;
pub mod merge;
mod order;
pub mod size;
pub mod sync_message;
pub mod unpacked;
