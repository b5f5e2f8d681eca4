//! `tonk-relay reload`: has the running relay read its config file again.

use hyper::Method;

use super::{error::CliError, output::print, relay::RelayArguments};
use crate::admin::reload::ReloadAnswer;

pub(super) fn run(relay: &RelayArguments) -> Result<(), CliError> {
    let answer: ReloadAnswer = relay.running()?.request_any_status(Method::POST, "/reload")?;
    if !answer.applied {
        return Err(CliError::NotReloaded(answer.problems));
    }
    print(&match answer.changed.as_slice() {
        [] => "reloaded: no setting has changed; the files of tokens and keys were read again\n"
            .to_owned(),
        keys => format!("reloaded: {}\n", keys.join(" ")),
    });
    Ok(())
}
