//! Connects to the server, and makes or finds the document.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use automerge::Automerge;
use futures::{StreamExt, stream::BoxStream};
use samod::{
    BackoffConfig, ConcurrencyConfig, ConnectionId, DialerFailed, DialerHandle, DocHandle,
    PeerDocState, PeerId, Repo, Url,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    error::ClientError,
    transport::{Notice, Server, Tap, Tokio},
};
use crate::{
    base::document_id::DocumentId,
    cli::connect::{
        error::{ConnectError, hint},
        target::Target,
    },
};

/// Time limit of the handshake, once there is a WebSocket.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to look for a document. A relay asks its other clients, too.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Notices that wait to be read.
const MAX_NOTICES: usize = 64;

/// What the command was asked for.
pub(super) struct Options {
    /// None for a new one.
    pub(super) document: Option<DocumentId>,
    pub(super) target: Target,
    pub(super) name: String,
    /// Whether the URL is the default.
    pub(super) is_default: bool,
    /// The arguments with which another client connects to the same server, each after a space.
    pub(super) server_arguments: String,
}

/// An open document, and the way to the server.
pub(super) struct Opened {
    pub(super) repo: Repo,
    pub(super) document: DocumentId,
    pub(super) handle: DocHandle,
    pub(super) dialer: DialerHandle<ConnectError>,
    pub(super) url: String,
    /// The server's peer id.
    pub(super) server: String,
    pub(super) has_storage: bool,
    /// Whether the presence message "goodbye" was sent.
    pub(super) said_goodbye: watch::Receiver<bool>,
    /// What the server has told about the document, by connection.
    pub(super) peers: HashMap<ConnectionId, PeerDocState>,
    /// Notices that arrived while the document was looked for.
    pub(super) early: Vec<Notice>,
    pub(super) events: Events,
}

/// What happens with the document and the connection.
pub(super) struct Events {
    notices: mpsc::Receiver<Notice>,
    changes: BoxStream<'static, ()>,
    peers: BoxStream<'static, HashMap<ConnectionId, PeerDocState>>,
}

pub(super) enum Event {
    Notice(Notice),
    Changed,
    Peers(HashMap<ConnectionId, PeerDocState>),
}

impl Events {
    /// The next event; never, if the repository has stopped.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            Some(notice) = self.notices.recv() => Event::Notice(notice),
            Some(()) = self.changes.next() => Event::Changed,
            Some(peers) = self.peers.next() => Event::Peers(peers),
            else => std::future::pending().await,
        }
    }
}

/// Connects to the server, and makes or finds the document.
pub(super) async fn open(options: Options) -> Result<Opened, ClientError> {
    let peer = format!("client-{}", DocumentId::random());
    let repo = Repo::builder(Tokio)
        .with_peer_id(PeerId::from_string(peer.clone()))
        .with_concurrency(ConcurrencyConfig::AsyncRuntime);
    let repo = repo.load().await;
    let stopped = |_| ClientError::Stopped;
    let (document, created) = match options.document {
        Some(document) => (document, None),
        None => {
            let handle = repo.create(Automerge::new()).await.map_err(stopped)?;
            let id = handle.document_id().to_string();
            (id.parse().map_err(|_| ClientError::Stopped)?, Some(handle))
        }
    };
    // It is shown, and its query may have a token.
    let url = options.target.url();
    let url = url.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
    let (sender, mut notices) = mpsc::channel(MAX_NOTICES);
    let tap = Tap::new(document, &peer, sender);
    let said_goodbye = tap.said_goodbye();
    let server = Server {
        target: Arc::new(options.target),
        url: Url::parse(&url).map_err(|error| ConnectError::Url(format!("{url}: {error}")))?,
        tap,
    };
    let dialer = repo.dial(BackoffConfig::default(), Arc::new(server)).map_err(stopped)?;
    let (server, has_storage) = join(&dialer, &mut notices, &url, options.is_default).await?;
    let mut early = Vec::new();
    let handle = match created {
        Some(handle) => handle,
        None => find(&repo, document, &url, &mut notices, &mut early).await?,
    };
    let (peers, peer_changes) = handle.peers();
    let changes = handle.changes().map(|_| ()).boxed();
    let events = Events { notices, changes, peers: peer_changes.boxed() };
    Ok(Opened {
        repo,
        document,
        handle,
        dialer,
        url,
        server,
        has_storage,
        said_goodbye,
        peers,
        early,
        events,
    })
}

/// Waits for the first connection's handshake. Returns the server's peer id, and whether it has a
/// storage.
async fn join(
    dialer: &DialerHandle<ConnectError>,
    notices: &mut mpsc::Receiver<Notice>,
    url: &str,
    is_default: bool,
) -> Result<(String, bool), ClientError> {
    let mut established = pin!(dialer.established());
    // Connecting has time limits of its own.
    let mut until = None;
    let mut problem = None;
    loop {
        let notice = tokio::select! {
            // Notices first: they say why it failed.
            biased;
            Some(notice) = notices.recv() => notice,
            Err(failed) = &mut established => return Err(not_connected(failed, is_default)),
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                let (url, limit) = (url.to_owned(), HANDSHAKE_TIMEOUT);
                return Err(ClientError::Handshake { url, limit });
            }
        };
        match notice {
            Notice::Opened => until = Some(Instant::now() + HANDSHAKE_TIMEOUT),
            Notice::Joined { server, has_storage } => return Ok((server, has_storage)),
            Notice::Error(text) => problem = Some(text),
            Notice::Closed { code, reason } => return Err(refused(url, code, reason, problem)),
            Notice::Lost(_) => return Err(ClientError::Ended { url: url.to_owned() }),
            Notice::Ephemeral { .. } | Notice::DurableHeads(_) => {}
        }
    }
}

/// The error for a server to which the first connection failed.
fn not_connected(failed: DialerFailed<ConnectError>, is_default: bool) -> ClientError {
    let DialerFailed::PermanentFailure(source) = failed else { return ClientError::Stopped };
    let is_absent = matches!(&*source, ConnectError::Connect { .. });
    let hint = if is_absent && is_default { "; `tonk-relay demo` starts one" } else { "" };
    ClientError::Connect { source, hint }
}

/// The error for a connection that the server has closed. Without a reason, its `error` message
/// says why.
pub(super) fn refused(
    url: &str,
    code: u16,
    reason: String,
    problem: Option<String>,
) -> ClientError {
    let reason = if reason.is_empty() { problem.unwrap_or_default() } else { reason };
    let reason = if reason.is_empty() { "without a reason".to_owned() } else { reason };
    let hint = hint(code, &reason);
    ClientError::Refused { url: url.to_owned(), code, reason, hint }
}

/// Finds the document. Keeps the notices that arrive in the meantime.
async fn find(
    repo: &Repo,
    document: DocumentId,
    url: &str,
    notices: &mut mpsc::Receiver<Notice>,
    early: &mut Vec<Notice>,
) -> Result<DocHandle, ClientError> {
    let id = document.to_string().parse().map_err(|_| ClientError::Stopped)?;
    let mut finding = pin!(repo.find(id));
    let deadline = Instant::now() + SEARCH_TIMEOUT;
    let mut problem = None;
    loop {
        let step = async {
            tokio::select! {
                biased;
                Some(notice) = notices.recv() => Err(notice),
                found = &mut finding => Ok(found),
            }
        };
        let url = || url.to_owned();
        match timeout_at(deadline, step).await {
            Err(_) => {
                return Err(ClientError::Search { url: url(), document, limit: SEARCH_TIMEOUT });
            }
            Ok(Ok(found)) => {
                let found = found.map_err(|_| ClientError::Stopped)?;
                return found.ok_or_else(|| {
                    let says =
                        problem.map(|text| format!(" (it says: {text})")).unwrap_or_default();
                    ClientError::Unknown { url: url(), document, says }
                });
            }
            Ok(Err(Notice::Error(text))) => problem = Some(text),
            Ok(Err(Notice::Closed { code, reason })) if !hint(code, &reason).is_empty() => {
                return Err(refused(&url(), code, reason, problem));
            }
            Ok(Err(notice)) if early.len() < MAX_NOTICES => early.push(notice),
            Ok(Err(_)) => {}
        }
    }
}
