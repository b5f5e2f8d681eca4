//! Why `tonk-relay client` fails, and what to do.

use std::{sync::Arc, time::Duration};

use crate::{
    base::document_id::DocumentId,
    cli::{connect::error::ConnectError, error::CliError},
};

/// Why the client ends, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("{source}{hint}")]
    Connect { source: Arc<ConnectError>, hint: &'static str },
    #[error(
        "{url} does not answer the handshake within {limit:?}; is it an automerge-repo server?"
    )]
    Handshake { url: String, limit: Duration },
    #[error("{url} refused the connection: closed with {code}: {reason}{hint}")]
    Refused { url: String, code: u16, reason: String, hint: &'static str },
    #[error("{url} ended the connection during the handshake; is it an automerge-repo server?")]
    Ended { url: String },
    #[error(
        "{url} does not have document {document}{says}, and nobody who is connected has it. Check \
         the id and the URL; if the server asks for tokens, also check that yours may read it"
    )]
    Unknown { url: String, document: DocumentId, says: String },
    #[error(transparent)]
    Url(#[from] ConnectError),
    #[error("{url} does not answer within {limit:?} whether it has document {document}; try again")]
    Search { url: String, document: DocumentId, limit: Duration },
    #[error(
        "not saved: the server has not confirmed the last change within {0:?}; it may be busy, or \
         refuse what this client changes"
    )]
    NotSaved(Duration),
    #[error("interrupted before the document was open")]
    NotOpened,
    #[error("not saved: interrupted before the server confirmed the last change")]
    Interrupted,
    #[error("{0} of the lines changed nothing")]
    Lines(usize),
    #[error("the client's own repository has stopped")]
    Stopped,
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Problem(error.to_string())
    }
}
