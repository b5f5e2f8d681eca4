//! `tonk-relay checkpoint`

use hyper::Method;

use super::{error::CliError, output::show, relay::StorageArguments};
use crate::admin::storage::checkpoint::Checkpoint;

pub(super) fn run(arguments: &StorageArguments) -> Result<(), CliError> {
    let answer: Checkpoint = arguments.relay.stored()?.ask(Method::POST, "/checkpoint")?;
    show(arguments.json, &answer, || {
        format!("{} chunks moved; the folders hold everything\n", answer.moved)
    });
    Ok(())
}
