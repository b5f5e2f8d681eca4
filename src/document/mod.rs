//! Documents as bytes and as automerge: what may become part of one, and what it takes. No tokio, no I/O.
//!
//! | to find | look in |
//! |---|---|
//! | whether bytes may become part of a document | [`gate`] |
//! | a document from its stored chunks, without those that are bad | [`load`] |
//! | stored chunks and their keys | [`chunk`] |
//! | what becomes of a document that is brought beside a stored one | [`compare`] |
//! | what a room does with each event | [`core`] |
//! | the order in which changes can be applied | `order` |
//! | what chunks unpack to, before they do | [`unpacked`] |
//! | how large a document may be | [`size`] |
//! | automerge's sync messages, checked | [`sync_message`] |
//!
//! Every byte that becomes part of a document passes [`gate::Document::admit`]: it is the only way to change one.

pub mod chunk;
pub mod compare;
pub mod core;
pub mod gate;
pub mod load;
mod order;
pub mod size;
pub mod sync_message;
pub mod unpacked;
