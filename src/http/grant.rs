//! The right with which a request was admitted. Long requests check it again: an upload before it
//! is stored, a response body while it is sent.

use super::{error::HttpError, state::App};
use crate::{
    auth::{Access, Auth, Client, rights::Rights},
    limits::turns::Payer,
};
use axum::{Error, body::Body};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::IntCounterVec;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tracing::debug;

/// How often a right is checked again while bytes are transferred. After a right is revoked, no
/// more is sent than in this time and what is in the buffers of the socket.
const RECHECK_EVERY: Duration = Duration::from_secs(1);
/// The largest part of a body between two checks, in bytes.
const MAX_FRAME: usize = 64 << 10;

/// What a route requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names are those of the scopes")]
pub enum Need {
    /// That the client is admitted, whatever its scopes are.
    Admission,
    Upload,
    Download,
    Admin,
}

impl Need {
    /// Checks that `rights` include what the route requires.
    ///
    /// # Errors
    /// They do not. The error names the missing scope.
    pub fn check(self, rights: &Rights) -> Result<(), HttpError> {
        let (is_given, scope) = match self {
            Self::Admission => return Ok(()),
            Self::Upload => (rights.upload, "upload"),
            Self::Download => (rights.download, "download"),
            Self::Admin => (rights.admin, "admin"),
        };
        if is_given { Ok(()) } else { Err(HttpError::NoScope(scope)) }
    }
}

/// The right of one request, which may end before the request does.
#[derive(Clone)]
pub struct Grant {
    auth: Arc<Auth>,
    sign_ins: IntCounterVec,
    client: Client,
    need: Need,
    access: Access,
    checked_at: Instant,
}

impl Grant {
    /// Admits a request that has what its route requires.
    ///
    /// # Errors
    /// The request does not have it.
    pub fn new(app: &App, client: Client, need: Need, access: Access) -> Result<Self, HttpError> {
        need.check(&access.rights)?;
        let (auth, sign_ins) = (app.auth.clone(), app.metrics.sessions.sign_ins.clone());
        Ok(Self { auth, sign_ins, client, need, access, checked_at: Instant::now() })
    }

    /// Returns what the request could do when it was last checked.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Returns the payer for the work of the request. All requests without a sign-in or a known
    /// address have one payer.
    pub fn payer(&self) -> Payer {
        Payer::Account(self.access.account(self.client.address))
    }

    /// Returns the client of the request.
    pub fn client(&self) -> Client {
        self.client
    }

    /// Checks the sign-in and the right again. Returns what the request may do now.
    ///
    /// # Errors
    /// Its sign-in or its right has ended.
    pub fn renew(&mut self) -> Result<&Access, HttpError> {
        self.checked_at = Instant::now();
        let renewed = self.auth.admit_again(&self.access, self.client);
        self.access = renewed.map_err(|refusal| {
            self.sign_ins.with_label_values(&[refusal.label()]).inc();
            HttpError::SignIn(refusal)
        })?;
        self.need.check(&self.access.rights)?;
        Ok(&self.access)
    }

    /// Calls [`Self::renew`], at most once a second.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn check(&mut self) -> Result<(), HttpError> {
        match self.checked_at.elapsed() >= RECHECK_EVERY {
            true => self.renew().map(drop),
            false => Ok(()),
        }
    }

    /// Wraps a response body, which is cut off when the right ends.
    pub fn guard(self, body: Body) -> Body {
        Body::new(Guarded { body, grant: self, rest: Bytes::new() })
    }
}

struct Guarded {
    body: Body,
    grant: Grant,
    /// The rest of a large frame.
    rest: Bytes,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Err(ended) = self.grant.check() {
            debug!("cutting off a download: {ended}");
            return Poll::Ready(Some(Err(Error::new(ended))));
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let most = self.rest.len().min(MAX_FRAME);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(most)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(left.lower() + rest);
        if let Some(upper) = left.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
