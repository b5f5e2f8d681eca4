//! Follows the file of keys for JWTs. Changed keys apply at once, without a reload of the config.

use tracing::{error, info};

use super::Reloader;
use crate::{
    auth::Policy,
    base::blocking,
    bundle::watch::PathWatch,
    config::{self, AuthMode},
};

impl Reloader {
    /// Puts the keys into effect whenever their file changes. Runs forever.
    pub async fn follow_keys(&self) {
        let mut config = self.config.subscribe();
        loop {
            let auth = config.borrow_and_update().auth.clone();
            if auth.mode != AuthMode::Jwt {
                self.health.set_degraded("keys", None);
                if config.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let file = auth.keys_file();
            let mut keys = PathWatch::new(&file).await;
            // They may have changed after they were last read and before the watch began.
            self.load_keys().await;
            loop {
                tokio::select! {
                    () = keys.changed() => {
                        if self.load_keys().await {
                            info!(
                                file = %file.display(),
                                "auth.jwt_keys has changed; using the new keys"
                            );
                        }
                    }
                    changed = config.changed() => match changed {
                        Err(_) => return,
                        Ok(()) if is_same_file(&config.borrow().auth, &auth) => {}
                        Ok(()) => break,
                    },
                }
            }
        }
    }

    /// Reads the keys that the config in effect names, and puts them into effect. Returns false,
    /// and leaves the former ones in effect, if they cannot be used.
    async fn load_keys(&self) -> bool {
        // Held to the end. Otherwise a policy of the former config could replace that of a reload.
        let loaded = self.loaded.lock().await;
        let auth = loaded.config.auth.clone();
        if auth.mode != AuthMode::Jwt {
            return false;
        }
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        let read = blocking::run(move || Policy::load(&auth, false)).await;
        match read {
            Ok(policy) => {
                self.sessions.auth.set(policy);
                self.sessions.revalidate_all();
                self.health.set_degraded("keys", None);
                true
            }
            Err(error) => {
                error!(
                    "cannot use the changed auth.jwt_keys; the previous keys stay in effect: \
                     {error}"
                );
                self.health.set_degraded("keys", Some(format!("auth.jwt_keys: {error}")));
                false
            }
        }
    }
}

/// Whether two configs take the keys from the same file.
fn is_same_file(one: &config::Auth, other: &config::Auth) -> bool {
    let source = |auth: &config::Auth| {
        // `keys_file` reads `jwt_keys`. The other keys do not decide which file is followed.
        let config::Auth {
            mode,
            jwt_keys: _,
            tokens: _,
            jwt_issuer: _,
            jwt_audience: _,
            query_token: _,
            anonymous: _,
            readonly_presence: _,
        } = auth;
        (*mode, auth.keys_file())
    };
    source(one) == source(other)
}
