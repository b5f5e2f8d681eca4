//! Who may do what: sign-in by tokens or JWTs, the rights that it gives, and their end.
//!
//! [`rights`] are what scopes give, [`tokens`] is the file of the relay's own tokens,
//! [`jwt`] tokens that somebody else signs, [`last_use`] when each token was last used. [`Auth`] holds what is in effect:
//! a reload swaps it, and `sync::session` then revalidates every open session.

pub mod jwt;
pub mod last_use;
pub mod rights;
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

/// Where a request comes from, as `http::client` makes it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The address of the client itself; none if it is not known, such as behind a proxy that does not tell it.
    pub address: Option<IpAddr>,
    /// The other end of the connection: the client, or the proxy before it.
    pub peer: Option<IpAddr>,
    /// Client and proxies are all on this machine.
    pub is_local: bool,
}

impl Client {
    /// What the log calls it: its address, or that of the proxy that does not tell it.
    pub fn shown(&self) -> Option<IpAddr> {
        self.address.or(self.peer)
    }
}

/// What somebody who was let in may do, and until when.
#[derive(Clone, Debug)]
pub struct Access {
    /// Who it is.
    pub principal: Principal,
    /// What they may do.
    pub rights: Arc<Rights>,
    /// When that ends.
    pub expires: Option<SystemTime>,
    credential: Credential,
}

/// One for all sessions: they share what is in it.
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
    /// The token, and which key has signed it.
    Jwt(Box<str>, jwt::KeyId),
}

impl fmt::Debug for Credential {
    /// Without the token: what is printed may end in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Token(_) => "a token",
            Self::Jwt(..) => "a JWT",
        })
    }
}

impl Access {
    /// Of whoever comes, in open mode, and of the relay itself.
    pub fn open() -> Self {
        OPEN.clone()
    }

    #[cfg(test)]
    pub(crate) fn of(principal: Principal) -> Self {
        Self { principal, ..Self::open() }
    }

    /// Who pays for what it has stored: who signed in, or an address.
    pub fn account(&self, address: Option<IpAddr>) -> Account {
        match self.credential {
            Credential::None => Account::at(address),
            Credential::Token(_) | Credential::Jwt(..) => Account::named(&self.principal.0),
        }
    }

    /// Whether it is of the same principal, with the same rights.
    pub fn is_same(&self, other: &Self) -> bool {
        self.principal == other.principal && self.rights == other.rights
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Refusal {
    #[error("sign-in is needed: send a token")]
    NoToken,
    #[error("the token is not known here, or not any more")]
    Unknown,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid: {0}")]
    Invalid(String),
    #[error("only clients and pages of the relay's own machine are served: auth.mode is not set")]
    Remote,
}

impl Refusal {
    /// Its name in metrics.
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

/// Why what the config names for sign-in cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum AuthError {
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl AuthError {
    /// The config's key that it is about.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "auth.tokens",
            Self::Keys(_) => "auth.jwt_keys",
        }
    }
}

/// What is in effect.
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
    /// Read what the config names.
    ///
    /// # Errors
    /// The file of tokens or of keys cannot be used.
    pub fn load(auth: &config::Auth) -> Result<Self, AuthError> {
        let mode = match auth.mode {
            AuthMode::Unset => Mode::Unset,
            AuthMode::Open => Mode::Open,
            AuthMode::Token => Mode::Token(tokens::load(&auth.tokens_file())?),
            AuthMode::Jwt => Mode::Jwt(Keys::load(&auth.keys_file(), auth)?),
        };
        Ok(Self { mode, anonymous: Arc::new(auth.anonymous.iter().copied().collect()) })
    }

    fn admit(&self, token: Option<&str>, client: Client) -> Result<Access, Refusal> {
        match (&self.mode, token) {
            (Mode::Unset, _) if !client.is_local => Err(Refusal::Remote),
            (Mode::Unset | Mode::Open, _) => Ok(Access::open()),
            (Mode::Token(_) | Mode::Jwt(_), None) => self.anonymous(),
            (Mode::Token(tokens), Some(token)) => access_of(tokens, &tokens::hash(token)),
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

    /// Ask again for one who was let in before.
    fn admit_again(&self, access: &Access, client: Client) -> Result<Access, Refusal> {
        match (&self.mode, &access.credential) {
            (Mode::Token(tokens), Credential::Token(hash)) => access_of(tokens, hash),
            (Mode::Jwt(_), Credential::Token(_)) => Err(Refusal::Unknown),
            // A signature was seen to be good, and is while its key is here.
            (Mode::Jwt(keys), Credential::Jwt(_, key)) if keys.has(*key) => {
                match access.expires.is_some_and(|end| end <= SystemTime::now()) {
                    true => Err(Refusal::Expired),
                    false => Ok(access.clone()),
                }
            }
            (_, Credential::Jwt(token, _)) => self.admit(Some(token), client),
            (Mode::Unset | Mode::Open, Credential::Token(_)) | (_, Credential::None) => {
                self.admit(None, client)
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

fn access_of(tokens: &Tokens, hash: &str) -> Result<Access, Refusal> {
    let token = tokens.by_hash(hash).ok_or(Refusal::Unknown)?;
    if token.is_over(SystemTime::now()) {
        return Err(Refusal::Expired);
    }
    Ok(Access {
        principal: Principal(format!("token:{}", token.name).into()),
        rights: Arc::new(token.scopes.iter().copied().collect()),
        expires: token.expires,
        credential: Credential::Token(hash.into()),
    })
}

/// Lets in, or not.
pub struct Auth {
    policy: RwLock<Arc<Policy>>,
    last_use: LastUse,
}

impl Auth {
    /// A policy, and where the last use of each token is recorded.
    pub fn new(policy: Policy, last_use: LastUse) -> Self {
        Self { policy: RwLock::new(Arc::new(policy)), last_use }
    }

    /// One that lets everybody in: for the relay itself.
    pub fn open() -> Self {
        Self::new(
            Policy { mode: Mode::Open, anonymous: Arc::default() },
            LastUse::new(Path::new(""), PathBuf::new()),
        )
    }

    fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Put another policy into effect. Sessions that are open have to be asked for again.
    pub fn set(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Let somebody in who shows `token`.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, token: Option<&str>, client: Client) -> Result<Access, Refusal> {
        let access = self.policy().admit(token, client)?;
        self.is_here(&access);
        Ok(access)
    }

    /// Whether one who was let in would be again, and what they may do now.
    ///
    /// # Errors
    /// Why not.
    pub fn admit_again(&self, access: &Access, client: Client) -> Result<Access, Refusal> {
        self.policy().admit_again(access, client)
    }

    /// Note that one who was let in is still here.
    pub fn is_here(&self, access: &Access) {
        if let Credential::Token(hash) = &access.credential {
            self.last_use.note(hash);
        }
    }

    /// Whether a token is asked for at all.
    pub fn asks(&self) -> bool {
        matches!(self.policy().mode, Mode::Token(_) | Mode::Jwt(_))
    }

    /// When each token was last used.
    pub fn last_use(&self) -> &LastUse {
        &self.last_use
    }
}

#[cfg(test)]
mod tests;
