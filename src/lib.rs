//! tonk-relay: the sync relay for Tonk and automerge-repo apps, as a library that is the program.
//!
//! Each folder imports only those above it in this table; `tests/layers.rs` checks it. To find
//! something, open the folder's `mod.rs` first: where files are many, it says which has what.
//!
//! | folder | what it holds |
//! |---|---|
//! | [`base`] | identifiers, locks, files, calls that block, tasks that must finish |
//! | [`config`] | the config file: keys, defaults, units, checks, which keys a reload can change |
//! | [`observe`] | metrics, health, the log, what rooms and sessions cost, systemd, signals |
//! | [`limits`] | rates, limits by address, quotas of accounts, turns at long work |
//! | [`auth`] | tokens and JWTs, and the rights that they give |
//! | [`document`] | what may become part of a document, its size, its sync: no tokio, no I/O |
//! | [`storage`] | documents on disk, and the snapshots under them |
//! | [`bundle`] | `.tonk` bundles: parse, serve, watch, import, store |
//! | [`sync`] | protocol messages, close reasons, sessions, rooms and their engines |
//! | [`http`] | the public port: pages, bundles, errors, connections |
//! | [`admin`] | the admin socket and its commands |
//! | [`app`] | start, run, reload and drain; the supervised tasks; the watchdog |
//! | [`cli`] | arguments and sub-commands |
//!
//! # How a message goes
//! `http::listener` accepts a connection; `http::upgrade` turns it into a session
//! ([`sync::session`]), which answers the handshake and reads the document id of each message.
//! [`sync::rooms`] has a room for each live document; the room hands sync messages to its
//! [`sync::room::engine::Engine`], which holds the document and answers through each session's
//! [`sync::outbound`] queue. What changed goes to [`storage::documents`], which returns when it is
//! durable: in [`storage::local::journal`], and later in the folders of [`storage::local::nodefs`],
//! where large chunks go at once. The engine hears of it as `Event::Saved`. Only then are peers
//! told the heads (`document::core::answer`), and those who subscribe to durable heads
//! (`sync::room::answers`).

// Tests may block, and so may the crates of `tests/`.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod admin;
pub mod app;
pub mod auth;
pub mod base;
pub mod bundle;
pub mod cli;
pub mod config;
pub mod document;
pub mod http;
pub mod limits;
pub mod observe;
pub mod storage;
pub mod sync;
