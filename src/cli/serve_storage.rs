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
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    error::{CliError, io_error},
    runtime::runtime,
};
use crate::{
    admin::storage::{router, state::StorageState},
    base::{document_id::DocumentId, run_to_completion::RunToCompletion},
    bundle::{MaxInflated, served::ServedBundle, store},
    config::{Config, Time, load},
    observe::{health::Health, metrics::Metrics},
    storage::{
        self, StorageError,
        documents::Documents,
        live::{Live, News},
        local::space::Space,
        open::OpenError,
        relay_message::RelayMessage,
    },
};

/// Serves what is stored to the process at the other end of standard input, until it closes the
/// connection.
pub(super) fn run(config_file: &Path, repairs: bool) -> Result<(), CliError> {
    let config = load::read_file(config_file).map_err(CliError::Config)?.config;
    let stdin_error = io_error(Path::new("standard input"));
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().map_err(&stdin_error)?);
    stream.set_nonblocking(true).map_err(&stdin_error)?;
    runtime()?.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream).map_err(&stdin_error)?;
        let (stored, _tasks) = open_storage(config, repairs).await?;
        let (store, unfinished) = (stored.storage.store.clone(), stored.unfinished.clone());
        let database = stored.storage.database.clone();
        let service = TowerToHyperService::new(router(stored));
        let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let has_lost = HasLost::default();
        let lost = async {
            // What a command has reported as done must be there at its end.
            match database.clone() {
                Some(database) => tokio::select! {
                    () = database.run(has_lost.clone(), || None) => {}
                    () = has_lost.0.cancelled() => {}
                },
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = serving => ended,
            () = lost => return Err(CliError::LostDatabase),
        };
        // The client has closed the connection, perhaps during a request. Leave the storage as a
        // clean stop leaves it.
        drop(ended);
        unfinished.finish().await;
        store.checkpoint().await?;
        if let Some(database) = database {
            database.leave().await;
        }
        Ok(())
    })
}

/// Cancelled when what the database has confirmed may be gone. No document is live.
#[derive(Clone, Default)]
struct HasLost(CancellationToken);

impl Live for HasLost {
    fn wants(&self, _document: DocumentId) -> bool {
        false
    }

    fn stored(&self, _document: DocumentId, _news: News) {}

    fn marked(&self, _document: DocumentId) {}

    fn resync(&self) {}

    fn lost(&self) {
        self.0.cancel();
    }

    fn heard(&self, _message: RelayMessage) {}
}

/// Opens what is stored, as a relay does, and watches the space on its disk.
async fn open_storage(
    mut config: Config,
    repairs: bool,
) -> Result<(StorageState, JoinSet<()>), CliError> {
    let metrics = Metrics::new()?.storage;
    // There are no other writers to batch a commit with.
    config.storage.commit_interval = Time(Duration::ZERO);
    let health = Arc::new(Health::default());
    let opened = storage::open::open(&config, repairs, health.clone(), metrics.clone()).await;
    let storage = opened.map_err(|error| match error {
        OpenError::Folder(error @ StorageError::Corrupt(_)) => CliError::BrokenJournal(error),
        OpenError::Folder(error) => CliError::Storage(error),
        error => CliError::Database(error),
    })?;
    let uploads = store::open(&config.bundles, health.clone()).await;
    let uploads = uploads.map_err(io_error(&config.bundles.path))?.store;
    let mut served = None;
    if !config.bundle.path.as_os_str().is_empty() {
        match ServedBundle::load(&config.bundle.path, MaxInflated::of(&config)) {
            Ok(bundle) => served = Some(Arc::new(bundle)),
            Err(error) => eprintln!("ignoring the served bundle: {error}"),
        }
    }
    let served = watch::channel(served).1;
    let config = watch::channel(Arc::new(config)).1;
    let space = Arc::new(Space::new(config.clone(), health.clone(), metrics.clone()));
    let watched = space.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { watched.run().await });
    let documents = Documents::new(
        storage.store.clone(),
        served.clone(),
        health,
        space,
        config.clone(),
        metrics,
    );
    let documents = Arc::new(documents);
    let unfinished = RunToCompletion::default();
    let stored =
        StorageState { storage, documents, uploads, served, rooms: None, config, unfinished };
    Ok((stored, tasks))
}
