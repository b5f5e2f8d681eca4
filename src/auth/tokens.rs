//! The file of tokens: hashed, with names, scopes and expiries.
//!
//! A token is 32 random bytes, so that a plain SHA-256 of it tells nothing: there is nothing to guess. The file
//! is TOML, for an operator to read and to edit.

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
    config::{load::line_of, scopes::Scope},
};

/// What every token begins with, so that scanners for leaked secrets know one.
const PREFIX: &str = "tonk_";
const HEADER: &str = "# Tokens of tonk-relay, hashed. `tonk-relay token add` and `remove` write this file;\n\
                      # `tonk-relay reload` puts it into effect.\n";
/// The largest file that is read.
const MAX_FILE: u64 = 16 << 20;
/// The longest life of a token that ends: a century.
pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A token as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Who has it. Several tokens may have one name: they are one principal's.
    pub name: String,
    /// The SHA-256 of the token, in hexadecimal.
    pub sha256: String,
    /// What it is for.
    pub scopes: Vec<Scope>,
    /// When it was made.
    #[serde(with = "instant")]
    pub created: SystemTime,
    /// When it ends; none for one that does not.
    #[serde(with = "optional_instant", default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<SystemTime>,
}

impl Token {
    /// What tells it from others of its name: the beginning of its hash.
    pub fn id(&self) -> &str {
        self.sha256.get(..8).unwrap_or(&self.sha256)
    }

    /// Whether it has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// A new token, and how it is stored. It lives at most [`LONGEST`].
pub fn make(name: &str, scopes: Vec<Scope>, lives: Option<Duration>) -> (String, Token) {
    let random = [DocumentId::random(), DocumentId::random()];
    let bytes: Vec<u8> = random.iter().flat_map(DocumentId::as_bytes).copied().collect();
    let secret = format!("{PREFIX}{}", bs58::encode(bytes).with_check().into_string());
    let created = whole_seconds(SystemTime::now());
    let expires = lives.map(|lives| created + lives.min(LONGEST));
    let token = Token { name: name.to_owned(), sha256: hash(&secret), scopes, created, expires };
    (secret, token)
}

fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The hash under which a token is stored.
pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

/// Tokens by their hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(HashMap<String, Token>);

impl Tokens {
    /// The token of that text.
    pub fn find(&self, secret: &str) -> Option<&Token> {
        self.by_hash(&hash(secret))
    }

    /// The token of that hash.
    pub fn by_hash(&self, hash: &str) -> Option<&Token> {
        self.0.get(hash)
    }
}

/// What is wrong with a file of tokens.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum TokensError {
    #[error("{}: {source}{}", path.display(), hint(source))]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; `tonk-relay token add NAME --scope sync:write` makes it",
        io::ErrorKind::PermissionDenied => {
            "; it belongs to root and the group tonk-relay, with mode 0640"
        }
        _ => "",
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Token>,
}

/// Read a file of tokens, in its order.
///
/// # Errors
/// It cannot be read, is no TOML of tokens, or has one of them twice.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block, or in a command")]
pub fn read(path: &Path) -> Result<Vec<Token>, TokensError> {
    let io = |source| TokensError::Io { path: path.to_owned(), source };
    let content = |problem| TokensError::Content { path: path.to_owned(), problem };
    let text = regular_file::read_text(path, MAX_FILE).map_err(io)?;
    let file: File = toml::from_str(&text).map_err(|error: toml::de::Error| {
        // Without the line itself, which may hold what nobody else is to see.
        let line = line_of(&text, error.span().map_or(0, |span| span.start));
        content(format!("line {line}: {}", error.message()))
    })?;
    let mut seen = std::collections::HashSet::new();
    for token in &file.token {
        let is_hash = token.sha256.len() == 64
            && token.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_hash {
            let problem = format!(
                "the sha256 of {:?} is none: expected 64 hexadecimal digits in lower case",
                token.name
            );
            return Err(content(problem));
        }
        if !seen.insert(&token.sha256) {
            return Err(content(format!(
                "the token {} of {:?} is there twice",
                token.id(),
                token.name
            )));
        }
    }
    Ok(file.token)
}

/// Read a file of tokens, by their hashes.
///
/// # Errors
/// As [`read`].
pub fn load(path: &Path) -> Result<Tokens, TokensError> {
    let tokens = read(path)?;
    Ok(Tokens(tokens.into_iter().map(|token| (token.sha256.clone(), token)).collect()))
}

/// Write a file of tokens in one step. A new one may be read by the group that `like` belongs to.
///
/// # Errors
/// It cannot be written.
#[expect(clippy::disallowed_methods, reason = "for a command")]
pub fn write(path: &Path, tokens: Vec<Token>, like: &Path) -> Result<(), TokensError> {
    let io = |source| TokensError::Io { path: path.to_owned(), source };
    let text = toml::to_string(&File { token: tokens }).map_err(|error| TokensError::Content {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    // It may be a link; what it leads to is what is replaced.
    let (folder, name) = Folder::holding(path).map_err(io)?;
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

/// Times as RFC 3339 texts.
mod instant {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_rfc3339_seconds(*at))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_rfc3339_weak(&text).map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is no time: expected one such as \"2027-01-31T12:00:00Z\""
            ))
        })
    }
}

mod optional_instant {
    use std::time::SystemTime;

    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        at: &Option<SystemTime>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::instant::serialize(at, s),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        super::instant::deserialize(d).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn what_is_written_is_read_and_no_secret_is_in_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let lives = Some(Duration::from_secs(3600));
        let (secret, first) = make("phone", vec![Scope::Write(None), Scope::Upload], lives);
        let (_, second) = make("phone", vec![Scope::Read(Some(DocumentId::random()))], None);
        let both = vec![first.clone(), second];
        write(&path, both.clone(), folder.path()).expect("written");
        assert_eq!(read(&path).expect("read"), both);
        assert!(!fs::read_to_string(&path).expect("read").contains(&secret));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o640);
        let tokens = load(&path).expect("loaded");
        assert_eq!(tokens.find(&secret), Some(&first));
        assert_eq!(tokens.find("tonk_other"), None);
        assert!(!first.is_over(SystemTime::now()));
        assert!(first.is_over(SystemTime::now() + Duration::from_secs(3601)));
    }

    #[test]
    fn a_wrong_file_is_said_by_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let problem = |text: &str| {
            fs::write(&path, text).expect("written");
            read(&path).expect_err(text).to_string()
        };
        let token = |extra: &str| {
            let hash = "0".repeat(64);
            format!(
                "[[token]]\nname = \"a\"\nsha256 = \"{hash}\"\nscopes = []\ncreated = \"2026-01-01T00:00:00Z\"\n{extra}"
            )
        };
        assert!(problem("[[token]]\nname = 1\n").contains("line 2"));
        assert!(problem(&token("expires = \"tomorrow\"\n")).contains("is no time"));
        assert!(problem(&token("").replace("[]", "[\"all\"]")).contains("is no scope"));
        assert!(problem(&token("secret = \"x\"\n")).contains("unknown field"));
        assert!(problem(&(token("") + &token(""))).contains("there twice"));
        assert!(problem(&token("").replace("00000", "XXXXX")).contains("64 hexadecimal digits"));
        let missing = read(&folder.path().join("none")).expect_err("none").to_string();
        assert!(missing.contains("token add"), "{missing}");
        let not_a_file = read(folder.path()).expect_err("a folder").to_string();
        assert!(not_a_file.contains("not a regular file"), "{not_a_file}");
    }
}
