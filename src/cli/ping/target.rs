//! Connects to a relay: name, address, TLS, upgrade and handshake.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest,
        http::{HeaderValue, Uri, header},
        protocol::WebSocketConfig,
    },
};

use super::{
    client::{Client, STEP_TIMEOUT, Stream},
    error::PingError,
};
use crate::{
    base::regular_file,
    cli::output::{millis, printable},
    http::tls::holds_until,
    sync::wire::{self, Body, Message},
};

/// The largest token or certificate file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The relay to connect to.
pub(in crate::cli) struct Target {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    token: Option<String>,
}

fn read(path: &Path) -> Result<Vec<u8>, PingError> {
    regular_file::read(path, MAX_FILE)
        .map_err(|source| PingError::File { path: path.to_owned(), source })
}

impl Target {
    pub(in crate::cli) fn new(
        url: &str,
        token_file: Option<&Path>,
        ca_file: Option<&Path>,
    ) -> Result<Self, PingError> {
        let bad = || PingError::Url(url.to_owned());
        // The URLs of the relay's web pages are accepted as well.
        let url = match url.split_once("://") {
            Some(("http", rest)) => format!("ws://{rest}"),
            Some(("https", rest)) => format!("wss://{rest}"),
            Some(_) => url.to_owned(),
            None => return Err(bad()),
        };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let is_tls = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tls = if is_tls { Some(Arc::new(tls_config(ca_file)?)) } else { None };
        let token = match token_file {
            Some(path) => Some(String::from_utf8_lossy(&read(path)?).trim().to_owned()),
            None => None,
        };
        Ok(Self { uri, host, port, tls, token })
    }

    /// Returns the URL, with the scheme ws or wss.
    pub(in crate::cli) fn url(&self) -> String {
        self.uri.to_string()
    }

    /// Opens a WebSocket. Calls `report` after each step.
    pub(in crate::cli) async fn open(
        &self,
        report: impl Fn(&str, String),
    ) -> Result<WebSocketStream<Box<dyn Stream>>, PingError> {
        let start = Instant::now();
        let (stream, address) = self.connect().await?;
        report("address", format!("{address}, connected in {}", millis(start.elapsed())));
        let stream = self.secure(stream, &report).await?;
        self.upgrade(stream, &report).await
    }

    /// Connects and joins as the peer `name`. Calls `report` after each step.
    pub(super) async fn join(
        &self,
        name: &str,
        report: impl Fn(&str, String),
    ) -> Result<Client, PingError> {
        let socket = self.open(&report).await?;
        let (name, relay) = (name.to_owned(), String::new());
        let mut client = Client { socket, name, relay, pings: 0 };
        let start = Instant::now();
        client.send("join", wire::join(&client.name)).await?;
        client.relay = loop {
            let answer = client.receive("join").await?;
            let message = Message::decode(&answer);
            let message = message.map_err(|source| PingError::Wire { step: "join", source })?;
            // A relay that refuses sends an error message, and then closes with the reason.
            if matches!(message.body, Body::Peer) {
                break message.sender.unwrap_or_default().into_owned();
            }
        };
        let relay = printable(&client.relay, 64);
        report("join", format!("relay {relay} in {}", millis(start.elapsed())));
        Ok(client)
    }

    /// Connects to the first address that answers.
    async fn connect(&self) -> Result<(TcpStream, SocketAddr), PingError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found
            .map_err(|source| PingError::Lookup { host: self.host.clone(), source })?
            .collect::<Vec<_>>();
        let mut failed = PingError::Lookup {
            host: self.host.clone(),
            source: io::Error::other("has no address"),
        };
        for address in found {
            let connecting = timeout(STEP_TIMEOUT, TcpStream::connect(address)).await;
            match connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Err(source) => failed = PingError::Connect { address, source },
            }
        }
        Err(failed)
    }

    /// Starts TLS, if the URL asks for it.
    async fn secure(
        &self,
        stream: TcpStream,
        report: impl Fn(&str, String),
    ) -> Result<Box<dyn Stream>, PingError> {
        let Some(config) = &self.tls else {
            report("tls", "none: what is sent can be read on the way".to_owned());
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| PingError::Tls(io::Error::other(error)))?;
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let stream = timeout(STEP_TIMEOUT, connector.connect(name, stream)).await;
        let stream = stream.map_err(|_| PingError::Late { step: "tls", limit: STEP_TIMEOUT })?;
        let stream = stream.map_err(PingError::Tls)?;
        report("tls", describe_tls(stream.get_ref().1));
        Ok(Box::new(stream))
    }

    /// Upgrades the connection to a WebSocket.
    async fn upgrade(
        &self,
        stream: Box<dyn Stream>,
        report: impl Fn(&str, String),
    ) -> Result<WebSocketStream<Box<dyn Stream>>, PingError> {
        let mut request = self.uri.clone().into_client_request().map_err(PingError::Upgrade)?;
        if let Some(token) = &self.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let value = value.map_err(|error| PingError::Upgrade(error.into()))?;
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let start = Instant::now();
        let upgrading = client_async_with_config(request, stream, Some(config));
        let upgraded = timeout(STEP_TIMEOUT, upgrading).await;
        let upgraded =
            upgraded.map_err(|_| PingError::Late { step: "upgrade", limit: STEP_TIMEOUT })?;
        let (socket, response) = upgraded.map_err(|error| match error {
            tungstenite::Error::Http(response) => match response.status().as_u16() {
                status @ 502..=504 => PingError::NoRelay(status),
                status => PingError::Status(status),
            },
            error => PingError::Upgrade(error),
        })?;
        let proxy = response.headers().get(header::SERVER).and_then(|name| name.to_str().ok());
        let proxy = proxy.map_or_else(String::new, |name| format!(", through {name}"));
        report("upgrade", format!("a WebSocket in {}{proxy}", millis(start.elapsed())));
        Ok(socket)
    }
}

/// The TLS config that trusts the certificates of the system, and those in a file.
fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, PingError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let text = read(path)?;
        let more: Vec<_> = rustls::pki_types::pem::PemObject::pem_slice_iter(&text)
            .filter_map(Result::ok)
            .collect();
        if more.is_empty() {
            let source = io::Error::other("no certificate (PEM) is in there");
            return Err(PingError::File { path: path.to_owned(), source });
        }
        roots.add_parsable_certificates(more);
    }
    if roots.is_empty() {
        return Err(PingError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| PingError::Tls(io::Error::other(error)))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn describe_tls(connection: &rustls::ClientConnection) -> String {
    let version = connection.protocol_version();
    let version = version.and_then(|v| v.as_str()).unwrap_or("unknown").replace("v1_", " 1.");
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    let until = certificate.and_then(|certificate| {
        let until = holds_until(certificate)?;
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        let days = left.as_secs() / (24 * 3600);
        Some(format!(
            ", certificate until {} ({days} days)",
            humantime::format_rfc3339_seconds(until)
        ))
    });
    format!("{version}{}", until.unwrap_or_default())
}
