//! tonk-relay: the sync relay for Tonk and automerge-repo apps, as a library that is the program.
//!
//! | to find | look in |
//! |---|---|
//! | arguments and sub-commands | [`cli`] |
//! | the config file: keys, defaults, checks, what a reload may change | [`config`] |
//! | start, run and drain, in that order | [`app`] |
//! | who owns a task and what its end means | [`app::supervisor`] |
//! | signals; what systemd is told | [`observe::signals`], [`observe::systemd`] |
//! | taking over a changed config | [`app::reloader`] |
//! | the public port: pages, bundles, errors, connections | [`http`] |
//! | protocol messages, sessions, rooms and their engines | [`sync`] |
//! | `.tonk` bundles: parse, serve, watch, store | [`bundle`] |
//! | what may become part of a document, and what it takes | [`document`] |
//! | documents on disk, and bundle documents underneath | [`storage`] |
//! | the admin socket and its commands | [`admin`] |
//! | readiness and what is amiss | [`observe::health`] |
//! | who may do what | [`auth`] |
//! | what addresses and principals may use | [`limits`] |
//! | what rooms and sessions cost | [`observe::usage`], [`sync::look`] |
//! | that all of it still answers, for systemd | [`app::watchdog`] |
//! | every metric name | [`observe::metrics`] |
//! | file calls, off the async threads | [`base::blocking`] |
//! | what names that others choose may hold | [`base::text`] |
//! | files that others may plant: links, FIFOs, endless ones | [`base::folder`], [`base::regular_file`] |
//! | the log, and lines that repeat | [`observe::log`] |
//!
//! # How a message goes
//! `http::listener` accepts a connection; `http::upgrade` turns it into a session ([`sync::sessions`]), which answers the
//! handshake and reads the document id of each message. [`sync::rooms`] has a room for each live document; the
//! room hands sync messages to its [`sync::room::Engine`], which holds the document and answers through each
//! session's [`sync::outbound`] queue. What changed goes to [`storage::documents`], which returns when it is
//! durable: in [`storage::local::journal`], and later in the folders of [`storage::local::nodefs`].

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
