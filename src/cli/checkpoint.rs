//! `tonk-relay checkpoint`: moves all chunks from the journal into the folders of the documents.

use hyper::Method;

use super::{error::CliError, output::show, relay::StorageArguments};
use crate::{admin::storage::checkpoint::CheckpointReport, base::text::Count};

pub(super) fn run(arguments: &StorageArguments) -> Result<(), CliError> {
    let answer: CheckpointReport =
        arguments.relay.stored()?.request(Method::POST, "/checkpoint")?;
    show(arguments.json, &answer, || {
        format!("{} moved; the folders now contain all changes\n", Count(answer.moved, "chunk"))
    });
    Ok(())
}
