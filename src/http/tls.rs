//! TLS 1.2 and 1.3 on the public port, with rustls. The files are watched: a renewed certificate is
//! used for new connections, and open ones stay open.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::sync::{Mutex, MutexGuard, watch};
use tracing::{error, info};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    base::regular_file,
    bundle::watch::PathWatch,
    config::{self, Config},
    observe::{health::Health, metrics::HttpMetrics},
};

/// The largest file of certificates or keys, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The pause after a change before the files are read, since they are replaced one after the other.
const QUIET_FOR: Duration = Duration::from_millis(500);

/// How long the start waits for a certificate and key that do not match: certbot switches two links
/// one after the other. The files are read again every [`SETTLE_RETRY`].
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
const SETTLE_RETRY: Duration = Duration::from_millis(100);

/// The certificate with which connections are accepted, or `None` for plain HTTP.
pub type Acceptor = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum TlsError {
    #[error("{}: {source}; it must be readable by the group tonk-relay", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: the file contains no certificate (PEM)", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}: the file contains no private key (PEM)", .0.display())]
    NoKey(PathBuf),
    #[error("{} and {} do not match{}", cert.display(), key.display(), detail(source))]
    Mismatch { cert: PathBuf, key: PathBuf, source: Box<rustls::Error> },
}

/// What rustls says, unless it only says that the two do not match.
fn detail(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "; expected a certificate and the private key that belongs to it".to_owned()
        }
        error => format!(": {error}"),
    }
}

impl TlsError {
    /// Returns the key of the config that names the file.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NoKey(_) => "tls.key",
            _ => "tls.cert",
        }
    }
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Loaded {
    config: Arc<ServerConfig>,
    /// When the certificate expires.
    until: Option<SystemTime>,
}

#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    regular_file::read(path, MAX_FILE)
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Returns when a certificate expires, or `None` if it does not parse.
pub fn holds_until(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    // x509-parser: rustls does not return the expiry date of a certificate.
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let until = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(until))
}

/// Reads the certificate and its key, or returns `None` if none is configured. Blocks.
///
/// # Errors
/// The files cannot be read, or do not match.
pub fn load(config: &config::Tls) -> Result<Option<Loaded>, TlsError> {
    let config::Tls { cert, key } = config;
    if cert.as_os_str().is_empty() {
        return Ok(None);
    }
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&read(cert)?).filter_map(Result::ok).collect();
    let leaf = chain.first().ok_or_else(|| TlsError::NoCertificate(cert.clone()))?;
    let until = holds_until(leaf);
    let private = PrivateKeyDer::from_pem_slice(&read(key)?);
    let private = private.map_err(|_| TlsError::NoKey(key.clone()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let built = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut built = built.map_err(|source| TlsError::Mismatch {
        cert: cert.clone(),
        key: key.clone(),
        source: Box::new(source),
    })?;
    built.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Loaded { config: Arc::new(built), until }))
}

/// A loaded certificate, or `None` if none is configured. No other one is loaded until this is
/// dropped.
pub struct PreparedCertificate<'a> {
    loaded: Option<Loaded>,
    _turn: MutexGuard<'a, ()>,
}

/// Keeps the certificate up to date.
pub struct TlsKeeper {
    config: watch::Receiver<Arc<Config>>,
    current: watch::Sender<Option<Arc<ServerConfig>>>,
    /// Held while a certificate is loaded, so that loads do not overlap.
    loading: Mutex<()>,
    health: Arc<Health>,
    metrics: HttpMetrics,
}

impl TlsKeeper {
    /// Returns a keeper without a certificate.
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        health: Arc<Health>,
        metrics: HttpMetrics,
    ) -> Self {
        Self { config, current: watch::channel(None).0, loading: Mutex::default(), health, metrics }
    }

    /// Returns the certificate in use, now and after changes.
    pub fn acceptor(&self) -> Acceptor {
        self.current.subscribe()
    }

    /// Loads the certificate that `config` names, if any, without using it yet.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub async fn prepare(&self, config: &config::Tls) -> Result<PreparedCertificate<'_>, TlsError> {
        let turn = self.loading.lock().await;
        Self::read(config.clone(), turn).await
    }

    /// As [`Self::prepare`], but retries for a second, since the files may be about to change.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub async fn prepare_settled(
        &self,
        config: &config::Tls,
    ) -> Result<PreparedCertificate<'_>, TlsError> {
        let prepared = self.prepare(config).await;
        let Err(error) = &prepared else { return prepared };
        info!(
            "cannot use tls.cert and tls.key; they may be changing, so retrying for \
             {SETTLE_TIMEOUT:?}: {error}"
        );
        let until = Instant::now() + SETTLE_TIMEOUT;
        loop {
            tokio::time::sleep(SETTLE_RETRY).await;
            match self.prepare(config).await {
                Err(_) if Instant::now() < until => {}
                prepared => return prepared,
            }
        }
    }

    async fn read(
        config: config::Tls,
        turn: MutexGuard<'_, ()>,
    ) -> Result<PreparedCertificate<'_>, TlsError> {
        let path = config.cert.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&config)).await;
        let loaded = loaded
            .unwrap_or_else(|panic| Err(TlsError::Read { path, source: io::Error::other(panic) }));
        loaded.map(|loaded| PreparedCertificate { loaded, _turn: turn })
    }

    /// Uses a prepared certificate for new connections.
    pub fn install(&self, prepared: PreparedCertificate<'_>) {
        let PreparedCertificate { loaded, _turn } = prepared;
        let until = loaded.as_ref().and_then(|loaded| loaded.until);
        let seconds = until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
        self.metrics.certificate_until.set(seconds.map_or(0.0, |until| until.as_secs_f64()));
        if let Some(until) = until {
            let until = humantime::format_rfc3339_seconds(until).to_string();
            info!(until, "using the certificate that expires {until}");
        }
        self.current.send_replace(loaded.map(|loaded| loaded.config));
        self.health.set_degraded("tls", None);
    }

    async fn reload(&self) {
        let turn = self.loading.lock().await;
        // Read after the wait, since a config reload may have named other files.
        let config = self.config.borrow().tls.clone();
        match Self::read(config, turn).await {
            Ok(prepared) => self.install(prepared),
            Err(error) => {
                error!("cannot use the changed certificate; still using the previous one: {error}");
                self.health.set_degraded("tls", Some(error.to_string()));
            }
        }
    }

    /// Follows the files, and the config that names them. Runs forever.
    pub async fn run(&self) {
        let mut config = self.config.clone();
        loop {
            let tls = config.borrow_and_update().tls.clone();
            if tls.cert.as_os_str().is_empty() {
                if config.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let mut cert = PathWatch::new(&tls.cert).await;
            let mut key = PathWatch::new(&tls.key).await;
            loop {
                tokio::select! {
                    () = cert.changed() => {}
                    () = key.changed() => {}
                    changed = config.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    }
                }
                tokio::time::sleep(QUIET_FOR).await;
                self.reload().await;
            }
        }
    }
}
