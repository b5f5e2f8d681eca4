//! JSON Web Tokens (RFC 7519): the keys that may sign them, and their verification.

mod header;
mod signatures;

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

// jsonwebtoken: the crate that most services in Rust use.
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, Validation, decode,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations},
};
use ring::signature::ED25519_PUBLIC_KEY_LEN;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tracing::warn;

use self::{header::TokenHeader, signatures::decode_ed25519};
use crate::{
    base::{
        regular_file,
        text::{self, Count},
    },
    config::{self, scopes::Scope},
};

/// The tolerated difference between the clocks of two machines.
const CLOCK_SKEW: Duration = Duration::from_secs(10);
/// The last second of the year 9999, which some issuers use for "never". A present time in
/// milliseconds is far above it.
const END_OF_9999: f64 = 253_402_300_799.0;
/// The largest file of keys, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The longest token, in bytes. The limit of request headers is about twice that.
const MAX_TOKEN: usize = 16 << 10;
/// The name that RFC 9864 gives to EdDSA with this curve, which is the only one that is supported.
const ED25519: &str = "Ed25519";
/// The shortest HS256 secret, in bytes (RFC 7518, 3.2), and RSA modulus, in bits (RFC 7518, 3.3).
const MIN_SECRET: usize = 32;
const MIN_MODULUS: usize = 2048;

/// The keys, and the issuer and audience that a token must have. An empty one is not checked.
#[derive(Clone, Debug)]
pub struct Keys {
    keys: Vec<(KeyId, Key)>,
    issuer: String,
    audience: String,
}

#[derive(Clone, Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Identifies a key with the issuer and audience that its tokens must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId([u8; 32]);

impl KeyId {
    fn of(key: &Key, issuer: &str, audience: &str) -> Self {
        use jsonwebtoken::DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let said = format!("{:?} {issuer:?} {audience:?} ", key.algorithm);
        let hash = Sha256::new_with_prefix(said);
        let hash = match key.key.kind() {
            SecretOrDer(bytes) => hash.chain_update(bytes),
            RsaModulusExponent { n, e } => hash.chain_update(n).chain_update([0]).chain_update(e),
        };
        Self(hash.finalize().into())
    }
}

/// The claims of a verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Its subject.
    pub subject: String,
    /// Its scopes, without those of other services.
    pub scopes: Vec<Scope>,
    /// When it expires.
    pub expires: SystemTime,
    /// The key that has signed it.
    pub key: KeyId,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum KeysError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum BadJwt {
    Expired,
    Invalid(String),
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    sub: String,
    exp: f64,
    #[serde(default)]
    scope: Option<Scopes>,
    #[serde(default)]
    scopes: Option<Scopes>,
}

/// Scopes as a text with spaces (RFC 8693, 4.2), or as a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scopes {
    Text(String),
    List(Vec<String>),
}

impl Scopes {
    fn known(&self) -> Vec<Scope> {
        let known = |text: &str| text.parse().ok();
        match self {
            Self::Text(text) => text.split_ascii_whitespace().filter_map(known).collect(),
            Self::List(list) => list.iter().filter_map(|text| known(text)).collect(),
        }
    }
}

impl Keys {
    /// Reads a file of keys: PEM public keys, one after the other, or a JWKS (RFC 7517).
    ///
    /// # Errors
    /// The file cannot be read, or has no usable key for EdDSA, ES256, RS256 or HS256.
    #[expect(clippy::disallowed_methods, reason = "itself called where it may block")]
    pub fn load(path: &Path, auth: &config::Auth) -> Result<Self, KeysError> {
        let io = |source| KeysError::Io { path: path.to_owned(), source };
        let content = |problem| KeysError::Content { path: path.to_owned(), problem };
        let text = regular_file::read_text(path, MAX_FILE).map_err(io)?;
        signatures::install();
        let (issuer, audience) = (auth.jwt_issuer.clone(), auth.jwt_audience.clone());
        let keys = read(&text).map_err(content)?.into_iter();
        let keys = keys.map(|key| (KeyId::of(&key, &issuer, &audience), key)).collect();
        Ok(Self { keys, issuer, audience })
    }

    /// Whether a key is among these, with the same issuer and audience.
    pub fn contains(&self, key: KeyId) -> bool {
        self.keys.iter().any(|(known, _)| *known == key)
    }

    /// Verifies a token.
    ///
    /// # Errors
    /// No key has signed the token, it has expired, or it is not for this relay.
    pub fn verify(&self, token: &str) -> Result<Claims, BadJwt> {
        let invalid = |why: &str| BadJwt::Invalid(why.to_owned());
        if token.len() > MAX_TOKEN {
            return Err(invalid("it is too long"));
        }
        let header = TokenHeader::read(token).ok_or_else(|| invalid("it is not a JWT"))?;
        if header.requires_extensions() {
            return Err(invalid(
                "its header requires extensions (crit, b64) that the relay does not support",
            ));
        }
        let is_meant = |key: &Key| {
            // The algorithm of the key decides, not what the token claims.
            is_name_of(&header.alg, key.algorithm)
                && (key.id.is_none() || header.kid.is_none() || key.id == header.kid)
        };
        let mut problem = invalid("auth.jwt_keys has no key for it");
        for (id, key) in self.keys.iter().filter(|(_, key)| is_meant(key)) {
            let validation = self.validation(key.algorithm);
            let decoded = if header.alg == ED25519 {
                decode_ed25519::<Fields>(token, &key.key, &validation)
            } else {
                decode(token, &key.key, &validation)
            };
            match decoded {
                Ok(found) => return claims(found.claims, *id),
                Err(error) => {
                    problem = match error.kind() {
                        ErrorKind::ExpiredSignature => return Err(BadJwt::Expired),
                        ErrorKind::InvalidSignature => {
                            invalid("its signature does not match any key in auth.jwt_keys")
                        }
                        ErrorKind::InvalidIssuer => {
                            invalid("its issuer (iss) is not auth.jwt_issuer")
                        }
                        ErrorKind::InvalidAudience => {
                            invalid("its audience (aud) is not auth.jwt_audience")
                        }
                        ErrorKind::ImmatureSignature => invalid("it is not valid yet"),
                        ErrorKind::MissingRequiredClaim(claim) => {
                            BadJwt::Invalid(format!("it has no {claim}"))
                        }
                        _ => invalid("it is not a JWT with exp and sub"),
                    };
                }
            }
        }
        Err(problem)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = CLOCK_SKEW.as_secs();
        validation.validate_nbf = true;
        let mut required = HashSet::from(["exp".to_owned(), "sub".to_owned()]);
        // A token without a claim passes unless the claim is required.
        validation.validate_aud = !self.audience.is_empty();
        if !self.audience.is_empty() {
            validation.set_audience(&[&self.audience]);
            required.insert("aud".to_owned());
        }
        if !self.issuer.is_empty() {
            validation.set_issuer(&[&self.issuer]);
            required.insert("iss".to_owned());
        }
        validation.required_spec_claims = required;
        validation
    }
}

fn claims(fields: Fields, key: KeyId) -> Result<Claims, BadJwt> {
    if fields.sub.is_empty() || fields.sub.len() > 1024 || fields.sub.contains(text::is_invisible) {
        return Err(BadJwt::Invalid(
            "its subject (sub) is empty, too long, or contains control or format characters"
                .to_owned(),
        ));
    }
    if fields.exp > END_OF_9999 {
        let found = fields.exp;
        return Err(BadJwt::Invalid(format!(
            "its exp, {found:e}, is after the year 9999; expected seconds since 1970, not \
             milliseconds"
        )));
    }
    // NumericDate may have a fraction (RFC 7519, 2). No later time can be written in RFC 3339.
    let last = END_OF_9999 - CLOCK_SKEW.as_secs_f64();
    let seconds = Duration::try_from_secs_f64(fields.exp.clamp(0.0, last)).unwrap_or_default();
    let scopes = [fields.scope, fields.scopes];
    let scopes = scopes.iter().flatten().flat_map(Scopes::known).collect();
    let expires = SystemTime::UNIX_EPOCH + seconds + CLOCK_SKEW;
    Ok(Claims { subject: fields.sub, scopes, expires, key })
}

fn read(text: &str) -> Result<Vec<Key>, String> {
    let keys = if text.trim_start().starts_with('{') { read_jwks(text)? } else { read_pem(text)? };
    if keys.is_empty() {
        return Err("contains no key; expected PEM public keys, or a JWKS".to_owned());
    }
    Ok(keys)
}

fn read_jwks(text: &str) -> Result<Vec<Key>, String> {
    // The text itself is left out, since it may hold a secret.
    let set: JwkSet = serde_json::from_str(text).map_err(|error| {
        format!("is not a valid JWKS: see line {}, column {}", error.line(), error.column())
    })?;
    let names: NamedSet = serde_json::from_str(text).unwrap_or_default();
    let (mut keys, mut weak) = (Vec::new(), Vec::new());
    for (index, jwk) in set.keys.iter().enumerate() {
        let name = jwk.common.key_id.clone().unwrap_or_else(|| format!("number {}", index + 1));
        let problem = |why: &str| format!("the key {name} {why}");
        // Key sets of identity providers hold keys for other uses too.
        if jwk
            .common
            .public_key_use
            .as_ref()
            .is_some_and(|u| *u != jsonwebtoken::jwk::PublicKeyUse::Signature)
            || jwk
                .common
                .key_operations
                .as_ref()
                .is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
        {
            continue;
        }
        let named = names.keys.get(index).and_then(|key| key.alg.as_deref());
        let Some(algorithm) = algorithm_of(jwk, named) else { continue };
        let key = DecodingKey::from_jwk(jwk).map_err(|error| problem(&error.to_string()))?;
        // An identity provider owns the set, so a weak key must not disable the others.
        match check_strength(&key) {
            Ok(()) => keys.push(Key { id: jwk.common.key_id.clone(), algorithm, key }),
            Err(why) => {
                warn!("auth.jwt_keys: {}", problem(&format!("{why}; ignoring this key")));
                weak.push(problem(&why));
            }
        }
    }
    if keys.is_empty() && !set.keys.is_empty() {
        let why = weak.into_iter().next();
        return Err(
            why.unwrap_or_else(|| "contains no key for EdDSA, ES256, RS256 or HS256".to_owned())
        );
    }
    Ok(keys)
}

/// The algorithm names in a JWKS as they are written. jsonwebtoken does not know all of them.
#[derive(Default, Deserialize)]
struct NamedSet {
    keys: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    alg: Option<String>,
}

/// Returns the algorithm of a key, whose name in the set is `named`. Returns `None` if it is not
/// supported or does not fit the key.
fn algorithm_of(jwk: &Jwk, named: Option<&str>) -> Option<Algorithm> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return None,
    };
    named.is_none_or(|named| is_name_of(named, algorithm)).then_some(algorithm)
}

fn is_name_of(name: &str, algorithm: Algorithm) -> bool {
    match name {
        ED25519 => algorithm == Algorithm::EdDSA,
        name => name == format!("{algorithm:?}"),
    }
}

fn read_pem(text: &str) -> Result<Vec<Key>, String> {
    const END: &str = "-----END";
    let mut keys = Vec::new();
    for block in text.split_inclusive(END) {
        let Some(start) = block.find("-----BEGIN ") else { continue };
        let block = block.get(start..).unwrap_or_default();
        let label = block.strip_prefix("-----BEGIN ").and_then(|rest| rest.split("-----").next());
        let label = label.unwrap_or_default();
        if label.contains("PRIVATE") {
            return Err(format!(
                "contains a {label}; expected public keys, as `openssl pkey -pubout` writes them"
            ));
        }
        if !label.ends_with("PUBLIC KEY") {
            return Err(format!("contains a {label}; expected a PUBLIC KEY"));
        }
        let pem = format!("{block} {label}-----\n");
        let (algorithm, key) = [
            (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem.as_bytes())),
            (Algorithm::ES256, DecodingKey::from_ec_pem(pem.as_bytes())),
            (Algorithm::RS256, DecodingKey::from_rsa_pem(pem.as_bytes())),
        ]
        .into_iter()
        .find_map(|(algorithm, key)| Some((algorithm, key.ok()?)))
        .ok_or_else(|| {
            format!("key number {} is not an Ed25519, P-256 or RSA public key", keys.len() + 1)
        })?;
        check_strength(&key).map_err(|why| format!("key number {}: {why}", keys.len() + 1))?;
        keys.push(Key { id: None, algorithm, key });
    }
    Ok(keys)
}

fn check_strength(key: &DecodingKey) -> Result<(), String> {
    use jsonwebtoken::DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
    match (key.family(), key.kind()) {
        (AlgorithmFamily::Hmac, SecretOrDer(secret)) if secret.len() < MIN_SECRET => {
            let found = Count(secret.len(), "byte");
            Err(format!("is a secret of {found}; expected {MIN_SECRET} or more"))
        }
        (AlgorithmFamily::Rsa, RsaModulusExponent { n, .. }) if bits(n) < MIN_MODULUS => {
            Err("is an RSA key of less than 2,048 bits".to_owned())
        }
        (AlgorithmFamily::Rsa, SecretOrDer(der)) if bits(modulus(der)) < MIN_MODULUS => {
            Err("is an RSA key of less than 2,048 bits".to_owned())
        }
        (AlgorithmFamily::Ed, SecretOrDer(key)) if key.len() != ED25519_PUBLIC_KEY_LEN => {
            Err("is not an Ed25519 key".to_owned())
        }
        // An uncompressed point of P-256.
        (AlgorithmFamily::Ec, SecretOrDer(point)) if point.len() != 65 => {
            Err("is not a P-256 key".to_owned())
        }
        _ => Ok(()),
    }
}

/// Returns the length of a big-endian number in bits.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let first = number.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    (number.len() - zeros) * 8 - first
}

/// Returns the modulus of an RSA public key in DER (RFC 8017, A.1.1: a sequence of two integers).
/// Empty if there is none.
fn modulus(der: &[u8]) -> &[u8] {
    content(der).and_then(content).unwrap_or_default()
}

/// Returns the content of the first element in DER.
fn content(der: &[u8]) -> Option<&[u8]> {
    match der {
        [_, length, rest @ ..] if length & 0x80 == 0 => rest.get(..usize::from(*length)),
        [_, 0x81, length, rest @ ..] => rest.get(..usize::from(*length)),
        [_, 0x82, high, low, rest @ ..] => {
            rest.get(..usize::from(u16::from_be_bytes([*high, *low])))
        }
        _ => None,
    }
}
