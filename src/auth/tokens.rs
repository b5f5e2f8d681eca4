//! The file of tokens: their hashes, names, scopes and expiry times.
//!
//! A token is 32 random bytes, which cannot be guessed, so a plain SHA-256 protects it. The file is
//! TOML, so that an operator can read and edit it.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    base::{document_id::DocumentId, folder::Folder, hex::hex, regular_file},
    config::{line_of, scopes::Scope},
};

/// The prefix of every token, by which scanners for leaked secrets recognise one.
const PREFIX: &str = "tonk_";
const HEADER: &str = "# Tokens of tonk-relay, hashed. `tonk-relay token add` and `remove` write \
                      this file;\n\
                      # `tonk-relay reload` puts it into effect.\n";
/// The largest file of tokens, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// The longest lifetime of a token that expires: 100 years.
pub const MAX_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A token as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The name of its holder. Tokens of the same name have the same principal.
    pub name: String,
    /// The SHA-256 of the token, in hexadecimal.
    pub sha256: String,
    /// Its scopes.
    pub scopes: Vec<Scope>,
    /// When it was created.
    #[serde(with = "super::timestamp")]
    pub created: SystemTime,
    /// When it expires, if it does.
    #[serde(
        serialize_with = "super::timestamp::serialize_optional",
        deserialize_with = "super::timestamp::deserialize_optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub expires: Option<SystemTime>,
}

impl Token {
    /// Returns an id that distinguishes it from others of its name: the beginning of its hash.
    pub fn id(&self) -> &str {
        self.sha256.get(..8).unwrap_or(&self.sha256)
    }

    /// Whether it has expired.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// Generates a token. Returns its secret, and the form that is stored. A lifetime is cut to
/// [`MAX_LIFETIME`].
pub fn generate(name: &str, scopes: Vec<Scope>, lifetime: Option<Duration>) -> (String, Token) {
    let random = [DocumentId::random(), DocumentId::random()];
    let bytes: Vec<u8> = random.iter().flat_map(DocumentId::as_bytes).copied().collect();
    let secret = format!("{PREFIX}{}", bs58::encode(bytes).with_check().into_string());
    let created = whole_seconds(SystemTime::now());
    let expires = lifetime.map(|lifetime| created + lifetime.min(MAX_LIFETIME));
    let token = Token { name: name.to_owned(), sha256: hash(&secret), scopes, created, expires };
    (secret, token)
}

fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Returns the hash under which a token is stored.
pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

/// Tokens by their hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(HashMap<String, Token>);

impl Tokens {
    /// The tokens with these JSON texts. Also returns how many could not be read: a newer relay may
    /// have written them.
    pub fn of_json<'a>(texts: impl IntoIterator<Item = &'a String>) -> (Self, usize) {
        let (mut tokens, mut unknown) = (HashMap::new(), 0);
        for text in texts {
            match serde_json::from_str::<Token>(text) {
                Ok(token) => _ = tokens.insert(token.sha256.clone(), token),
                Err(_) => unknown += 1,
            }
        }
        (Self(tokens), unknown)
    }

    /// Returns the token with this secret.
    pub fn find(&self, secret: &str) -> Option<&Token> {
        self.by_hash(&hash(secret))
    }

    /// Returns the token with this hash.
    pub fn by_hash(&self, hash: &str) -> Option<&Token> {
        self.0.get(hash)
    }
}

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum TokensError {
    #[error(
        "{}: {source}; `tonk-relay token add NAME --scope sync:write` creates it",
        path.display()
    )]
    Missing { path: PathBuf, source: io::Error },
    #[error(
        "{}: {source}; it must belong to root and the group tonk-relay, with mode 0640",
        path.display()
    )]
    Denied { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
}

impl TokensError {
    /// The error of an operation on the file of tokens.
    fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path, source },
            io::ErrorKind::PermissionDenied => Self::Denied { path, source },
            _ => Self::Io { path, source },
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Token>,
}

/// Reads a file of tokens, in its order.
///
/// # Errors
/// The file cannot be read, is not valid, or has a token twice.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block, or in a command")]
pub fn read(path: &Path) -> Result<Vec<Token>, TokensError> {
    let content = |problem| TokensError::Content { path: path.to_owned(), problem };
    let text =
        regular_file::read_text(path, MAX_FILE).map_err(|error| TokensError::io(path, error))?;
    let file: File = toml::from_str(&text).map_err(|error: toml::de::Error| {
        // The line itself is left out, since it may hold a secret.
        let line = line_of(&text, error.span().map_or(0, |span| span.start));
        content(format!(
            "is not a file of tokens as `tonk-relay token add` writes it: line {line}: {}",
            error.message()
        ))
    })?;
    let mut seen = std::collections::HashSet::new();
    for token in &file.token {
        let is_hash = token.sha256.len() == 64
            && token.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_hash {
            let problem = format!(
                "the sha256 of {:?} is not a SHA-256; expected 64 hexadecimal digits in lower case",
                token.name
            );
            return Err(content(problem));
        }
        if !seen.insert(&token.sha256) {
            return Err(content(format!(
                "the token {} of {:?} occurs twice; remove one",
                token.id(),
                token.name
            )));
        }
    }
    Ok(file.token)
}

/// Reads a file of tokens, by their hashes.
///
/// # Errors
/// As [`read`].
pub fn load(path: &Path) -> Result<Tokens, TokensError> {
    let tokens = read(path)?;
    Ok(Tokens(tokens.into_iter().map(|token| (token.sha256.clone(), token)).collect()))
}

/// Writes a file of tokens atomically. A new file is readable by the group of the file `like`.
///
/// # Errors
/// The file cannot be written.
#[expect(clippy::disallowed_methods, reason = "for a command")]
pub fn write(path: &Path, tokens: Vec<Token>, like: &Path) -> Result<(), TokensError> {
    let io = |source| TokensError::io(path, source);
    let text = toml::to_string(&File { token: tokens }).map_err(|error| TokensError::Content {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    // If it is a link, its target is replaced.
    let (folder, name) = Folder::open_parent(path).map_err(io)?;
    let like = match folder.stat(&name).map_err(io)? {
        Some(found) => Some(found),
        None => rustix::fs::stat(like).ok().map(|mut like| {
            (like.st_mode, like.st_uid) = (0o640, 0);
            like
        }),
    };
    let text = format!("{HEADER}\n{text}");
    folder.write(&name, text.as_bytes(), 0o640, like.as_ref()).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn tokens_are_read_back_and_their_secrets_are_not_stored() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let lifetime = Some(Duration::from_secs(3600));
        let (secret, first) = generate("phone", vec![Scope::Write(None), Scope::Upload], lifetime);
        let (_, second) = generate("phone", vec![Scope::Read(Some(DocumentId::random()))], None);
        let both = vec![first.clone(), second];
        write(&path, both.clone(), folder.path()).expect("written");
        assert_eq!(read(&path).expect("read"), both);
        assert!(!fs::read_to_string(&path).expect("read").contains(&secret));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o640);
        let tokens = load(&path).expect("loaded");
        assert_eq!(tokens.find(&secret), Some(&first));
        assert_eq!(tokens.find("tonk_other"), None);
        assert!(!first.is_expired(SystemTime::now()));
        assert!(first.is_expired(SystemTime::now() + Duration::from_secs(3601)));
    }

    #[test]
    fn an_invalid_file_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let problem = |text: &str| {
            fs::write(&path, text).expect("written");
            read(&path).expect_err(text).to_string()
        };
        let token = |extra: &str| {
            let hash = "0".repeat(64);
            format!(
                "[[token]]\nname = \"a\"\nsha256 = \"{hash}\"\nscopes = []\n\
                 created = \"2026-01-01T00:00:00Z\"\n{extra}"
            )
        };
        assert!(problem("[[token]]\nname = 1\n").contains("line 2"));
        assert!(problem(&token("expires = \"tomorrow\"\n")).contains("is not a time"));
        assert!(problem(&token("").replace("[]", "[\"all\"]")).contains("is not a scope"));
        assert!(problem(&token("secret = \"x\"\n")).contains("unknown field"));
        assert!(problem(&(token("") + &token(""))).contains("occurs twice"));
        assert!(problem(&token("").replace("00000", "XXXXX")).contains("64 hexadecimal digits"));
        let missing = read(&folder.path().join("none")).expect_err("none").to_string();
        assert!(missing.contains("token add"), "{missing}");
        let not_a_file = read(folder.path()).expect_err("a folder").to_string();
        assert!(not_a_file.contains("not a regular file"), "{not_a_file}");
    }
}
