//! Connects to a relay: address, TLS and upgrade.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest,
        error::ProtocolError,
        http::{HeaderValue, Response, Uri, header},
        protocol::WebSocketConfig,
    },
};

use super::{
    error::ConnectError,
    step::{STEP_TIMEOUT, Step, within},
    trust::{Trust, read, tls_config},
};
use crate::{base::text::Count, cli::output::millis, http::tls::holds_until};

/// A connection with or without TLS.
pub(in crate::cli) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The relay to connect to.
pub(in crate::cli) struct Target {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    is_verified: bool,
    token: Option<String>,
}

impl Target {
    pub(super) fn new(
        url: &str,
        token_file: Option<&Path>,
        trust: Trust<'_>,
    ) -> Result<Self, ConnectError> {
        let bad = || ConnectError::Url(url.to_owned());
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
        let tls = if is_tls { Some(Arc::new(tls_config(trust)?)) } else { None };
        let token = match token_file {
            Some(path) => {
                Some(String::from_utf8_lossy(&read("--token-file", path)?).trim().to_owned())
            }
            None => None,
        };
        Ok(Self { uri, host, port, tls, is_verified: !matches!(trust, Trust::All), token })
    }

    /// Opens a WebSocket. Calls `report` after each step.
    pub(in crate::cli) async fn open(
        &self,
        report: &impl Fn(Step),
    ) -> Result<WebSocketStream<Box<dyn Stream>>, ConnectError> {
        let start = Instant::now();
        let (stream, address) = self.connect().await?;
        let took = start.elapsed();
        let text = format!("{address}, connected in {}", millis(took));
        report(Step::new("address", text, Some(took)));
        let stream = self.secure(stream, report).await?;
        self.upgrade(stream, report).await
    }

    /// Returns the URL, with the scheme ws or wss.
    pub(in crate::cli) fn url(&self) -> String {
        self.uri.to_string()
    }

    /// Connects to the first address that answers.
    async fn connect(&self) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found
            .map_err(|source| ConnectError::Lookup { host: self.host.clone(), source })?
            .collect::<Vec<_>>();
        let mut failed = ConnectError::Lookup {
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
                Err(source) => failed = ConnectError::Connect { address, source },
            }
        }
        Err(failed)
    }

    /// Starts TLS, if the URL asks for it.
    async fn secure(
        &self,
        stream: TcpStream,
        report: &impl Fn(Step),
    ) -> Result<Box<dyn Stream>, ConnectError> {
        let Some(config) = &self.tls else {
            let text = "none: everybody on the network path can read the traffic".to_owned();
            report(Step::new("tls", text, None));
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|error| ConnectError::tls_setup(&error))?;
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let stream = within(STEP_TIMEOUT, "tls", connector.connect(name, stream)).await?;
        let (host, port) = (self.host.clone(), self.port);
        let stream = stream.map_err(|source| ConnectError::Tls { host, port, source })?;
        let text = describe_tls(stream.get_ref().1, self.is_verified);
        report(Step::new("tls", text, None));
        Ok(Box::new(stream))
    }

    /// Upgrades the connection to a WebSocket.
    async fn upgrade(
        &self,
        stream: Box<dyn Stream>,
        report: &impl Fn(Step),
    ) -> Result<WebSocketStream<Box<dyn Stream>>, ConnectError> {
        let mut request = self.uri.clone().into_client_request().map_err(ConnectError::Upgrade)?;
        if let Some(token) = &self.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let value = value.map_err(|error| ConnectError::Upgrade(error.into()))?;
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let start = Instant::now();
        let upgrading = client_async_with_config(request, stream, Some(config));
        let upgraded = within(STEP_TIMEOUT, "upgrade", upgrading).await?;
        let (socket, response) = upgraded.map_err(|error| match error {
            tungstenite::Error::Protocol(ProtocolError::HttparseError(_)) => ConnectError::NotHttp,
            tungstenite::Error::Http(response) => match response.status().as_u16() {
                400 if is_plain_to_tls(&response) => ConnectError::NotHttp,
                status @ 502..=504 => ConnectError::NoRelay(status),
                status => ConnectError::Status(status),
            },
            error => ConnectError::Upgrade(error),
        })?;
        let proxy = response.headers().get(header::SERVER).and_then(|name| name.to_str().ok());
        let proxy = proxy.map_or_else(String::new, |name| format!(", through {name}"));
        let took = start.elapsed();
        let text = format!("a WebSocket in {}{proxy}", millis(took));
        report(Step::new("upgrade", text, Some(took)));
        Ok(socket)
    }
}

/// Whether a server that expects TLS refuses plain HTTP, in the words of nginx, Caddy or Go.
fn is_plain_to_tls(response: &Response<Option<Vec<u8>>>) -> bool {
    let body = response.body().as_deref().unwrap_or_default();
    String::from_utf8_lossy(body).to_ascii_lowercase().contains("plain http request")
        || String::from_utf8_lossy(body).contains("HTTP request to an HTTPS server")
}

fn describe_tls(connection: &rustls::ClientConnection, is_verified: bool) -> String {
    let version = connection.protocol_version();
    let version = version.and_then(|v| v.as_str()).unwrap_or("unknown").replace("v1_", " 1.");
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    let until = certificate.and_then(|certificate| {
        let until = holds_until(certificate)?;
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        let days = left.as_secs() / (24 * 3600);
        Some(format!(
            ", certificate until {} ({})",
            humantime::format_rfc3339_seconds(until),
            Count(days, "day")
        ))
    });
    let warning = if is_verified { "" } else { "; NOT VERIFIED (--insecure)" };
    format!("{version}{}{warning}", until.unwrap_or_default())
}
