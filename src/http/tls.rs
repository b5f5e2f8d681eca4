//! TLS on the public port, by rustls: TLS 1.2 and 1.3. The files are watched: a renewed certificate holds for the next
//! connection, and those that are open stay.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::sync::watch;
use tracing::{error, info};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    bundle::watch::PathWatch,
    config::{self, Config},
    health::Health,
    metrics::HttpMetrics,
    regular_file,
};

/// The largest file of certificates or keys.
const MAX_FILE: u64 = 1 << 20;
/// How long the files must not change before they are read: both are replaced one after the other.
const REST: Duration = Duration::from_millis(500);

/// What connections are accepted with; none for plain HTTP.
pub type Acceptor = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum TlsError {
    #[error("{}: {source}; it must be readable by the group tonk-relay", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: no certificate (PEM) is in there", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}: no private key (PEM) is in there", .0.display())]
    NoKey(PathBuf),
    #[error("{} and {} do not go together: {source}", cert.display(), key.display())]
    Mismatch { cert: PathBuf, key: PathBuf, source: Box<rustls::Error> },
}

impl TlsError {
    /// The key of the config that it is about.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NoKey(_) => "tls.key",
            _ => "tls.cert",
        }
    }
}

/// A certificate with its key, ready to be used.
#[derive(Debug)]
pub struct Loaded {
    config: Arc<ServerConfig>,
    /// Until when the certificate holds.
    until: Option<SystemTime>,
}

#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    regular_file::read(path, MAX_FILE)
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Until when a certificate holds; none if it does not parse.
pub fn holds_until(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    // x509-parser: rustls checks certificates and does not say until when they hold.
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let until = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(until))
}

/// Read a certificate and its key; none if none is configured. Blocks.
///
/// # Errors
/// They cannot be read, or do not go together.
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

/// Keeps the certificate up to date.
pub struct TlsKeeper {
    config: watch::Receiver<Arc<Config>>,
    current: watch::Sender<Option<Arc<ServerConfig>>>,
    health: Arc<Health>,
    metrics: HttpMetrics,
}

impl TlsKeeper {
    /// No certificate yet.
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        health: Arc<Health>,
        metrics: HttpMetrics,
    ) -> Self {
        Self { config, current: watch::channel(None).0, health, metrics }
    }

    /// What connections are accepted with.
    pub fn acceptor(&self) -> Acceptor {
        self.current.subscribe()
    }

    /// Take over the certificate that a config names.
    ///
    /// # Errors
    /// It cannot be used; the former one stays.
    pub async fn load(&self, config: &config::Tls) -> Result<(), TlsError> {
        let config = config.clone();
        let loading = tokio::task::spawn_blocking(move || load(&config));
        // A panic there is in the log, and leaves what is there.
        let Ok(loaded) = loading.await else { return Ok(()) };
        let loaded = loaded?;
        let until = loaded.as_ref().and_then(|loaded| loaded.until);
        let seconds = until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
        self.metrics.certificate_until.set(seconds.map_or(0.0, |until| until.as_secs_f64()));
        if let Some(until) = until {
            let until = humantime::format_rfc3339_seconds(until).to_string();
            info!(until, "the certificate holds until {until}");
        }
        self.current.send_replace(loaded.map(|loaded| loaded.config));
        self.health.degrade("tls", None);
        Ok(())
    }

    /// Follow the files, and the config that names them. Runs for ever.
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
                tokio::time::sleep(REST).await;
                if let Err(error) = self.load(&tls).await {
                    error!("the changed certificate is not used; the former one still is: {error}");
                    self.health.degrade("tls", Some(error.to_string()));
                }
            }
        }
    }
}
