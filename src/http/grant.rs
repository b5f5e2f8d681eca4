//! The right that a request was let in with. What takes long asks again: an upload before it is stored, a response body
//! while it is sent.

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

/// How often a right is asked for again while bytes move. A revoked right ends within this and what is already in the
/// socket's buffers.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The largest part of a body that is handed on at a time.
const PART: usize = 64 << 10;

/// What a route asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the scopes")]
pub enum Need {
    Upload,
    Download,
    Admin,
}

impl Need {
    /// Checks that `rights` have what the route asks for.
    ///
    /// # Errors
    /// They do not; it names the scope.
    pub fn check(self, rights: &Rights) -> Result<(), HttpError> {
        let (is_given, scope) = match self {
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
    asked: Instant,
}

impl Grant {
    /// Lets a request in that has what its route needs.
    ///
    /// # Errors
    /// It does not.
    pub fn new(app: &App, client: Client, need: Need, access: Access) -> Result<Self, HttpError> {
        need.check(&access.rights)?;
        let (auth, sign_ins) = (app.auth.clone(), app.metrics.sessions.sign_ins.clone());
        Ok(Self { auth, sign_ins, client, need, access, asked: Instant::now() })
    }

    /// What the request may do, as was last asked.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Who takes places for what the request costs. All for whom neither a sign-in nor an address
    /// is known are one.
    pub fn payer(&self) -> Payer {
        Payer::Account(self.access.account(self.client.address))
    }

    /// Where the request comes from.
    pub fn client(&self) -> Client {
        self.client
    }

    /// Asks what the request may do now.
    ///
    /// # Errors
    /// Its sign-in or its right has ended.
    pub fn renew(&mut self) -> Result<&Access, HttpError> {
        self.asked = Instant::now();
        let renewed = self.auth.admit_again(&self.access, self.client);
        self.access = renewed.map_err(|refusal| {
            self.sign_ins.with_label_values(&[refusal.label()]).inc();
            HttpError::SignIn(refusal)
        })?;
        self.need.check(&self.access.rights)?;
        Ok(&self.access)
    }

    /// [`Self::renew`], at most once a second.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn check(&mut self) -> Result<(), HttpError> {
        match self.asked.elapsed() >= ASK_AGAIN {
            true => self.renew().map(drop),
            false => Ok(()),
        }
    }

    /// A response body that is cut off when the right ends.
    pub fn guard(self, body: Body) -> Body {
        Body::new(Guarded { body, grant: self, rest: Bytes::new() })
    }
}

struct Guarded {
    body: Body,
    grant: Grant,
    /// What is left of a large frame.
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
            debug!("a download is cut off: {ended}");
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
        let most = self.rest.len().min(PART);
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
