//! Sockets that listen, and the connections they accept.
//!
//! Behind a proxy that speaks the PROXY protocol a connection begins with its header, which [`proxied`] reads; then comes
//! TLS, where the relay speaks it itself; then HTTP.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus::{Histogram, IntCounterVec, IntGauge};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Notify, watch},
    time::timeout,
};
// tokio-rustls: rustls' own project keeps it up.
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::{debug, warn};

use super::{
    client_stream::{ClientStream, cut},
    proxied,
    tls::Acceptor,
};
use crate::{
    config::Config,
    limits::{Addresses, Counter, Kind, Place},
    observe::usage::Polled,
    sync::activity::{Activity, Metered},
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Connections beyond `limits.connections`, for plain HTTP; further ones are cut at once. As many file
/// descriptors as the shipped config asks for beyond the connections, less some for files.
const HTTP_BESIDE: usize = 400;
/// Bytes that the kernel takes beyond what it can send: little, so that a write goes on only as the peer
/// takes what was written before, which is how a slow peer is told from a dead one.
const UNSENT_IN_KERNEL: u32 = 128 << 10;
/// How long a connection that has not asked for anything yet is left open when the relay stops.
const LAST_REQUEST: Duration = Duration::from_millis(500);
/// Bytes that the headers of a request may have; more are answered with 431. nginx and Node.js take 32 and 16 KiB.
const MAX_HEADERS: usize = 32 << 10;
/// The pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The address a request came from.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub SocketAddr);

/// Bind a TCP address. An IPv6 one is for IPv6 alone, so that `0.0.0.0` and `[::]` can stand together.
///
/// # Errors
/// The address is in use, or not one of this machine's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The sockets that systemd passes on (`tonk-relay.socket`), which listen already.
///
/// # Errors
/// One of them is no TCP socket that listens.
pub fn inherited() -> io::Result<Vec<TcpListener>> {
    // listenfd: finds and checks them without unsafe code of ours.
    let mut passed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..passed.len() {
        if let Some(listener) = passed.take_tcp_listener(index)? {
            listener.set_nonblocking(true)?;
            listeners.push(TcpListener::from_std(listener)?);
        }
    }
    Ok(listeners)
}

/// Bind a Unix socket that its owner and group may use; one left by a process that is gone is replaced.
///
/// # Errors
/// The folder is not there or not writable, or another process answers at the socket.
#[expect(clippy::disallowed_methods, reason = "sockets are bound before anything is served")]
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // A regular file refuses connections as well: it is not ours to remove.
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there and no socket"));
            }
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// What every listener's connections need.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Connections {
    pub config: watch::Receiver<Arc<Config>>,
    /// What TLS is spoken with; none where it never is.
    pub tls: Option<(Acceptor, IntCounterVec)>,
    pub open: IntGauge,
    /// Of the public port, connections by address; others are not limited, and no proxy stands before them.
    pub addresses: Option<Arc<Addresses>>,
    /// Connections that are cut, by reason.
    pub refused: IntCounterVec,
    /// All connections, also those that were upgraded.
    pub sockets: Arc<Counter>,
    /// Where it is noted how long their tasks hold a thread.
    pub polls: Histogram,
    /// Where connections are counted until they end.
    pub tasks: TaskTracker,
    /// No request is taken any more.
    pub stopping: CancellationToken,
}

impl Connections {
    /// Serve `router` on a TCP listener until the relay stops.
    pub async fn serve(&self, listener: &TcpListener, router: Router) {
        loop {
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        accept_failed(&error).await;
                        continue;
                    }
                },
                () = self.stopping.cancelled() => return,
            };
            let config = self.config.borrow().clone();
            let most = config.limits.connections.saturating_add(HTTP_BESIDE);
            let Some(permit) = self.sockets.enter(most) else {
                cut(&stream, address, "flood", &self.refused);
                continue;
            };
            let _ = stream.set_nodelay(true);
            let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_IN_KERNEL);
            let (patience, refused) = (config.http.response_idle_timeout.0, self.refused.clone());
            let stream = ClientStream::new(stream, address, patience, refused, permit);
            if self.addresses.is_some() && config.http.proxy_protocol {
                self.spawn_proxied(stream, router.clone(), address);
            } else {
                self.spawn_tcp(stream, router.clone(), address);
            }
        }
    }

    /// Serve a connection of which the proxy says first whose it is.
    fn spawn_proxied(&self, mut stream: ClientStream, router: Router, proxy: SocketAddr) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let http = this.config.borrow().http.clone();
            if !http.trusts(proxy.ip()) {
                return stream.cut("no_trusted_proxy");
            }
            let reading = timeout(http.header_timeout.0, proxied::read(&mut stream));
            let read = tokio::select! {
                read = reading => read,
                () = this.stopping.cancelled() => return,
            };
            match read {
                Ok(Ok(client)) => this.spawn_tcp(stream, router, client.unwrap_or(proxy)),
                Ok(Err(error)) => {
                    warn!(client = %proxy, "no PROXY protocol header (http.proxy_protocol): {error}");
                    stream.cut("no_proxy_header");
                }
                Err(_) => stream.cut("no_proxy_header"),
            }
        });
    }

    /// Serve a connection from `address`, if there are not too many of them that are no sessions.
    fn spawn_tcp(&self, stream: ClientStream, router: Router, address: SocketAddr) {
        let config = self.config.borrow().clone();
        let is_proxy = config.http.trusts(address.ip());
        // Sessions among them are refused before that, and told so.
        let most = config.limits.connections_per_address.saturating_mul(2);
        let place = match &self.addresses {
            Some(addresses) if !is_proxy && address.ip() != proxied::NOWHERE.ip() => {
                addresses.enter(address.ip(), Kind::Connection, most, None).map(Some)
            }
            _ => Ok(None),
        };
        let Ok(place) = place else {
            return stream.cut("flood_of_address");
        };
        let counted = Counted::new(&self.open, place);
        let tls = self.tls.as_ref().and_then(|(tls, _)| tls.borrow().clone());
        match tls {
            Some(tls) => self.spawn_tls(stream, tls, router, ClientAddress(address), counted),
            None => {
                let (address, activity) = (Some(ClientAddress(address)), stream.activity().clone());
                let talk = self.clone().talk(stream, activity, router, address, counted);
                self.tasks.spawn(Polled::new(talk, self.polls.clone()));
            }
        }
    }

    /// Serve `router` on a Unix socket until the relay stops.
    pub async fn serve_unix(&self, listener: &UnixListener, router: Router) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.spawn::<UnixStream>(stream, router.clone(), None),
                    Err(error) => accept_failed(&error).await,
                },
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// Serve `router` on one connection.
    pub fn spawn<S>(&self, stream: S, router: Router, address: Option<ClientAddress>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (activity, counted) = (Arc::default(), Counted::new(&self.open, None));
        let talk = self.clone().talk(stream, activity, router, address, counted);
        self.tasks.spawn(Polled::new(talk, self.polls.clone()));
    }

    /// Serve `router` on a connection that begins with a TLS handshake.
    fn spawn_tls(
        &self,
        stream: ClientStream,
        tls: Arc<rustls::ServerConfig>,
        router: Router,
        address: ClientAddress,
        counted: Counted,
    ) {
        let (this, activity) = (self.clone(), stream.activity().clone());
        let talk = async move {
            let limit = this.config.borrow().http.header_timeout.0;
            let accepting = timeout(limit, TlsAcceptor::from(tls).accept(stream));
            let accepted = tokio::select! {
                accepted = accepting => accepted,
                () = this.stopping.cancelled() => return,
            };
            let result = match &accepted {
                Ok(Ok(_)) => "done",
                Ok(Err(_)) => "failed",
                Err(_) => "late",
            };
            if let Some((_, handshakes)) = &this.tls {
                handshakes.with_label_values(&[result]).inc();
            }
            match accepted {
                Ok(Ok(stream)) => {
                    this.talk(stream, activity, router, Some(address), counted).await;
                }
                Ok(Err(error)) => debug!(client = %address.0, "no TLS handshake: {error}"),
                Err(_) => debug!(client = %address.0, "no TLS handshake in time"),
            }
        };
        self.tasks.spawn(Polled::new(talk, self.polls.clone()));
    }

    async fn talk<S>(
        self,
        stream: S,
        activity: Arc<Activity>,
        router: Router,
        address: Option<ClientAddress>,
        counted: Counted,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Metered::new(stream, activity.clone()));
        let asked = Arc::new(Notify::new());
        let asks = asked.clone();
        let service = router.map_request(move |mut request: Request<Incoming>| {
            asks.notify_one();
            request.extensions_mut().insert(activity.clone());
            if let Some(address) = address {
                request.extensions_mut().insert(address);
            }
            request.map(axum::body::Body::new)
        });
        let header_timeout = self.config.borrow().http.header_timeout.0;
        let stopping = self.stopping;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(MAX_HEADERS)
            .serve_connection(io, TowerToHyperService::new(service))
            .with_upgrades();
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = stopping.cancelled() => {
                // Whoever has just connected is about to ask, and would be closed without an answer.
                tokio::select! {
                    _ = &mut connection => return,
                    () = asked.notified() => {}
                    () = tokio::time::sleep(LAST_REQUEST) => {}
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        drop(counted);
        if let Err(error) = ended {
            debug!(%error, "an HTTP connection ended early");
        }
    }
}

async fn accept_failed(error: &io::Error) {
    warn!("a connection could not be accepted: {error}");
    tokio::time::sleep(ACCEPT_AGAIN).await;
}

/// Counts a connection for as long as it lives.
struct Counted(IntGauge, #[expect(dead_code, reason = "counts until it is dropped")] Option<Place>);

impl Counted {
    fn new(open: &IntGauge, place: Option<Place>) -> Self {
        open.inc();
        Self(open.clone(), place)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
