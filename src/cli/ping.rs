//! `tonk-relay ping URL`: the way to a relay as a client takes it, step by step, so that the one which fails has a name.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use clap::Args;
use futures::{SinkExt, StreamExt};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message as Frame,
        client::IntoClientRequest,
        http::{HeaderValue, Uri, header},
        protocol::WebSocketConfig,
    },
};

use super::{CliError, live::printable, print, runtime};
use crate::{
    base::{document_id::DocumentId, regular_file},
    config::Size,
    http::tls::holds_until,
    sync::wire::{self, Body, Message, WireError},
};

/// The largest file that is read: a token, or certificates.
const MAX_FILE: u64 = 1 << 20;
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes a second that a slow line carries.
const SLOW: f64 = 64.0 * 1024.0;
/// Small messages that are sent there and back.
const ROUNDS: u64 = 10;

/// `tonk-relay ping`
#[derive(Debug, Args)]
pub(super) struct PingArguments {
    /// Where clients connect to: ws:// or wss://
    url: String,
    /// A file with the token to sign in with
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A file with certificates (PEM) to trust besides the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The largest message to send there and back
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = size)]
    largest: Size,
    /// How long to say nothing, to see whether something on the way ends silent connections
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    silence: Duration,
}

fn size(text: &str) -> Result<Size, String> {
    text.parse::<bytesize::ByteSize>().map(|size| Size(size.as_u64()))
}

/// Which step failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum PingError {
    #[error("{0}: expected a URL such as wss://relay.example.org")]
    Url(String),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("address: {host}: {source}")]
    Lookup { host: String, source: io::Error },
    #[error(
        "address: {address} does not answer: {source}; is the relay or its proxy up, and the port open?"
    )]
    Connect { address: SocketAddr, source: io::Error },
    #[error("tls: {0}; openssl s_client -connect HOST:PORT says more")]
    Tls(io::Error),
    #[error(
        "tls: no certificate to trust is found on this machine; install ca-certificates, or name some with --ca-file"
    )]
    NoRoots,
    #[error(
        "upgrade: the answer is HTTP {0} and no WebSocket; a proxy on the way must pass on `Upgrade` and `Connection`, and \
         speak HTTP/1.1 to the relay"
    )]
    Status(u16),
    #[error(
        "upgrade: the answer is HTTP {0}: the proxy on the way does not reach the relay; is it up, on the port that the proxy asks?"
    )]
    NoRelay(u16),
    #[error(
        "silence: {0}; a proxy's timeout for idle connections must be longer than twice sync.ping_interval"
    )]
    Cut(Box<PingError>),
    #[error("upgrade: {0}")]
    Upgrade(tungstenite::Error),
    #[error("{step}: the connection broke: {source}")]
    Broke { step: &'static str, source: tungstenite::Error },
    #[error("{step}: closed with {code}: {reason}")]
    Closed { step: &'static str, code: u16, reason: String },
    #[error("{step}: the connection ended; something on the way cuts it")]
    Ended { step: &'static str },
    #[error("{step}: no answer within {limit:?}")]
    Late { step: &'static str, limit: Duration },
    #[error("{step}: the answer is not understood: {source}; is this a sync server?")]
    Wire { step: &'static str, source: WireError },
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A client.
struct Client {
    socket: WebSocketStream<Box<dyn Stream>>,
    name: String,
    relay: String,
    /// Pings of the relay's that came.
    pings: u32,
}

/// Where to connect to.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    token: Option<String>,
}

pub(super) fn ping(arguments: &PingArguments) -> Result<(), CliError> {
    let target = Target::new(arguments)?;
    Ok(runtime()?.block_on(run(&target, arguments))?)
}

fn read(path: &Path) -> Result<Vec<u8>, PingError> {
    regular_file::read(path, MAX_FILE)
        .map_err(|source| PingError::File { path: path.to_owned(), source })
}

impl Target {
    fn new(arguments: &PingArguments) -> Result<Self, PingError> {
        let bad = || PingError::Url(arguments.url.clone());
        // What the relay's own pages are reached by works, too.
        let url = match arguments.url.split_once("://") {
            Some(("http", rest)) => format!("ws://{rest}"),
            Some(("https", rest)) => format!("wss://{rest}"),
            Some(_) => arguments.url.clone(),
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
        let tls = if is_tls { Some(Arc::new(trust(arguments.ca_file.as_ref())?)) } else { None };
        let token = match &arguments.token_file {
            Some(path) => Some(String::from_utf8_lossy(&read(path)?).trim().to_owned()),
            None => None,
        };
        Ok(Self { uri, host, port, tls, token })
    }

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
            let connecting = timeout(PATIENCE, TcpStream::connect(address)).await;
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

    /// Connect, and join as `name`. `say` hears of each step.
    async fn join(&self, name: &str, say: impl Fn(&str, String)) -> Result<Client, PingError> {
        let start = Instant::now();
        let (stream, address) = self.connect().await?;
        say("address", format!("{address}, connected in {}", millis(start.elapsed())));
        let stream: Box<dyn Stream> = match &self.tls {
            None => {
                say("tls", "none: what is sent can be read on the way".to_owned());
                Box::new(stream)
            }
            Some(config) => {
                let name = ServerName::try_from(self.host.clone())
                    .map_err(|error| PingError::Tls(io::Error::other(error)))?;
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                let stream = timeout(PATIENCE, connector.connect(name, stream)).await;
                let stream =
                    stream.map_err(|_| PingError::Late { step: "tls", limit: PATIENCE })?;
                let stream = stream.map_err(PingError::Tls)?;
                say("tls", describe_tls(stream.get_ref().1));
                Box::new(stream)
            }
        };
        let mut request = self.uri.clone().into_client_request().map_err(PingError::Upgrade)?;
        if let Some(token) = &self.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let value = value.map_err(|error| PingError::Upgrade(error.into()))?;
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let start = Instant::now();
        let upgrading = client_async_with_config(request, stream, Some(config));
        let upgraded = timeout(PATIENCE, upgrading).await;
        let upgraded =
            upgraded.map_err(|_| PingError::Late { step: "upgrade", limit: PATIENCE })?;
        let (socket, response) = upgraded.map_err(|error| match error {
            tungstenite::Error::Http(response) => match response.status().as_u16() {
                status @ 502..=504 => PingError::NoRelay(status),
                status => PingError::Status(status),
            },
            error => PingError::Upgrade(error),
        })?;
        let proxy = response.headers().get(header::SERVER).and_then(|name| name.to_str().ok());
        let proxy = proxy.map_or_else(String::new, |name| format!(", through {name}"));
        say("upgrade", format!("a WebSocket in {}{proxy}", millis(start.elapsed())));

        let (name, relay) = (name.to_owned(), String::new());
        let mut client = Client { socket, name, relay, pings: 0 };
        let start = Instant::now();
        client.send("join", wire::join(&client.name)).await?;
        client.relay = loop {
            let answer = client.receive("join").await?;
            let message = Message::decode(&answer);
            let message = message.map_err(|source| PingError::Wire { step: "join", source })?;
            // A refusal is an error message, and then a close with the reason.
            if matches!(message.body, Body::Peer) {
                break message.sender.unwrap_or_default().into_owned();
            }
        };
        let relay = printable(&client.relay, 64);
        say("join", format!("relay {relay} in {}", millis(start.elapsed())));
        Ok(client)
    }
}

/// What is trusted: the system's certificates, and those in a file.
fn trust(ca_file: Option<&PathBuf>) -> Result<ClientConfig, PingError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let text = read(path)?;
        let more: Vec<_> = rustls::pki_types::pem::PemObject::pem_slice_iter(&text)
            .filter_map(Result::ok)
            .collect();
        if more.is_empty() {
            let source = io::Error::other("no certificate (PEM) is in there");
            return Err(PingError::File { path: path.clone(), source });
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

impl Client {
    async fn send(&mut self, step: &'static str, message: Bytes) -> Result<(), PingError> {
        let limit = patience(message.len());
        let sending = timeout(limit, self.socket.send(Frame::Binary(message))).await;
        let sent = sending.map_err(|_| PingError::Late { step, limit })?;
        sent.map_err(|source| PingError::Broke { step, source })
    }

    /// The next message, however long it takes.
    async fn next(&mut self, step: &'static str) -> Result<Bytes, PingError> {
        loop {
            let frame = self.socket.next().await.ok_or(PingError::Ended { step })?;
            match frame.map_err(|source| PingError::Broke { step, source })? {
                Frame::Binary(frame) => return Ok(frame),
                Frame::Close(frame) => {
                    let Some(frame) = frame else { return Err(PingError::Ended { step }) };
                    let (code, reason) = (frame.code.into(), printable(&frame.reason, 128));
                    return Err(PingError::Closed { step, code, reason });
                }
                Frame::Ping(_) => {
                    self.pings += 1;
                    let flushed = self.socket.flush().await;
                    flushed.map_err(|source| PingError::Broke { step, source })?;
                }
                _ => {}
            }
        }
    }

    async fn receive(&mut self, step: &'static str) -> Result<Bytes, PingError> {
        self.receive_within(PATIENCE, step).await
    }

    async fn receive_within(
        &mut self,
        limit: Duration,
        step: &'static str,
    ) -> Result<Bytes, PingError> {
        let receiving = timeout(limit, self.next(step)).await;
        receiving.map_err(|_| PingError::Late { step, limit })?
    }

    /// Send presence of so many bytes.
    async fn present(
        &mut self,
        step: &'static str,
        document: DocumentId,
        count: u64,
        bytes: usize,
    ) -> Result<(), PingError> {
        let data = vec![0; bytes];
        let message = wire::ephemeral(&self.name, &self.relay, document, count, "ping", &data);
        self.send(step, message).await
    }

    /// Wait for presence of somebody else's.
    async fn hear(
        &mut self,
        step: &'static str,
        count: u64,
        bytes: usize,
    ) -> Result<(), PingError> {
        loop {
            let frame = self.receive_within(2 * patience(bytes), step).await?;
            let message = Message::decode(&frame);
            let message = message.map_err(|source| PingError::Wire { step, source })?;
            if matches!(message.body, Body::Ephemeral { count: heard, .. } if heard == count) {
                return Ok(());
            }
        }
    }
}

async fn run(target: &Target, arguments: &PingArguments) -> Result<(), PingError> {
    let say = |step: &str, text: String| print(&format!("{step:<12} {text}\n"));
    let id = DocumentId::random();
    // Two clients that show each other presence in a document that nobody has: nothing is stored.
    let mut one = target.join(&format!("ping-{id}-1"), say).await?;
    let mut two = target.join(&format!("ping-{id}-2"), |_, _| ()).await?;
    let step = "round trip";
    one.present(step, id, 1, 1).await?;
    two.present(step, id, 1, 1).await?;
    // Who came second is heard by the first: then both are there.
    tokio::select! {
        heard = one.hear(step, 1, 1) => heard?,
        heard = two.hear(step, 1, 1) => heard?,
    }
    let mut times = Vec::new();
    for count in 2..2 + ROUNDS {
        let start = Instant::now();
        one.present(step, id, count, 1).await?;
        two.hear(step, count, 1).await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    say(step, format!("to another client: median {}, longest {}", millis(median), millis(longest)));

    let step = "large";
    let mut count = 2 + ROUNDS;
    let sizes = [64 << 10, 1 << 20].into_iter().filter(|size| *size < arguments.largest.0);
    for size in sizes.chain([arguments.largest.0]) {
        let bytes = usize::try_from(size).unwrap_or(usize::MAX);
        let start = Instant::now();
        let sending = async {
            one.present(step, id, count, bytes).await?;
            // What is too large is answered with a close.
            one.next(step).await.map(drop)
        };
        let arrived = tokio::select! {
            heard = two.hear(step, count, bytes) => heard,
            Err(refused) = sending => Err(refused),
        };
        if let Err(error) = arrived {
            say(step, format!("a message of {} does not arrive", Size(size)));
            return Err(error);
        }
        say(step, format!("a message of {} arrives in {}", Size(size), millis(start.elapsed())));
        count += 1;
    }

    let step = "silence";
    let silence = arguments.silence;
    if !silence.is_zero() {
        one.pings = 0;
        let quiet = async {
            loop {
                tokio::try_join!(one.next(step), two.next(step))?;
            }
        };
        if let Ok(Err::<(), _>(error)) = timeout(silence, quiet).await {
            return Err(PingError::Cut(Box::new(error)));
        }
        one.present(step, id, count, 1).await?;
        two.hear(step, count, 1).await?;
        let pings = one.pings;
        let silence = humantime::format_duration(silence);
        say(step, format!("{silence}, and the connection lives; {pings} pings came"));
    }
    for client in [&mut one, &mut two] {
        // It is over: what goes wrong now is nobody's matter.
        let _ = timeout(PATIENCE, client.socket.close(None)).await;
    }
    Ok(())
}

/// How long a message of that size may be on its way: a slow line is no fault.
fn patience(bytes: usize) -> Duration {
    PATIENCE + Duration::from_secs_f64(bytes as f64 / SLOW)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
