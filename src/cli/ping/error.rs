//! Which step of `tonk-relay ping` failed, and what to do.

use tokio_tungstenite::tungstenite;

use crate::{
    cli::{
        connect::error::{ConnectError, Late, hint},
        error::CliError,
    },
    sync::wire::WireError,
};

/// Which step failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum PingError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(
        "silence: {0}; a proxy's timeout for idle connections must be longer than twice \
         sync.ping_interval"
    )]
    Cut(Box<PingError>),
    #[error("{step}: the connection broke: {source}")]
    Broke { step: &'static str, source: tungstenite::Error },
    #[error("{step}: closed with {code}: {reason}{}", hint(*code, reason))]
    Closed { step: &'static str, code: u16, reason: String },
    #[error("{step}: refused: {reason}")]
    Refused { step: &'static str, reason: String },
    #[error(
        "{step}: the connection ended without a close code; a proxy or a firewall in between may \
         have cut it"
    )]
    Ended { step: &'static str },
    #[error(transparent)]
    Late(#[from] Late),
    #[error("{step}: the answer is not a sync message: {source}; is this a sync server?")]
    Wire { step: &'static str, source: WireError },
}

impl From<PingError> for CliError {
    fn from(error: PingError) -> Self {
        Self::Problem(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let refused = |code, reason: &str| {
            let reason = reason.to_owned();
            PingError::Closed { step: "join", code, reason }.to_string()
        };
        let text = refused(4401, "sign-in is required: send a token (connection c1)");
        assert!(text.contains("(connection c1); --token-file names a file"), "{text}");
        let text = refused(4401, "auth.mode is not set, so only clients on this machine (c1)");
        assert!(text.ends_with("; set it in the config of the relay"), "{text}");
        assert!(!text.contains("--token-file"), "{text}");
        assert_eq!(
            refused(1012, "the relay is shutting down"),
            "join: closed with 1012: the relay is shutting down"
        );
    }
}
