//! `tonk-relay doc`: shows, deletes or blocks a document.

mod delete;
mod follow;
mod inspect;

use clap::{Args, Subcommand};
use hyper::Method;

use super::{
    arguments::document_id,
    error::CliError,
    output::{show, show_list},
    relay::StorageArguments,
};
use crate::{
    admin::storage::reason::Reason, base::document_id::DocumentId, storage::records::Block,
};

/// `tonk-relay doc`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct DocArguments {
    /// The id of the document, or its automerge: URL
    #[arg(value_parser = document_id, required = true)]
    id: Option<DocumentId>,
    /// Print what happens to the document in the running relay from now on: who sends what, and
    /// whether it is applied or refused and why. Contents are never printed
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    storage: StorageArguments,
    #[command(subcommand)]
    command: Option<DocCommand>,
}

#[derive(Debug, Subcommand)]
enum DocCommand {
    /// Delete a document permanently. Clients cannot upload it again until it is undeleted
    Delete {
        /// The id of the document, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        /// The reason, which is stored with the tombstone
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Remove a document's tombstone so that clients can upload it again. Deleted data is not
    /// restored
    Undelete {
        /// The id of the document, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Block all access to a document, at once and until it is unblocked. Its data is kept
    Block {
        /// The id of the document, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        /// The reason, which is stored with the block
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// List the blocked documents, with the time and reason of each block
    Blocked {
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Allow access to a blocked document again
    Unblock {
        /// The id of the document, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        #[command(flatten)]
        storage: StorageArguments,
    },
}

pub(super) fn run(arguments: DocArguments) -> Result<(), CliError> {
    match (arguments.command, arguments.id) {
        (Some(DocCommand::Delete { id, reason, storage }), _) => delete::run(id, reason, &storage),
        (Some(DocCommand::Undelete { id, storage }), _) => {
            let path = format!("/documents/{id}/undelete");
            let () = storage.relay.stored()?.request(Method::POST, &path)?;
            let answer = serde_json::json!({ "document": id, "deleted": false });
            show(storage.json, &answer, || {
                format!("{id} is undeleted: clients can upload it again\n")
            });
            Ok(())
        }
        (Some(DocCommand::Block { id, reason, storage }), _) => {
            let path = format!("/documents/{id}/block");
            let block: Block =
                storage.relay.stored()?.send(Method::POST, &path, &Reason { reason })?;
            show(storage.json, &block, || format!("{id} is blocked\n"));
            Ok(())
        }
        (Some(DocCommand::Blocked { storage }), _) => {
            let all: Vec<Block> = storage.relay.stored()?.request(Method::GET, "/blocked")?;
            let line = |Block { document, blocked_at, reason }: &Block| {
                format!("{document}  {blocked_at}  {}\n", reason.as_deref().unwrap_or_default())
            };
            show_list(storage.json, &all, "no document is blocked", line);
            Ok(())
        }
        (Some(DocCommand::Unblock { id, storage }), _) => {
            let path = format!("/documents/{id}/unblock");
            let () = storage.relay.stored()?.request(Method::POST, &path)?;
            let answer = serde_json::json!({ "document": id, "blocked": false });
            show(storage.json, &answer, || format!("{id} is unblocked\n"));
            Ok(())
        }
        (None, Some(id)) if arguments.follow => follow::run(id, &arguments.storage),
        (None, Some(id)) => inspect::run(id, &arguments.storage),
        // clap requires one of the two.
        (None, None) => Ok(()),
    }
}
