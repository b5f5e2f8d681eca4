//! Listening sockets, and the connections that they accept.
//!
//! A connection begins with the header of the PROXY protocol, if that is configured, which
//! [`proxy_protocol`] reads. Then follow TLS, if a certificate is configured, and HTTP.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::Request};
use futures::FutureExt;
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
// tokio-rustls: maintained by the rustls project.
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::{debug, warn};

use super::{
    client_stream::{ClientStream, reset},
    proxy_protocol,
    tls::Acceptor,
};
use crate::{
    config::Config,
    limits::{Addresses, ConnectionSlot, Counter, SlotKind},
    observe::usage::Polled,
    sync::activity::{Activity, Metered},
};

/// The backlog: connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Connections beyond `limits.connections`, for plain HTTP. Further ones are reset at once. The
/// shipped unit allows about this many file descriptors beyond the connections, and some for files.
const EXTRA_HTTP_CONNECTIONS: usize = 400;
/// Unsent bytes that the kernel accepts per connection. Few, so that a write only makes progress
/// while the peer reads, which distinguishes a slow peer from a dead one.
const UNSENT_IN_KERNEL: u32 = 128 << 10;
/// How long a connection without a request stays open when the relay stops.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);
/// The largest request headers, in bytes. Larger ones get status 431. nginx and Node.js accept 32
/// and 16 KiB.
const MAX_HEADERS: usize = 32 << 10;
/// The pause after an accept that failed, such as for lack of file descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The address of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub SocketAddr);

/// Binds a TCP address. An IPv6 address accepts IPv6 only, so that `0.0.0.0` and `[::]` can be
/// bound together.
///
/// # Errors
/// The address is in use, or does not belong to this machine.
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

/// Returns the listening sockets that systemd passes on (`tonk-relay.socket`).
///
/// # Errors
/// One of them is not a listening TCP socket.
pub fn inherited() -> io::Result<Vec<TcpListener>> {
    // listenfd: finds and checks them without unsafe code here.
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

/// Binds a Unix socket that its owner and group may use. Creates its folder if there is none, and
/// replaces a socket that an earlier process left.
///
/// # Errors
/// The folder cannot be created or is not writable, or another process answers at the socket.
#[expect(clippy::disallowed_methods, reason = "sockets are bound before anything is served")]
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process is listening there",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // A regular file refuses connections as well, and must not be removed.
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "exists and is not a socket",
                ));
            }
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    // Under systemd, RuntimeDirectory has created it.
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            let problem = format!(
                "the folder {} is not there, and cannot be created: {error}; create it for the \
                 relay's user",
                folder.display()
            );
            io::Error::new(error.kind(), problem)
        })?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// How the connections of a listener are served.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Connections {
    pub config: watch::Receiver<Arc<Config>>,
    /// The certificate, and the metric of handshakes. `None` for a listener without TLS.
    pub tls: Option<(Acceptor, IntCounterVec)>,
    /// Shows how many are open. `None` for the relay's own connections.
    pub open: Option<IntGauge>,
    /// The limits by address. `None` for other than the public port: these connections have no
    /// limits by address and no proxy.
    pub addresses: Option<Arc<Addresses>>,
    /// Counts connections that are reset, by reason.
    pub refused: IntCounterVec,
    /// Counts all connections, including upgraded ones.
    pub sockets: Arc<Counter>,
    /// Records how long their tasks hold a thread.
    pub polls: Histogram,
    /// Owns the tasks of connections.
    pub tasks: TaskTracker,
    /// Cancelled when no more requests are accepted.
    pub stopping: CancellationToken,
}

impl Connections {
    /// Serves `router` on a TCP listener until the relay stops.
    pub async fn serve(&self, listener: &TcpListener, router: Router) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // The kernel would reset those that wait to be accepted, and automerge-repo's
                // adapter throws at a reset, which ends a Node.js client.
                () = self.stopping.cancelled() => match listener.accept().now_or_never() {
                    Some(accepted) => accepted,
                    None => return,
                },
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(_) if self.stopping.is_cancelled() => return,
                Err(error) => {
                    accept_failed(&error).await;
                    continue;
                }
            };
            let config = self.config.borrow().clone();
            let most = config.limits.connections.saturating_add(EXTRA_HTTP_CONNECTIONS);
            let Some(permit) = self.sockets.try_acquire(most) else {
                reset(&stream, address, "flood", &self.refused);
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

    /// Serves a connection on which the proxy sends the client's address first.
    fn spawn_proxied(&self, mut stream: ClientStream, router: Router, proxy: SocketAddr) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let http = this.config.borrow().http.clone();
            if !http.trusts(proxy.ip()) {
                return stream.reset("no_trusted_proxy");
            }
            let reading = timeout(http.header_timeout.0, proxy_protocol::read(&mut stream));
            let read = tokio::select! {
                read = reading => read,
                () = this.stopped_a_while_ago() => return,
            };
            match read {
                Ok(Ok(client)) => this.spawn_tcp(stream, router, client.unwrap_or(proxy)),
                Ok(Err(error)) => {
                    warn!(client = %proxy, "no valid PROXY protocol header (http.proxy_protocol): \
                                            {error}");
                    stream.reset("no_proxy_header");
                }
                Err(_) => stream.reset("no_proxy_header"),
            }
        });
    }

    /// Serves a connection from `address`, unless the address has too many.
    fn spawn_tcp(&self, stream: ClientStream, router: Router, address: SocketAddr) {
        let config = self.config.borrow().clone();
        let is_proxy = config.http.trusts(address.ip());
        // Sessions are refused at half of this, with a reason that the client can read.
        let most = config.limits.connections_per_address.saturating_mul(2);
        let slot = match &self.addresses {
            Some(addresses) if !is_proxy && address.ip() != proxy_protocol::UNKNOWN_CLIENT.ip() => {
                addresses.acquire(address.ip(), SlotKind::Connection, most, None).map(Some)
            }
            _ => Ok(None),
        };
        let Ok(slot) = slot else {
            return stream.reset("flood_of_address");
        };
        let counted = OpenConnection::new(self.open.clone(), slot);
        let tls = self.tls.as_ref().and_then(|(tls, _)| tls.borrow().clone());
        match tls {
            Some(tls) => self.spawn_tls(stream, tls, router, ClientAddress(address), counted),
            None => {
                let (address, activity) = (Some(ClientAddress(address)), stream.activity().clone());
                let serving = self.clone().serve_stream(stream, activity, router, address, counted);
                self.tasks.spawn(Polled::new(serving, self.polls.clone()));
            }
        }
    }

    /// Waits until a connection that began before the relay stopped has had time for its request.
    async fn stopped_a_while_ago(&self) {
        self.stopping.cancelled().await;
        tokio::time::sleep(FIRST_REQUEST_GRACE).await;
    }

    /// Serves `router` on a Unix socket until the relay stops.
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

    /// Serves `router` on one connection.
    pub fn spawn<S>(&self, stream: S, router: Router, address: Option<ClientAddress>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (activity, counted) = (Arc::default(), OpenConnection::new(self.open.clone(), None));
        let serving = self.clone().serve_stream(stream, activity, router, address, counted);
        self.tasks.spawn(Polled::new(serving, self.polls.clone()));
    }

    /// Serves `router` on a connection that begins with a TLS handshake.
    fn spawn_tls(
        &self,
        stream: ClientStream,
        tls: Arc<rustls::ServerConfig>,
        router: Router,
        address: ClientAddress,
        counted: OpenConnection,
    ) {
        let (this, activity) = (self.clone(), stream.activity().clone());
        let serving = async move {
            let limit = this.config.borrow().http.header_timeout.0;
            let accepting = timeout(limit, TlsAcceptor::from(tls).accept(stream));
            let accepted = tokio::select! {
                accepted = accepting => accepted,
                () = this.stopped_a_while_ago() => return,
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
                    this.serve_stream(stream, activity, router, Some(address), counted).await;
                }
                Ok(Err(error)) => debug!(client = %address.0, "the TLS handshake failed: {error}"),
                Err(_) => debug!(client = %address.0, "the TLS handshake was not finished in time"),
            }
        };
        self.tasks.spawn(Polled::new(serving, self.polls.clone()));
    }

    async fn serve_stream<S>(
        self,
        stream: S,
        activity: Arc<Activity>,
        router: Router,
        address: Option<ClientAddress>,
        counted: OpenConnection,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Metered::new(stream, activity.clone()));
        let has_request = Arc::new(Notify::new());
        let notifier = has_request.clone();
        let service = router.map_request(move |mut request: Request<Incoming>| {
            notifier.notify_one();
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
                // A client that has just connected is about to send a request, which would get no
                // answer.
                tokio::select! {
                    _ = &mut connection => return,
                    () = has_request.notified() => {}
                    () = tokio::time::sleep(FIRST_REQUEST_GRACE) => {}
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
    warn!("cannot accept a connection: {error}");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

/// Counts a connection in the metric and for its address until this is dropped.
struct OpenConnection(
    Option<IntGauge>,
    #[expect(dead_code, reason = "counts until it is dropped")] Option<ConnectionSlot>,
);

impl OpenConnection {
    fn new(open: Option<IntGauge>, slot: Option<ConnectionSlot>) -> Self {
        if let Some(open) = &open {
            open.inc();
        }
        Self(open, slot)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            open.dec();
        }
    }
}
