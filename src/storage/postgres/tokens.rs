//! The tokens that all relays share. The store does not read what they say.

use std::sync::Arc;

use tokio::{sync::watch, time::Instant};

use super::{
    PostgresStore, SharedTokens,
    connection::Group,
    error::QueryError,
    statements::{ADD_TOKEN, REMOVE_TOKENS, TOKENS},
};
use crate::storage::StorageError;

impl PostgresStore {
    /// The tokens, now and after changes.
    pub fn tokens(&self) -> watch::Receiver<SharedTokens> {
        self.tokens.subscribe()
    }

    /// Reads the tokens, each as JSON.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn read_tokens(&self) -> Result<Vec<String>, StorageError> {
        let rows = self.rows(TOKENS, &[]).await?;
        let entries: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        entries.map_err(QueryError::from).map_err(self.unexpected())
    }

    /// Adds a token with this SHA-256 in hexadecimal.
    ///
    /// # Errors
    /// It cannot be stored, or is there already.
    pub async fn add_token(&self, sha256: &str, entry: &str) -> Result<(), StorageError> {
        self.change(ADD_TOKEN, &[&sha256, &entry]).await.map(drop)
    }

    /// Removes the tokens with these SHA-256.
    ///
    /// # Errors
    /// They cannot be removed.
    pub async fn remove_tokens(&self, sha256: &[String]) -> Result<(), StorageError> {
        self.change(REMOVE_TOKENS, &[&sha256]).await.map(drop)
    }

    /// Reads the tokens.
    pub(super) async fn load_tokens(&self, group: &Group) -> Result<(), QueryError> {
        let as_of = Instant::now();
        let reading = group.looker.client.query(TOKENS, &[]);
        let rows = self.link.run_within(group, 0, reading).await?;
        let entries: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        self.tokens.send_replace(SharedTokens { entries: Arc::new(entries?), as_of });
        Ok(())
    }

    /// The tokens that were read are all, still.
    pub(super) fn confirm_tokens(&self) {
        self.tokens.send_if_modified(|tokens| {
            tokens.as_of = Instant::now();
            false
        });
    }
}
