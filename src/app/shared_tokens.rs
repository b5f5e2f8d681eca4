//! Follows the tokens that all relays of a database share. A change applies at once.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tracing::{error, warn};

use crate::{
    auth::tokens::Tokens, config::Config, storage::postgres::SharedTokens,
    sync::session::shared::Sessions,
};

/// How often it is checked how old the knowledge of the tokens is.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Puts shared tokens into effect, now and after changes. Once they could not be read for too long
/// they admit nobody, because one of them may have been removed. Runs as long as the store exists.
pub(super) async fn follow(
    (mut tokens, config, sessions): (
        watch::Receiver<SharedTokens>,
        watch::Receiver<Arc<Config>>,
        Arc<Sessions>,
    ),
) {
    let mut is_stale = false;
    tokens.mark_changed();
    loop {
        match timeout(CHECK_EVERY, tokens.changed()).await {
            Ok(Err(_)) => return,
            Ok(Ok(())) if !is_stale => {
                let now = tokens.borrow_and_update().clone();
                put_into_effect(&now, &sessions);
            }
            Ok(Ok(())) | Err(_) => {}
        }
        let limit = config.borrow().cluster.stale.0;
        let now = tokens.borrow().clone();
        let was_stale = is_stale;
        is_stale = !limit.is_zero() && now.as_of.elapsed() > limit;
        if is_stale && !was_stale {
            error!(
                "the tokens could not be read for {} (cluster.stale), and one may have been \
                 removed; they admit nobody until the database answers",
                humantime::format_duration(limit)
            );
            sessions.auth.set_shared(Tokens::default());
            sessions.revalidate_all();
        } else if was_stale && !is_stale {
            put_into_effect(&now, &sessions);
        }
    }
}

fn put_into_effect(shared: &SharedTokens, sessions: &Sessions) {
    let (tokens, unknown) = Tokens::of_json(&*shared.entries);
    if unknown > 0 {
        warn!(unknown, "a newer relay has stored tokens that this one cannot read");
    }
    sessions.auth.set_shared(tokens);
    sessions.revalidate_all();
}
