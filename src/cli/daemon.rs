//! `tonk-relay` without a command: starts the relay, or checks or prints its config.

use std::{
    env,
    ffi::OsString,
    net::ToSocketAddrs,
    path::{Path, PathBuf},
};

use axum::Router;
use clap::Args;

use super::{
    arguments::CONFIG_FILE, error::CliError, files::absolute, output::print, runtime::runtime,
};
use crate::{
    app::{Addresses, Loaded, preflight, service::Service},
    config::{
        AuthMode, Config, StoreKind, check, instance,
        load::{self, LoadedConfig, Origins},
        warnings::warnings,
    },
    http,
    observe::log,
};

#[derive(Debug, Args)]
pub(super) struct DaemonArguments {
    /// The config file
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    pub(super) config: PathBuf,
    /// Check the config and the files that it names, print every fault and warning, and exit with 0
    /// or 78
    #[arg(long)]
    pub(super) check_config: bool,
    /// Print the values in effect, and where each of them comes from
    #[arg(long)]
    pub(super) print_config: bool,
    /// The form of the TypeScript relay: the port to listen on (address in $HOST, 127.0.0.1 by
    /// default)
    #[arg(value_name = "PORT", requires = "bundle", conflicts_with = "config")]
    pub(super) port: Option<u16>,
    /// The bundle to serve
    #[arg(value_name = "BUNDLE")]
    pub(super) bundle: Option<PathBuf>,
    /// The folder of documents
    #[arg(value_name = "STORAGE", default_value = "automerge-repo-data")]
    pub(super) storage: PathBuf,
}

pub(super) fn run(arguments: DaemonArguments) -> Result<(), CliError> {
    let loaded = match (arguments.port, arguments.bundle) {
        (Some(port), Some(bundle)) => as_typescript_relay(port, &bundle, &arguments.storage)?,
        _ => load::read_file(&arguments.config).map_err(CliError::Config)?,
    };
    if arguments.print_config {
        print(&load::print(&loaded));
        return Ok(());
    }
    let mut faults = check::check(&loaded);
    if arguments.check_config {
        let unit = instance::unit(&arguments.config);
        let service = Service::find(&unit).map_err(|fault| CliError::Config(vec![fault]))?;
        let known: Vec<String> = faults.iter().map(|fault| fault.key.clone()).collect();
        let found = preflight::open(&loaded, service.as_ref());
        // One fault of a key is enough: a key that is not set also names no file.
        faults.extend(found.into_iter().filter(|fault| !known.contains(&fault.key)));
        for warning in warnings(&loaded) {
            eprintln!("warning: {warning}");
        }
        if faults.is_empty() {
            let file = loaded.file.as_ref().map(|file| format!("{}: ", file.display()));
            let by = service.map(|service| format!(" (checked as {})", service.describe()));
            print(&format!("{}no fault{}\n", file.unwrap_or_default(), by.unwrap_or_default()));
            return Ok(());
        }
    }
    if !faults.is_empty() {
        return Err(CliError::Config(faults));
    }
    serve(loaded)
}

/// Runs the relay until it is stopped.
fn serve(loaded: LoadedConfig) -> Result<(), CliError> {
    serve_with(loaded, Router::new(), |_| ())
}

/// Runs the relay until it is stopped, with further `pages` on its public port. Calls `started`
/// when it has started.
pub(super) fn serve_with(
    loaded: LoadedConfig,
    pages: Router<http::state::App>,
    started: impl FnOnce(&Addresses),
) -> Result<(), CliError> {
    let log_level = Some(log::init(&loaded.config.log)?);
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let bound = Loaded { config: loaded, log_level }.bind().await?;
        let addresses = bound.addresses();
        let running = bound.run(pages)?;
        started(&addresses);
        running.serve().await.finish().await
    });
    // Do not wait for threads that hang in a disk access: nothing can end them.
    runtime.shutdown_background();
    Ok(result?)
}

/// Makes a config from the defaults and what `set` changes. `origin` is what `--print-config` names
/// as their source.
pub(super) fn config_without_file(origin: &str, set: impl FnOnce(&mut Config)) -> LoadedConfig {
    let mut config = Config::default();
    set(&mut config);
    let mut origins = Origins::default();
    for key in load::changed_keys(&Config::default(), &config) {
        origins.set(&key, origin);
    }
    LoadedConfig { file: None, text: String::new(), config, origins }
}

/// The config of `tonk-relay PORT BUNDLE [STORAGE]`, the command line of the TypeScript relay: open
/// mode, no admin listener, and uploaded bundles in a folder next to the documents.
fn as_typescript_relay(port: u16, bundle: &Path, storage: &Path) -> Result<LoadedConfig, CliError> {
    if !bundle.exists() {
        return Err(CliError::NoBundle(bundle.to_owned()));
    }
    let host = env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let listen = (bare, port)
        .to_socket_addrs()
        .map_err(|error| CliError::Host(host.clone(), error.to_string()))?
        .next()
        .ok_or_else(|| CliError::Host(host.clone(), "names no address".to_owned()))?;
    let (bundle, storage) = (absolute(bundle)?, absolute(storage)?);
    let mut uploads = OsString::from(&storage);
    uploads.push("-bundles");
    Ok(config_without_file("command line", |config| {
        config.http.listen = vec![listen];
        config.admin.listen = Vec::new();
        config.bundle.path = bundle;
        config.bundles.path = uploads.into();
        if let Some(bucket) = env::var("S3_BUCKET_NAME").ok().filter(|name| !name.is_empty()) {
            config.bundles.store = StoreKind::S3;
            config.bundles.bucket = bucket;
            config.bundles.region = env::var("AWS_REGION").unwrap_or_default();
        }
        config.storage.path = storage;
        config.auth.mode = AuthMode::Open;
        if let Some(level) = env::var("RUST_LOG").ok().filter(|level| !level.is_empty()) {
            config.log.level = level;
        }
    }))
}
