//! `tonk-relay client`: a client of automerge-repo's protocol for a terminal. It is built on samod,
//! so it is an implementation of the protocol that the relay does not share.
//!
//! | to find | look in |
//! |---|---|
//! | the connection, and what samod does not report of it | `transport`, `durable_heads` |
//! | finding the document | `open` |
//! | what happens with it, and what is printed | `session` |
//! | what typed lines mean | `edit`, `input` |
//! | who else is there | `presence` |
//!
//! Standard output has the document, a line of JSON for each state of it; everything else goes to
//! standard error, each line after `* `.

mod cbor;
mod durable_heads;
mod edit;
mod error;
mod input;
mod open;
mod presence;
mod session;
mod transport;

use std::env;

use clap::{Args, Subcommand};

use self::{edit::GRAMMAR, open::Options};
use super::{connect::ConnectArguments, error::CliError, runtime::runtime};
use crate::base::document_id::{BadDocumentId, DocumentId};

/// Where the demo listens.
const DEFAULT_URL: &str = "ws://127.0.0.1:8081";

/// `tonk-relay client`
#[derive(Debug, Args)]
pub(super) struct ClientArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a document, print its id, and go on as `open` does
    New {
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Show a document as JSON each time it changes, who else is there, and whether it is saved;
    /// typed lines change it
    #[command(after_help = GRAMMAR)]
    Open {
        /// The document's id, also with `automerge:` before it
        #[arg(value_name = "ID", value_parser = parse_id)]
        document: DocumentId,
        #[command(flatten)]
        server: ServerArguments,
    },
}

#[derive(Debug, Args)]
struct ServerArguments {
    /// The server: ws:// or wss://
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: String,
    #[command(flatten)]
    connect: ConnectArguments,
    /// The name that others see; your user name if it is not given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Parses an id, or an `automerge:` URL. What follows a `#` is taken of other URLs, so that the
/// address of the demo's page can be pasted.
fn parse_id(text: &str) -> Result<DocumentId, BadDocumentId> {
    let text = text.rsplit_once('#').map_or(text, |(_, id)| id);
    text.strip_prefix("automerge:").unwrap_or(text).parse()
}

pub(super) fn run(arguments: ClientArguments) -> Result<(), CliError> {
    let (document, server) = match arguments.action {
        Action::New { server } => (None, server),
        Action::Open { document, server } => (Some(document), server),
    };
    let ServerArguments { url, connect, name } = server;
    let name = name.or_else(|| env::var("USER").ok()).unwrap_or_else(|| "somebody".to_owned());
    let target = connect.target(&url)?;
    let is_default = url == DEFAULT_URL;
    let runtime = runtime()?;
    let server_arguments = connect.for_shell((!is_default).then_some(&url));
    let options = Options { document, target, name, is_default, server_arguments };
    let result = runtime.block_on(session::run(options));
    // The thread that reads standard input may wait for it.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_from_urls() {
        let id = "2XehcERzGALTcjP7C7VxwFJdWoEW";
        for text in [
            id.to_owned(),
            format!("automerge:{id}"),
            format!("http://127.0.0.1:8081/demo#automerge:{id}"),
        ] {
            assert_eq!(parse_id(&text).map(|id| id.to_string()), Ok(id.to_owned()), "{text}");
        }
        assert!(parse_id("2Xeh").is_err());
    }
}
