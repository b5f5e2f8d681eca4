//! systemd credentials, which replace files that the config names.

use std::path::PathBuf;

use super::{Auth, Cluster};

const TOKENS: &str = "tokens";
const JWT_KEYS: &str = "jwt-keys";
const DATABASE_PASSWORD: &str = "database-password";

/// Returns the file of a credential, if the unit passes it on (`LoadCredential=`).
#[expect(clippy::disallowed_methods, reason = "called at the start, or on a thread that may block")]
pub fn credential(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    Some(PathBuf::from(folder).join(name)).filter(|file| file.is_file())
}

impl Cluster {
    /// Returns the file of the database's password: the systemd credential, or the file that the
    /// config names. Empty if there is none.
    pub fn password_file(&self) -> PathBuf {
        credential(DATABASE_PASSWORD).unwrap_or_else(|| self.password_file.clone())
    }
}

impl Auth {
    /// Returns the file of tokens: the systemd credential, or the file that the config names.
    pub fn tokens_file(&self) -> PathBuf {
        credential(TOKENS).unwrap_or_else(|| self.tokens.clone())
    }

    /// Returns the file of keys for JWTs: the systemd credential, or the file that the config
    /// names.
    pub fn keys_file(&self) -> PathBuf {
        credential(JWT_KEYS).unwrap_or_else(|| self.jwt_keys.clone())
    }
}
