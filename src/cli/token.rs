//! `tonk-relay token`: make, list and remove the tokens of `auth.mode = "token"`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Serialize;

use super::{
    arguments::{CONFIG_FILE, duration},
    error::{CliError, io_error},
    output::{print, show_list},
    relay::{Relay, RelayArguments},
};
use crate::{
    auth::{
        last_use,
        tokens::{self, Token, TokensError},
    },
    base::{folder::Folder, text},
    config::{load, scopes::Scope},
};

#[derive(Debug, Args)]
pub(super) struct TokenArguments {
    /// The config file, which names the file of tokens
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Create a token and print it. Only its hash is stored, so it cannot be shown again. In a file
    /// it takes effect after `tonk-relay reload`, in a database at once
    Add {
        /// The name of the holder. Tokens with the same name belong to the same principal, so that
        /// a new one can replace an old one
        name: String,
        /// What the token allows: sync:read or sync:write, for one document with :<document id>;
        /// upload; download; admin
        #[arg(long = "scope", value_name = "SCOPE", required = true, value_delimiter = ',')]
        scopes: Vec<Scope>,
        /// How long the token is valid, such as 90d; without this, it does not expire
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        expires: Option<Duration>,
    },
    /// List the tokens, with when each was last used
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove tokens. Their sessions end with the next `tonk-relay reload`; those of a database at
    /// once
    Remove {
        /// A name, for all tokens with it, or the id of one token, as `token list` prints it
        name_or_id: String,
    },
}

/// A token as it is listed.
#[derive(Serialize)]
struct ListedToken<'a> {
    id: &'a str,
    name: &'a str,
    scopes: &'a [Scope],
    created: String,
    expires: Option<String>,
    is_expired: bool,
    last_used: Option<String>,
}

impl From<TokensError> for CliError {
    fn from(error: TokensError) -> Self {
        Self::Problem(error.to_string())
    }
}

pub(super) fn run(arguments: TokenArguments) -> Result<(), CliError> {
    let config = load::read_file(&arguments.config).map_err(CliError::Config)?.config;
    let mut tokens = match config.cluster.is_set() {
        true => Kept::InDatabase(RelayArguments::of(arguments.config.clone()).stored()?),
        false => {
            let file = config.auth.tokens.clone();
            let changes = !matches!(arguments.command, TokenCommand::List { .. });
            let _lock = if changes { Some(lock(&file)?) } else { None };
            Kept::InFile { file, like: config.storage.path.clone(), _lock }
        }
    };
    let stored = tokens.read()?;
    match arguments.command {
        TokenCommand::Add { name, scopes, expires } => {
            check_new(&name, expires)?;
            let (secret, token) = tokens::generate(&name, scopes, expires);
            tokens.add(stored, token)?;
            print(&format!("{secret}\n"));
            eprintln!("stored in {}. The token is not shown again.", tokens.describe());
        }
        TokenCommand::List { json } => {
            let used = last_uses(&arguments.config, &config.storage.path);
            let now = SystemTime::now();
            let time = |at: SystemTime| humantime::format_rfc3339_seconds(at).to_string();
            let listed: Vec<ListedToken<'_>> = stored
                .iter()
                .map(|token| ListedToken {
                    id: token.id(),
                    name: &token.name,
                    scopes: &token.scopes,
                    created: time(token.created),
                    expires: token.expires.map(time),
                    is_expired: token.is_expired(now),
                    last_used: used.get(&token.sha256).copied().map(time),
                })
                .collect();
            let empty = "there are no tokens; `tonk-relay token add NAME --scope SCOPE` makes one";
            show_list(json, &listed, empty, describe);
        }
        TokenCommand::Remove { name_or_id } => {
            let is_meant = |token: &Token| token.name == name_or_id || token.id() == name_or_id;
            let (gone, left): (Vec<Token>, Vec<Token>) = stored.into_iter().partition(is_meant);
            if gone.is_empty() {
                return Err(CliError::Problem(format!(
                    "{}: no token {name_or_id}; `tonk-relay token list` lists all tokens",
                    tokens.place()
                )));
            }
            tokens.remove(&gone, left)?;
            for token in &gone {
                print(&format!("removed {} {}\n", token.id(), token.name));
            }
            eprintln!("{}", tokens.takes_effect());
            if config.cluster.is_set()
                && tokens::read(&config.auth.tokens).is_ok_and(|own| own.iter().any(is_meant))
            {
                eprintln!(
                    "{} has such a token, too, which holds at this relay: remove it there by hand, \
                     and run `tonk-relay reload`",
                    config.auth.tokens.display()
                );
            }
        }
    }
    Ok(())
}

/// Checks what a new token is to be.
fn check_new(name: &str, expires: Option<Duration>) -> Result<(), CliError> {
    if name.is_empty() || name.len() > 200 || name.contains(text::is_invisible) {
        return Err(CliError::Problem(
            "the name must have 1 to 200 bytes, without control or format characters".to_owned(),
        ));
    }
    if expires.is_some_and(|lives| lives > tokens::MAX_LIFETIME) {
        return Err(CliError::Problem(
            "--expires: at most 100 years; leave --expires out for a token that does not expire"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Where tokens are kept.
enum Kept {
    /// In a file, which is locked while it is changed. A new one is readable like `like`.
    InFile { file: PathBuf, like: PathBuf, _lock: Option<Folder> },
    /// In the database, for all relays.
    InDatabase(Relay),
}

impl Kept {
    fn read(&mut self) -> Result<Vec<Token>, CliError> {
        match self {
            Self::InFile { file, .. } => match tokens::read(file) {
                Err(TokensError::Missing { .. }) => Ok(Vec::new()),
                other => Ok(other?),
            },
            Self::InDatabase(relay) => relay.request(Method::GET, "/tokens"),
        }
    }

    fn add(&mut self, mut stored: Vec<Token>, token: Token) -> Result<(), CliError> {
        match self {
            Self::InFile { file, like, .. } => {
                stored.push(token);
                Ok(tokens::write(file, stored, like)?)
            }
            Self::InDatabase(relay) => relay.send(Method::POST, "/tokens", &token),
        }
    }

    fn remove(&mut self, gone: &[Token], left: Vec<Token>) -> Result<(), CliError> {
        match self {
            Self::InFile { file, like, .. } => Ok(tokens::write(file, left, like)?),
            Self::InDatabase(relay) => {
                let hashes: Vec<&str> = gone.iter().map(|token| token.sha256.as_str()).collect();
                relay.send(Method::DELETE, "/tokens", &hashes)
            }
        }
    }

    fn place(&self) -> String {
        match self {
            Self::InFile { file, .. } => file.display().to_string(),
            Self::InDatabase(_) => "the database".to_owned(),
        }
    }

    /// Where a new token is, and from when it holds.
    fn describe(&self) -> String {
        match self {
            Self::InFile { file, .. } => {
                format!("{}; it takes effect after `tonk-relay reload`", file.display())
            }
            Self::InDatabase(_) => {
                "the database; it takes effect at once, at all relays whose auth.mode is \"token\""
                    .to_owned()
            }
        }
    }

    fn takes_effect(&self) -> &'static str {
        match self {
            Self::InFile { .. } => "this takes effect after `tonk-relay reload`",
            Self::InDatabase(_) => "this takes effect at once, at all relays",
        }
    }
}

/// Returns when each token was last used, by its hash: as it is saved, which is up to half a minute
/// old, and as a running relay knows it.
fn last_uses(config: &Path, documents: &Path) -> BTreeMap<String, SystemTime> {
    let mut used = last_use::read(documents);
    let relay = RelayArguments::of(config.to_owned()).running();
    let running = relay
        .and_then(|mut relay| relay.request::<BTreeMap<String, u64>>(Method::GET, "/token-use"));
    // Without a relay, or without the right to ask it, the saved times are all there is.
    for (hash, seconds) in running.unwrap_or_default() {
        if let Some(at) = last_use::from_seconds(seconds) {
            used.insert(hash, at);
        }
    }
    used
}

/// Locks the file against other commands until what this returns is dropped. The folder is locked,
/// because the file itself is replaced.
fn lock(file: &Path) -> Result<Folder, CliError> {
    let (folder, _) = Folder::open_parent(file).map_err(io_error(file))?;
    rustix::fs::flock(folder.file(), rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| io_error(file)(error.into()))?;
    Ok(folder)
}

fn describe(token: &ListedToken<'_>) -> String {
    let scopes: Vec<String> = token.scopes.iter().map(ToString::to_string).collect();
    let expires = match &token.expires {
        Some(at) if token.is_expired => format!("expired {at}"),
        Some(at) => format!("expires {at}"),
        None => "does not expire".to_owned(),
    };
    let used =
        token.last_used.as_ref().map_or_else(|| "never used".to_owned(), |at| format!("used {at}"));
    format!("{}  {}  {}  {expires}  {used}\n", token.id, token.name, scopes.join(","))
}
