//! How `client` and `ping` connect to a relay, up to the open WebSocket.
//!
//! | to find | look in |
//! |---|---|
//! | the URL, and the steps: address, TLS, upgrade | `target` |
//! | which certificates are trusted | `trust` |
//! | which step failed, and what to do | `error` |
//! | what a step found, for the report of `ping` | `step` |

pub(super) mod error;
pub(super) mod step;
pub(super) mod target;
mod trust;

use std::path::PathBuf;

use clap::Args;

use self::{error::ConnectError, target::Target, trust::Trust};

/// Arguments of the commands that connect to a relay.
#[derive(Debug, Args)]
pub(super) struct ConnectArguments {
    /// A file with the token to sign in with
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A file with certificates (PEM) to trust in addition to the system's: of an authority, or the
    /// server's own
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Accept any certificate, such as a self-signed one. The connection may be with anybody: use
    /// it without a token, or with one that you then revoke
    #[arg(long, conflicts_with = "ca_file")]
    insecure: bool,
}

impl ConnectArguments {
    /// Returns the relay at this URL, which is not connected yet. Reads the files that the
    /// arguments name.
    ///
    /// # Errors
    /// The URL is not one of a relay, or a file cannot be used.
    pub(super) fn target(&self, url: &str) -> Result<Target, ConnectError> {
        let trust = match &self.ca_file {
            _ if self.insecure => Trust::All,
            Some(file) => Trust::File(file),
            None => Trust::System,
        };
        Target::new(url, self.token_file.as_deref(), trust)
    }

    /// The arguments with which another client connects to the same relay, for a shell. Each comes
    /// after a space.
    pub(super) fn for_shell(&self, url: Option<&String>) -> String {
        let path = |path: &PathBuf| path.display().to_string();
        let options = [
            ("--url", url.cloned()),
            ("--token-file", self.token_file.as_ref().map(path)),
            ("--ca-file", self.ca_file.as_ref().map(path)),
        ];
        let mut text = String::new();
        for (option, value) in options {
            if let Some(value) = value {
                text.push_str(&format!(" {option} {}", quoted(&value)));
            }
        }
        if self.insecure {
            text.push_str(" --insecure");
        }
        text
    }
}

/// Quotes a text for a shell, if it needs that.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_for_another_client_can_be_pasted() {
        let mut arguments = ConnectArguments { token_file: None, ca_file: None, insecure: false };
        assert_eq!(arguments.for_shell(None), "");
        arguments.token_file = Some("my token".into());
        arguments.ca_file = Some("/etc/it's.pem".into());
        arguments.insecure = true;
        assert_eq!(
            arguments.for_shell(Some(&"wss://a.example".to_owned())),
            r" --url wss://a.example --token-file 'my token' --ca-file '/etc/it'\''s.pem' --insecure"
        );
    }
}
