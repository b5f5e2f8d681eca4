//! `[cluster] database`: the URL of a PostgreSQL database.
//!
//! PostgreSQL's own library knows many more options than are supported here. The others are refused
//! by name, because an option that is ignored may be the one that verifies the server.

use std::{fmt, net::IpAddr, path::PathBuf};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

/// What a password is shown as.
const HIDDEN: &str = "***";
/// The port of PostgreSQL.
const PORT: u16 = 5432;
const EXAMPLE: &str = "\"postgres://tonk_relay@db.example.org/tonk_relay\"";
const OPTIONS: &str = "host (a folder with the server's socket), sslmode and sslrootcert";

/// The URL of a database, or an empty text. A password, which it may not have, is not shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

/// A PostgreSQL database.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    /// Where its server listens.
    pub host: DatabaseHost,
    /// The server's port.
    pub port: u16,
    /// The role that the relay uses.
    pub user: String,
    /// The name of the database.
    pub name: String,
    /// Whether the connection is encrypted, and how the server is verified.
    pub tls: DatabaseTls,
}

/// Where a database server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseHost {
    /// A host name or an address.
    Name(String),
    /// The folder of a Unix socket.
    Socket(PathBuf),
}

/// How a connection to a database server is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseTls {
    /// Not at all.
    Off,
    /// By TLS; the server's certificate must be for its host name, and from an authority in this
    /// file, or from one that this machine trusts.
    Verified(Option<PathBuf>),
}

impl DatabaseUrl {
    /// Whether no database is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the URL. `None` if it is empty.
    ///
    /// # Errors
    /// Why it cannot be used, as the end of a sentence that begins with the name of the key. The
    /// password is not in it.
    pub fn read(&self) -> Result<Option<Database>, String> {
        if self.is_empty() {
            return Ok(None);
        }
        read(&self.0).map(Some).map_err(|problem| format!("{self} {problem}"))
    }
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not by the parsed URL: what is not a URL may have a password, too.
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str(if self.0.is_empty() { "" } else { HIDDEN });
        };
        let rest = rest.replace("password=", &format!("password={HIDDEN}"));
        let rest = rest.split_inclusive(HIDDEN).next().unwrap_or_default();
        match rest.rsplit_once('@') {
            None => write!(f, "{scheme}://{rest}"),
            Some((user, host)) => match user.split_once(':') {
                None => write!(f, "{scheme}://{user}@{host}"),
                Some((user, _)) => write!(f, "{scheme}://{user}:{HIDDEN}@{host}"),
            },
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Database {
    /// Names the database for an operator.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            DatabaseHost::Name(host) => write!(f, "{} at {host}:{}", self.name, self.port),
            DatabaseHost::Socket(folder) => write!(f, "{} at {}", self.name, folder.display()),
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Stands for a host that is not in the URL: in a URL of the Web there must be one.
const NO_HOST: &str = "no-host.invalid";

/// Puts [`NO_HOST`] where the URL has no host.
fn with_host(text: &str) -> String {
    let end = text.find("://").map(|scheme| scheme + 3).and_then(|start| {
        let end = text.get(start..)?.find(['/', '?']).map_or(text.len(), |at| start + at);
        let host = text.get(..end)?.rfind('@').filter(|at| *at >= start)? + 1;
        (host == end || text.get(host..)?.starts_with(':')).then_some(host)
    });
    match end.and_then(|end| text.split_at_checked(end)) {
        Some((before, after)) => format!("{before}{NO_HOST}{after}"),
        None => text.to_owned(),
    }
}

fn read(text: &str) -> Result<Database, String> {
    let url = Url::parse(&with_host(text))
        .map_err(|error| format!("is not a URL: {error}; expected one such as {EXAMPLE}"))?;
    if !["postgres", "postgresql"].contains(&url.scheme()) {
        return Err(format!("is not the URL of a PostgreSQL database, such as {EXAMPLE}"));
    }
    let (mut socket, mut mode, mut roots) = (None, None, None);
    for (option, value) in url.query_pairs() {
        let value = value.into_owned();
        match &*option {
            "host" if value.starts_with('/') => socket = Some(PathBuf::from(value)),
            "host" => {
                return Err(format!(
                    "has the option host={value}, which is not a folder; write the host name in \
                     front of the first slash"
                ));
            }
            "sslmode" => mode = Some(value),
            "sslrootcert" => roots = Some(PathBuf::from(value)),
            option if option.contains('@') => {
                return Err("has a ? in front of its @; expected %3F".to_owned());
            }
            _ => {
                return Err(format!(
                    "has the option {option}, which is not supported; the options are {OPTIONS}"
                ));
            }
        }
    }
    let decoded = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| "has a name that is not UTF-8; expected percent-encoded UTF-8".to_owned())
    };
    let user = decoded(url.username())?;
    if user.is_empty() {
        return Err(format!("has no user; expected one in front of an @, as in {EXAMPLE}"));
    }
    let name = decoded(url.path().trim_start_matches('/'))?;
    let name = if name.is_empty() { user.clone() } else { name };
    let host = url.host_str().filter(|host| *host != NO_HOST).unwrap_or_default();
    let host = match (socket, host) {
        (Some(folder), "") => DatabaseHost::Socket(folder),
        (None, host) if !host.is_empty() => DatabaseHost::Name(decoded(host)?),
        (Some(_), _) => {
            return Err("has a host and the option host; expected one of them".to_owned());
        }
        (None, _) => {
            return Err(format!(
                "has no host; expected one, as in {EXAMPLE}, or the folder of the server's socket, \
                 as in \"postgres://{user}@/{name}?host=/run/postgresql\""
            ));
        }
    };
    let tls = tls(&host, mode.as_deref(), roots)?;
    if url.password().is_some() {
        return Err(
            "has a password in it; expected a URL without one: write it into a file, and name that \
             in cluster.password_file"
                .to_owned(),
        );
    }
    Ok(Database { host, port: url.port().unwrap_or(PORT), user, name, tls })
}

/// How to connect to `host` with these values of sslmode and sslrootcert.
fn tls(
    host: &DatabaseHost,
    mode: Option<&str>,
    roots: Option<PathBuf>,
) -> Result<DatabaseTls, String> {
    let is_local = match host {
        DatabaseHost::Socket(_) => true,
        DatabaseHost::Name(name) => {
            let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
            name == "localhost" || address.is_ok_and(|address| address.is_loopback())
        }
    };
    Ok(match (mode, roots) {
        (None, None) if is_local => DatabaseTls::Off,
        (Some("disable"), None) => DatabaseTls::Off,
        (Some("disable"), Some(_)) => {
            return Err("has sslrootcert, which has no effect with sslmode=disable".to_owned());
        }
        (None | Some("verify-full"), roots) => DatabaseTls::Verified(roots),
        (Some(mode), _) => {
            return Err(format!(
                "has sslmode={mode}, which does not verify the server; expected verify-full, which \
                 is the default, or disable"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<Database, String> {
        DatabaseUrl::from(text).read().map(|database| database.expect("is not empty"))
    }

    #[test]
    fn urls_of_databases_are_read() {
        let database = url("postgres://me@db.example.org:6543/app").expect("is read");
        assert_eq!(database.host, DatabaseHost::Name("db.example.org".to_owned()));
        assert_eq!((database.port, &*database.user, &*database.name), (6543, "me", "app"));
        assert_eq!(database.tls, DatabaseTls::Verified(None));
        let socket = url("postgresql://me@/?host=/run/postgresql").expect("is read");
        assert_eq!(socket.host, DatabaseHost::Socket("/run/postgresql".into()));
        assert_eq!((&*socket.name, socket.tls), ("me", DatabaseTls::Off));
        let second = url("postgres://me@:5433/app?host=/run/postgresql").expect("is read");
        assert_eq!((second.port, second.tls), (5433, DatabaseTls::Off));
        assert_eq!(url("postgres://me@[::1]/app").expect("is read").tls, DatabaseTls::Off);
        let verified = url("postgres://me@localhost/app?sslmode=verify-full&sslrootcert=/ca.pem");
        let roots = Some(PathBuf::from("/ca.pem"));
        assert_eq!(verified.expect("is read").tls, DatabaseTls::Verified(roots));
        assert_eq!(DatabaseUrl::default().read(), Ok(None));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (text, expected) in [
            ("mysql://me@host/app", "is not the URL of a PostgreSQL database"),
            ("host=db user=me", "is not a URL"),
            ("postgres://me:word@db/app", "has a password in it; expected a URL without one"),
            ("postgres://host/app", "has no user"),
            ("postgres://me@/app", "has no host"),
            ("postgres://me@db/app?host=/run", "has a host and the option host"),
            ("postgres://me@db/app?sslmode=require", "sslmode=require, which does not verify"),
            (
                "postgres://me@db/app?target_session_attrs=any",
                "has the option target_session_attrs",
            ),
        ] {
            let problem = url(text).expect_err("is refused");
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for text in [
            "postgres://me:secret@db/app?sslmode=prefer",
            "mysql://me:secret@db",
            "postgres://me:sec@secret@db/app",
            "me:secret@db",
            "host=db user=me password=secret",
            "postgres://me@db/app?password=secret",
            "postgres://me:12?secret@db/app",
        ] {
            let url = DatabaseUrl::from(text);
            let problem = url.read().err().unwrap_or_default();
            let shown = [url.to_string(), format!("{url:?}"), problem];
            let json = serde_json::to_string(&url).expect("is text");
            assert!(!shown.iter().any(|shown| shown.contains("secret")), "{shown:?}");
            assert!(!json.contains("secret"), "{json}");
        }
    }
}
