//! Why a connection fails, and what to do.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use rustls::{CertificateError, InvalidMessage};
use tokio_tungstenite::tungstenite;

use crate::cli::error::CliError;

/// Which step of a connection failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ConnectError {
    #[error("{0}: expected a URL such as wss://relay.example.org")]
    Url(String),
    #[error("{option}: {path}: {source}", path = path.display())]
    File { option: &'static str, path: PathBuf, source: io::Error },
    #[error("address: {host}: {source}")]
    Lookup { host: String, source: io::Error },
    #[error(
        "address: {address} does not answer: {source}; is the relay or its proxy running, and the \
         port open?"
    )]
    Connect { address: SocketAddr, source: io::Error },
    #[error(
        "tls: {}; `openssl s_client -connect {host}:{port} -showcerts` shows more",
        explain_tls(source)
    )]
    Tls { host: String, port: u16, source: io::Error },
    #[error("tls: {0}")]
    TlsSetup(String),
    #[error(
        "tls: this machine trusts no certificate authority; install ca-certificates, or name a \
         file with --ca-file"
    )]
    NoRoots,
    #[error(
        "upgrade: the server answered HTTP {0} instead of opening a WebSocket; a proxy in between \
         must pass on `Upgrade` and `Connection`, and speak HTTP/1.1 to the relay"
    )]
    Status(u16),
    #[error(
        "upgrade: a proxy answered HTTP {0}, because it does not reach the relay; is the relay \
         running, on the port that the proxy connects to?"
    )]
    NoRelay(u16),
    #[error(
        "upgrade: the server does not answer in plain HTTP; if this port expects TLS, connect with \
         wss://"
    )]
    NotHttp,
    #[error("upgrade: {0}")]
    Upgrade(tungstenite::Error),
    #[error(transparent)]
    Late(#[from] Late),
}

/// A step that took too long.
#[derive(Debug, thiserror::Error)]
#[error("{step}: no answer within {limit:?}")]
pub(in crate::cli) struct Late {
    pub(super) step: &'static str,
    pub(super) limit: Duration,
}

impl ConnectError {
    /// An error of the TLS settings of this program.
    pub(super) fn tls_setup(error: &impl ToString) -> Self {
        Self::TlsSetup(error.to_string())
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        Self::Problem(error.to_string())
    }
}

/// What to do about a connection that is closed with this code; nothing if connecting again may
/// help.
pub(in crate::cli) fn hint(code: u16, reason: &str) -> &'static str {
    match code {
        4401 if reason.starts_with("auth.mode is not set") => "; set it in the config of the relay",
        4401 => "; --token-file names a file with a token that the server knows",
        4403 => "; this token does not allow it",
        4429 => "; wait a minute, or use fewer clients",
        _ => "",
    }
}

/// Explains why a handshake failed, in words where rustls has only names.
fn explain_tls(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else { return error.to_string() };
    if is_untrusted(inner) {
        return "the certificate is self-signed, or signed by an authority that this machine does \
                not trust; name the certificate or its authority with --ca-file, or skip the check \
                with --insecure"
            .to_owned();
    }
    let invalid = match inner {
        rustls::Error::InvalidCertificate(invalid) => invalid,
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            return "the server does not speak TLS on this port; connect with ws://, or to the \
                    port of the proxy in front"
                .to_owned();
        }
        _ => return error.to_string(),
    };
    match invalid {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired; renew it".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet; check the clocks of both machines".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is for another host name; connect by the name that it has".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Whether a certificate is refused only because no trusted authority has signed it.
pub(super) fn is_untrusted(error: &rustls::Error) -> bool {
    // The second is that an authority's certificate is used as a server's.
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::Other(_)
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_tls_is_explained() {
        let plain = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        let text = explain_tls(&io::Error::other(plain));
        assert!(text.contains("does not speak TLS on this port; connect with ws://"), "{text}");
    }
}
