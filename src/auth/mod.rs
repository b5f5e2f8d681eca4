//! Who may do what: sign-in by tokens or JWTs, the rights that it gives, and their end.
//!
//! [`Auth`] decides with the [`Policy`] in effect. A reload swaps the policy, and `sync::session`
//! then checks every open session again.
//!
//! | to find | look in |
//! |---|---|
//! | which rights a scope gives | [`rights`] |
//! | whether a session may write a document now | `may_write` in `sync::session` |
//! | the file of tokens that the relay has issued | [`tokens`] |
//! | tokens that an identity provider signs, and when they expire | [`jwt`] |
//! | how a session ends when its sign-in does | `sync::session::revalidate` |
//! | when each token was last used | [`last_use`] |

pub mod jwt;
pub mod last_use;
pub mod rights;
mod timestamp;
pub mod tokens;

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, PoisonError, RwLock},
    time::SystemTime,
};

use self::{
    jwt::{BadJwt, Keys, KeysError},
    last_use::LastUse,
    rights::Rights,
    tokens::{Tokens, TokensError},
};
use crate::{
    base::principal::Principal,
    config::{self, AuthMode},
    limits::Account,
};

/// The client of a request, as `http::client` determines it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The address of the client, unless a proxy does not report it.
    pub address: Option<IpAddr>,
    /// The other end of the connection: the client, or the proxy in front of it.
    pub peer: Option<IpAddr>,
    /// Whether the client and all proxies are on this machine.
    pub is_local: bool,
}

impl Client {
    /// Returns the address to log: the client's, or that of the proxy if the client's is unknown.
    pub fn shown(&self) -> Option<IpAddr> {
        self.address.or(self.peer)
    }
}

/// What an admitted client may do, and until when.
#[derive(Clone, Debug)]
pub struct Access {
    /// Its principal.
    pub principal: Principal,
    /// Its rights.
    pub rights: Arc<Rights>,
    /// When its sign-in expires.
    pub expires: Option<SystemTime>,
    credential: Credential,
}

/// The access of every client that has not signed in: all sessions share one.
static OPEN: LazyLock<Access> = LazyLock::new(|| Access {
    principal: Principal::anybody(),
    rights: Arc::new(Rights::all()),
    expires: None,
    credential: Credential::None,
});

#[derive(Clone)]
enum Credential {
    None,
    /// A token's hash.
    Token(Box<str>),
    /// The token, and the key that has signed it.
    Jwt(Box<str>, jwt::KeyId),
}

impl fmt::Debug for Credential {
    /// Leaves the token out, since the text may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Token(_) => "a token",
            Self::Jwt(..) => "a JWT",
        })
    }
}

impl Access {
    /// Returns the access of every client in open mode, and of the relay itself.
    pub fn open() -> Self {
        OPEN.clone()
    }

    #[cfg(test)]
    pub(crate) fn of(principal: Principal) -> Self {
        Self { principal, ..Self::open() }
    }

    /// Returns whose quota it uses: that of the principal that has signed in, or of `address`.
    pub fn account(&self, address: Option<IpAddr>) -> Account {
        match self.credential {
            Credential::None => Account::at(address),
            Credential::Token(_) | Credential::Jwt(..) => Account::named(&self.principal.0),
        }
    }

    /// Whether it has the same principal and rights.
    pub fn is_same(&self, other: &Self) -> bool {
        self.principal == other.principal && self.rights == other.rights
    }
}

/// Why a client is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Refusal {
    #[error("sign-in is required: send a token")]
    NoToken,
    #[error("unknown or revoked token")]
    Unknown,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid: {0}")]
    Invalid(String),
    #[error(
        "auth.mode is not set, so only clients and pages on the relay's own machine are served"
    )]
    Remote,
}

impl Refusal {
    /// Returns its label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Unknown => "unknown_token",
            Self::Expired => "expired_token",
            Self::Invalid(_) => "invalid_token",
            Self::Remote => "not_local",
        }
    }
}

/// Why the tokens or keys that the config names cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum AuthError {
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl AuthError {
    /// Returns the key of the config that names them.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "auth.tokens",
            Self::Keys(_) => "auth.jwt_keys",
        }
    }
}

/// Decides who is admitted, by one config and its file of tokens or keys.
#[derive(Debug)]
pub struct Policy {
    mode: Mode,
    anonymous: Arc<Rights>,
}

#[derive(Debug)]
enum Mode {
    Unset,
    Open,
    Token(Tokens),
    Jwt(Keys),
}

impl Policy {
    /// Reads the tokens or keys that the config names. The file of tokens need not exist if there
    /// are tokens that relays share.
    ///
    /// # Errors
    /// The file of tokens or of keys cannot be used.
    pub fn load(auth: &config::Auth, has_shared: bool) -> Result<Self, AuthError> {
        let mode = match auth.mode {
            AuthMode::Unset => Mode::Unset,
            AuthMode::Open => Mode::Open,
            AuthMode::Token => Mode::Token(match tokens::load(&auth.tokens_file()) {
                Err(TokensError::Missing { .. }) if has_shared => Tokens::default(),
                loaded => loaded?,
            }),
            AuthMode::Jwt => Mode::Jwt(Keys::load(&auth.keys_file(), auth)?),
        };
        Ok(Self { mode, anonymous: Arc::new(auth.anonymous.iter().copied().collect()) })
    }

    fn admit(
        &self,
        shared: &Tokens,
        token: Option<&str>,
        client: Client,
    ) -> Result<Access, Refusal> {
        match (&self.mode, token) {
            (Mode::Unset, _) if !client.is_local => Err(Refusal::Remote),
            (Mode::Unset | Mode::Open, _) => Ok(Access::open()),
            (Mode::Token(_) | Mode::Jwt(_), None) => self.anonymous(),
            (Mode::Token(own), Some(token)) => access_of([own, shared], &tokens::hash(token)),
            (Mode::Jwt(keys), Some(token)) => {
                let claims = keys.verify(token).map_err(|bad| match bad {
                    BadJwt::Expired => Refusal::Expired,
                    BadJwt::Invalid(why) => Refusal::Invalid(why),
                })?;
                Ok(Access {
                    principal: Principal(format!("jwt:{}", claims.subject).into()),
                    rights: Arc::new(claims.scopes.into_iter().collect()),
                    expires: Some(claims.expires),
                    credential: Credential::Jwt(token.into(), claims.key),
                })
            }
        }
    }

    /// Checks again a client that was admitted before.
    fn admit_again(
        &self,
        shared: &Tokens,
        access: &Access,
        client: Client,
    ) -> Result<Access, Refusal> {
        match (&self.mode, &access.credential) {
            (Mode::Token(own), Credential::Token(hash)) => access_of([own, shared], hash),
            (Mode::Jwt(_), Credential::Token(_)) => Err(Refusal::Unknown),
            // The signature was verified before, and stays valid while the key is in use.
            (Mode::Jwt(keys), Credential::Jwt(_, key)) if keys.contains(*key) => {
                match access.expires.is_some_and(|end| end <= SystemTime::now()) {
                    true => Err(Refusal::Expired),
                    false => Ok(access.clone()),
                }
            }
            (_, Credential::Jwt(token, _)) => self.admit(shared, Some(token), client),
            (Mode::Unset | Mode::Open, Credential::Token(_)) | (_, Credential::None) => {
                self.admit(shared, None, client)
            }
        }
    }

    fn anonymous(&self) -> Result<Access, Refusal> {
        if *self.anonymous == Rights::default() {
            return Err(Refusal::NoToken);
        }
        Ok(Access { rights: self.anonymous.clone(), ..Access::open() })
    }
}

fn access_of(tokens: [&Tokens; 2], hash: &str) -> Result<Access, Refusal> {
    let token = tokens.iter().find_map(|tokens| tokens.by_hash(hash)).ok_or(Refusal::Unknown)?;
    if token.is_expired(SystemTime::now()) {
        return Err(Refusal::Expired);
    }
    Ok(Access {
        principal: Principal(format!("token:{}", token.name).into()),
        rights: Arc::new(token.scopes.iter().copied().collect()),
        expires: token.expires,
        credential: Credential::Token(hash.into()),
    })
}

/// The policy in effect.
pub struct Auth {
    policy: RwLock<Arc<Policy>>,
    /// The tokens that all relays share.
    shared: RwLock<Arc<Tokens>>,
    last_use: LastUse,
}

impl Auth {
    /// Returns one that begins with `policy` and records uses of tokens in `last_use`.
    pub fn new(policy: Policy, last_use: LastUse) -> Self {
        Self { policy: RwLock::new(Arc::new(policy)), shared: RwLock::default(), last_use }
    }

    /// Returns one that admits everyone, for connections of the relay itself.
    pub fn open() -> Self {
        Self::new(
            Policy { mode: Mode::Open, anonymous: Arc::default() },
            LastUse::new(Path::new(""), PathBuf::new()),
        )
    }

    fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another policy into effect. The caller has to check open sessions again.
    pub fn set(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    fn shared(&self) -> Arc<Tokens> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other shared tokens into effect. The caller has to check open sessions again.
    pub fn set_shared(&self, tokens: Tokens) {
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
    }

    /// Admits a client that shows `token`.
    ///
    /// # Errors
    /// The client is refused.
    pub fn admit(&self, token: Option<&str>, client: Client) -> Result<Access, Refusal> {
        let access = self.policy().admit(&self.shared(), token, client)?;
        self.record_use(&access);
        Ok(access)
    }

    /// Checks again a client that was admitted before. Returns what it may do now.
    ///
    /// # Errors
    /// The client is not admitted any longer.
    pub fn admit_again(&self, access: &Access, client: Client) -> Result<Access, Refusal> {
        self.policy().admit_again(&self.shared(), access, client)
    }

    /// Records that the token of an admitted client is in use.
    pub fn record_use(&self, access: &Access) {
        if let Credential::Token(hash) = &access.credential {
            self.last_use.record(hash);
        }
    }

    /// Whether clients sign in with tokens or JWTs.
    pub fn requires_sign_in(&self) -> bool {
        matches!(self.policy().mode, Mode::Token(_) | Mode::Jwt(_))
    }

    /// Returns the record of when each token was last used.
    pub fn last_use(&self) -> &LastUse {
        &self.last_use
    }
}

#[cfg(test)]
mod tests;
