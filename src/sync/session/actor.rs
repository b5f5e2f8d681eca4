//! The task of one session, from its upgrade to its end.
//!
//! A refusal never happens at the upgrade, where an HTTP status throws inside automerge-repo's
//! adapter and ends a Node client: the upgrade is accepted, then the peer gets an `error` message
//! and a close frame.

use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use futures::StreamExt;
use tracing::{info, warn};

use super::{
    Session,
    handshake::NotJoined,
    rate_limit::{Load, RateLimit},
    route::Router,
    shared::Sessions,
};
use crate::{
    auth::{Access, Client},
    base::session_id::SessionId,
    limits::ConnectionSlot,
    observe::usage::Polled,
    sync::{
        activity::Activity,
        close_reason::CloseReason,
        incoming::{Incoming, Reader, Received},
        socket::{self, Progress},
        truncating::{Socket, Truncated},
        wire,
        writer::Writer,
    },
};

impl Sessions {
    /// Runs one WebSocket from its upgrade to its end, if it was admitted, and holds its slot
    /// among the connections of its address until then.
    pub fn run(
        self: Arc<Self>,
        socket: Socket,
        from: Client,
        activity: Arc<Activity>,
        admitted: Result<Access, CloseReason>,
        slot: Option<ConnectionSlot>,
    ) -> impl Future<Output = ()> + Send {
        let truncated = socket.get_ref().truncated();
        // Split here: a future has space for its arguments twice, and the socket is large.
        let (writer, reader) = socket.split();
        let writer = Writer::new(writer);
        self.run_halves((writer, reader, truncated), from, activity, admitted, slot)
    }

    #[expect(clippy::manual_async_fn, reason = "an async fn has space for its arguments twice")]
    fn run_halves(
        self: Arc<Self>,
        (mut writer, reader, truncated): (Writer, Reader, Arc<Truncated>),
        from: Client,
        activity: Arc<Activity>,
        admitted: Result<Access, CloseReason>,
        slot: Option<ConnectionSlot>,
    ) -> impl Future<Output = ()> + Send {
        async move {
            let id = self.peers.next_id();
            let (in_flight, config) = (&self.receiving.in_flight, self.config.clone());
            let mut incoming =
                Incoming::new(reader, truncated, &activity, in_flight, slot.as_ref(), config);
            let client =
                from.shown().map_or_else(|| "unknown".to_owned(), |address| address.to_string());
            // What happens once is in a box: a session keeps no memory for it.
            let joined = Box::pin(self.handshake(id, admitted, from, &mut incoming)).await;
            let (session, _open) = match joined {
                Ok(joined) => joined,
                Err(refused) => {
                    self.report_refused(id, &client, &refused.reason);
                    return Box::pin(self.refuse(id, refused, &mut writer, &mut incoming)).await;
                }
            };
            incoming.set_joined();
            let mut actor = Actor::join(&self, session.clone());
            if !self.observed.counts.is_probe() {
                info!(peer = %session.peer_id, connection = %id, client, "connected");
            }
            let (us, storage_id) = (&self.names.peer_id, &self.names.storage_id);
            session.send("peer", wire::peer(us, &session.peer_id, storage_id));

            let serving = actor.serve(&mut writer, &mut incoming, &activity);
            let end =
                Polled::new(serving, self.observed.polls.clone()).charged_to(&session.usage).await;
            self.observed.counts.ended(end.label());
            if self.observed.counts.is_probe() {
                return;
            }
            info!(
                peer = %session.peer_id, connection = %id, client, close_code = end.code(),
                "disconnected: {end}"
            );
        }
    }

    /// Tells a WebSocket why it is refused, unless too many are being told.
    async fn refuse(
        &self,
        id: SessionId,
        refused: NotJoined,
        writer: &mut Writer,
        incoming: &mut Incoming<'_>,
    ) {
        let NotJoined { peer_id, reason } = refused;
        if let Ok(_permit) = self.refusing.try_acquire() {
            let _counted = self.observed.counts.closing();
            let us = &self.names.peer_id;
            socket::close(writer, incoming, us, &peer_id, id, &reason).await;
        }
    }
}

/// A session's task. The session has left all rooms when this is dropped, for whatever reason.
struct Actor<'a> {
    sessions: &'a Sessions,
    session: Arc<Session>,
    router: Router<'a>,
}

impl<'a> Actor<'a> {
    /// Adds a session to the peers, and closes an older one of the same peer.
    fn join(sessions: &'a Sessions, session: Arc<Session>) -> Self {
        let router = Router::new(sessions, session.clone());
        let actor = Self { sessions, session: session.clone(), router };
        if let Some(older) = sessions.peers.join(&session) {
            older.close(CloseReason::Superseded);
        }
        // What is in effect may have changed since the upgrade.
        sessions.revalidate(&session);
        if sessions.draining.is_cancelled() {
            // The drain may have listed the sessions before this one was among them.
            session.close(CloseReason::Draining);
        }
        actor
    }

    /// Serves the session, and closes its socket. Returns how it ended.
    #[expect(clippy::manual_async_fn, reason = "an async fn has space for its arguments twice")]
    fn serve(
        &mut self,
        writer: &mut Writer,
        incoming: &mut Incoming<'_>,
        activity: &Activity,
    ) -> impl Future<Output = CloseReason> + Send {
        async move {
            let session = self.session.clone();
            let pings = tokio::sync::Notify::new();
            let progress = Progress::default();
            let config = &self.sessions.config;
            let end = tokio::select! {
                end = self.read_all(incoming, &progress) => end,
                end = socket::write_all(&session, writer, &progress, &pings) => end,
                end = socket::watch_liveness(&session, activity, &progress, &pings, config) => end,
            };
            let end = session.outbound.close(end);
            self.report_end(&end);
            let (us, peer_id) = (&self.sessions.names.peer_id, &session.peer_id);
            Box::pin(socket::close(writer, incoming, us, peer_id, session.id, &end)).await;
            end
        }
    }

    /// Counts and logs a session that the relay closes.
    fn report_end(&self, end: &CloseReason) {
        if end.is_ordinary() {
            return;
        }
        let (session, observed) = (&self.session, &self.sessions.observed);
        observed.counts.refused(end.label());
        if let Some(times) = observed.repeats.pass(&session.peer_id, end.label()) {
            warn!(
                peer = %session.peer_id, connection = %session.id, close_code = end.code(), times,
                "closed: {end}"
            );
        }
    }

    #[expect(clippy::manual_async_fn, reason = "an async fn has space for its arguments twice")]
    fn read_all(
        &mut self,
        incoming: &mut Incoming<'_>,
        progress: &Progress,
    ) -> impl Future<Output = CloseReason> + Send {
        async move {
            let mut limit = RateLimit::new();
            loop {
                let Received { frame, truncation } = match incoming.read().await {
                    Ok(ControlFlow::Break(received)) => received,
                    Ok(ControlFlow::Continue(())) => continue,
                    Err(reason) => return reason,
                };
                if self.session.outbound.is_closing() {
                    // Messages are no longer accepted. The writer still says why.
                    return std::future::pending().await;
                }
                progress.is_busy.store(true, Ordering::Relaxed);
                let now = Instant::now();
                let missing = truncation.map_or(0, |truncation| truncation.missing);
                let mut load = Load { messages: 1, bytes: frame.len() as u64 + missing };
                let routed = match truncation {
                    None => Box::pin(self.router.route(frame, &mut load)).await,
                    Some(truncation) => match wire::Truncated::decode(&frame, truncation) {
                        Some(message) => self.router.refuse_truncated(&message),
                        None => Err(incoming.too_large()),
                    },
                };
                if let Err(reason) = routed {
                    return reason;
                }
                let spent = self.session.take_spent();
                let wait = limit.take(load, spent, &self.sessions.config.borrow().limits, now);
                if let Some((wait, limit)) = wait {
                    Box::pin(self.sessions.throttle(&self.session, wait, limit)).await;
                }
                progress.is_busy.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Actor<'_> {
    fn drop(&mut self) {
        self.sessions.peers.leave(&self.session);
        self.router.leave_all();
    }
}
