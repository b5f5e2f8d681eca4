//! The first phases: [`Loaded`], a config that was read, and [`Bound`], a relay that has opened and
//! bound everything that can fail.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tracing::warn;

use super::{error::AppError, report::show_limits};
use crate::{
    auth::{Auth, Policy, last_use::LastUse, tokens::Tokens},
    bundle::{store, watch::BundleKeeper},
    config::{AdminAddress, AuthMode, Config, load::LoadedConfig},
    http::{self, tls::TlsKeeper},
    observe::{health::Health, log::LogLevel, metrics::Metrics},
    storage::{
        self,
        documents::Documents,
        local::{
            TMP,
            restore_marker::{self, RestoreMarker},
            space::Space,
        },
        open::OpenedStorage,
    },
};

/// A config that was read and checked.
pub struct Loaded {
    /// The config.
    pub config: LoadedConfig,
    /// Changes the log level.
    pub log_level: Option<LogLevel>,
}

/// A relay for which everything that can fail at start has succeeded: storage works, the bundle is
/// loaded, every listener is bound.
pub struct Bound {
    pub(super) loaded: Loaded,
    pub(super) metrics: Metrics,
    pub(super) health: Arc<Health>,
    pub(super) config: watch::Sender<Arc<Config>>,
    pub(super) keeper: Arc<BundleKeeper>,
    pub(super) tls: Arc<TlsKeeper>,
    pub(super) auth: Arc<Auth>,
    pub(super) storage: OpenedStorage,
    pub(super) documents: Arc<Documents>,
    pub(super) storage_id: String,
    pub(super) store: store::OpenedStore,
    pub(super) listeners: Listeners,
}

/// Where a relay listens.
#[derive(Debug)]
pub struct Addresses {
    /// For clients.
    pub public: Vec<SocketAddr>,
    /// For operators, apart from Unix sockets.
    pub admin: Vec<SocketAddr>,
}

/// Bound listeners, which do not accept connections yet.
pub(super) struct Listeners {
    pub(super) public: Vec<TcpListener>,
    pub(super) admin: Vec<AdminListener>,
}

pub(super) enum AdminListener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Loaded {
    /// Opens storage, loads the bundle and binds every listener.
    ///
    /// # Errors
    /// The first of these that fails.
    pub async fn bind(self) -> Result<Bound, AppError> {
        let config = self.config.config.clone();
        let file = || self.config.file.clone();
        let metrics = Metrics::new()?;
        let health = Arc::new(Health::default());
        show_limits(&config, &metrics.process);

        // Listeners first: of two relays started by mistake, the second must not touch the first's
        // files.
        let listeners = Listeners::bind(&config, file)?;
        let storage = open_storage(&config, file, &health, &metrics).await?;
        let uploads = store::open(&config.bundles, health.clone()).await.map_err(|source| {
            AppError::Bundles { file: file(), path: config.bundles.path.clone(), source }
        })?;
        let (sender, receiver) = watch::channel(Arc::new(config.clone()));
        let space = Space::new(receiver.clone(), health.clone(), metrics.storage.clone());
        let space = Arc::new(space);
        let keeper = BundleKeeper::new(receiver, health.clone(), metrics.bundles.clone());
        let bundle = keeper.prepare(&config).await;
        keeper.serve(bundle.map_err(|source| AppError::Bundle { file: file(), source })?);
        let tls = TlsKeeper::new(sender.subscribe(), health.clone(), metrics.http.clone());
        let certificate = tls.prepare_settled(&config.tls).await;
        tls.install(certificate.map_err(|source| AppError::Tls { file: file(), source })?);
        #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
        let policy = Policy::load(&config.auth, config.cluster.is_set())
            .map_err(|source| AppError::Auth { file: file(), source })?;
        let auth =
            Auth::new(policy, LastUse::new(&config.storage.path, config.storage.path.join(TMP)));
        if let Some(database) = &storage.database {
            // From the first client on.
            let tokens = Tokens::of_json(&*database.tokens().borrow().entries);
            auth.set_shared(tokens.0);
        }
        let documents = Documents::new(
            storage.store.clone(),
            keeper.served(),
            health.clone(),
            space,
            sender.subscribe(),
            metrics.storage.clone(),
        );
        let storage_id = documents
            .storage_id()
            .await
            .map_err(|source| AppError::Storage { file: file(), source })?;
        Ok(Bound {
            loaded: self,
            metrics,
            health,
            config: sender,
            keeper: Arc::new(keeper),
            tls: Arc::new(tls),
            auth: Arc::new(auth),
            storage,
            documents: Arc::new(documents),
            storage_id,
            store: uploads,
            listeners,
        })
    }
}

impl Bound {
    /// Returns where the relay listens. With port 0 in the config, these have the actual ports.
    pub fn addresses(&self) -> Addresses {
        let Listeners { public, admin } = &self.listeners;
        let address = |listener: &TcpListener| listener.local_addr().ok();
        let admin = admin.iter().filter_map(|listener| match listener {
            AdminListener::Tcp(listener) => address(listener),
            AdminListener::Unix(..) => None,
        });
        Addresses { public: public.iter().filter_map(address).collect(), admin: admin.collect() }
    }
}

impl Listeners {
    /// Binds every address of the config. If systemd passes sockets on, they are the public ones.
    fn bind(config: &Config, file: impl Fn() -> Option<PathBuf>) -> Result<Self, AppError> {
        let mut public = http::listener::inherited().map_err(AppError::Inherited)?;
        for listener in &public {
            let address = listener.local_addr().map_err(AppError::Inherited)?;
            if config.auth.mode == AuthMode::Unset && !address.ip().is_loopback() {
                return Err(AppError::OpenSocket { file: file(), address });
            }
        }
        let is_default = config.http.listen == Config::default().http.listen;
        let to_bind = if public.is_empty() { config.http.listen.as_slice() } else { &[] };
        for address in to_bind.iter().copied() {
            match http::listener::bind(address) {
                Ok(listener) => public.push(listener),
                // The default names both loopback addresses, and a machine may have no IPv6.
                Err(error) if is_default && address.is_ipv6() && !is_taken(&error) => {
                    warn!(%address, "cannot listen on this address, and continuing without it: \
                                     {error}");
                }
                Err(source) => return Err(AppError::Listen { file: file(), address, source }),
            }
        }
        let mut admin = Vec::new();
        for address in &config.admin.listen {
            let bound = match address {
                AdminAddress::Tcp(address) => {
                    http::listener::bind(*address).map(AdminListener::Tcp)
                }
                AdminAddress::Unix(path) => http::listener::bind_unix(path)
                    .map(|listener| AdminListener::Unix(listener, path.clone())),
            };
            admin.push(bound.map_err(|source| AppError::AdminListen {
                file: file(),
                address: address.clone(),
                source,
            })?);
        }
        Ok(Self { public, admin })
    }
}

/// Opens the storage, unless a restore into it was not finished.
async fn open_storage(
    config: &Config,
    file: impl Fn() -> Option<PathBuf>,
    health: &Arc<Health>,
    metrics: &Metrics,
) -> Result<OpenedStorage, AppError> {
    let storage = storage::open::open(config, true, health.clone(), metrics.storage.clone())
        .await
        .map_err(|source| AppError::Open { file: file(), source })?;
    let unfinished = restore_marker::unfinished(&config.storage.path)
        .map_err(|source| AppError::Storage { file: file(), source })?;
    if let Some(RestoreMarker { backup, folders, .. }) = unfinished {
        let path = config.storage.path.clone();
        let name = folders.into_iter().next().unwrap_or_default();
        return Err(AppError::Replacing { file: file(), path, backup: backup.folder, name });
    }
    Ok(storage)
}

fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::AddrInUse | std::io::ErrorKind::PermissionDenied)
}
