//! `tonk-relay serve-storage`: serves what is stored to another command, when no relay runs.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::sync::watch;

use super::{
    error::{CliError, io_error},
    runtime::runtime,
};
use crate::{
    admin::storage::{router, state::Stored},
    bundle::{MaxInflated, served::ServedBundle, store},
    config::{Config, Time, load},
    observe::{health::Health, metrics::Metrics},
    storage::{
        StorageError,
        documents::Documents,
        local::{journal::Journal, space::Space},
    },
};

/// Serve what is stored to the process at the other end of standard input, and end with it.
pub(super) fn run(config_file: &Path, repairs: bool) -> Result<(), CliError> {
    let config = load::read_file(config_file).map_err(CliError::Config)?.config;
    let failed = io_error(Path::new("standard input"));
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().map_err(&failed)?);
    stream.set_nonblocking(true).map_err(&failed)?;
    runtime()?.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream).map_err(&failed)?;
        let stored = open(config, repairs).await?;
        let journal = stored.journal.clone();
        let service = TowerToHyperService::new(router(stored));
        let ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        // Who asks has gone, in the midst of it or not: what was done is left as a clean stop leaves it.
        drop(ended);
        journal.checkpoint().await?;
        Ok(())
    })
}

/// Open all that is stored, as a relay does.
async fn open(mut config: Config, repairs: bool) -> Result<Stored, CliError> {
    let metrics = Metrics::new()?.storage;
    // Nobody else writes: there is nothing to wait for.
    config.storage.commit_interval = Time(Duration::ZERO);
    let opened = match repairs {
        true => Journal::open(&config.storage, metrics.clone()),
        false => Journal::open_without_repair(&config.storage, metrics.clone()),
    };
    let journal = Arc::new(opened.map_err(|error| match error {
        StorageError::Corrupt(_) => CliError::BrokenJournal(error),
        _ => CliError::Storage(error),
    })?);
    let health = Arc::new(Health::default());
    let uploads = store::open(&config.bundles, health.clone()).await;
    let uploads = uploads.map_err(io_error(&config.bundles.path))?.store;
    let mut served = None;
    if !config.bundle.path.as_os_str().is_empty() {
        match ServedBundle::load(&config.bundle.path, MaxInflated::of(&config)) {
            Ok(bundle) => served = Some(Arc::new(bundle)),
            Err(error) => eprintln!("the served bundle is left out: {error}"),
        }
    }
    let served = watch::channel(served).1;
    let config = watch::channel(Arc::new(config)).1;
    let space = Arc::new(Space::new(config.clone(), health.clone(), metrics.clone()));
    let looking = space.clone();
    tokio::spawn(async move { looking.run().await });
    let documents =
        Documents::new(journal.clone(), served.clone(), health, space, config.clone(), metrics);
    let documents = Arc::new(documents);
    Ok(Stored { journal, documents, uploads, served, rooms: None, config })
}
