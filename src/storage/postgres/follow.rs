//! Following what other relays write.
//!
//! A relay looks for rows that are new since its last look: when it is given a hint, and once a
//! second. What it finds of the live documents is handed to their rooms.

use std::{
    collections::HashMap,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use futures::future::join;
use tokio::time::sleep;
use tokio_postgres::types::ToSql;
use tracing::warn;

use super::{
    PostgresStore,
    connection::{Group, MESSAGES},
    error::QueryError,
    hints::{Heard, Hint, PAUSE},
    link::RETRY,
    messages,
    nodes::Nodes,
    position::{Cause, Follower},
    statements::{SEEN, SWEEP},
    store::document,
    writer::{MAX_BATCH, columns, kind_of},
};
use crate::{
    base::{document_id::DocumentId, lock::lock},
    config::Size,
    document::{
        chunk::{Key, StoredChunk},
        core::event::StoredByAnother,
        load::joined,
        unpacked::{self, NotUnpacked, Origin},
    },
    storage::{
        live::{Live, News},
        relay_report::RelayReport,
    },
};

/// Rows of each kind that one look takes. After more, everything live is read again. Tests have few.
const PAGE: usize = if cfg!(test) { 100 } else { 10_000 };
/// Chunks of at most this many bytes are found with their data, as most edits are.
const MAX_INLINE: i64 = 1 << 10;
/// Chunks with more bytes of one document are read by its room.
const MAX_FETCHED: i64 = 16 << 10;
/// So are chunks that may unpack to four times this.
const MAX_UNPACKED: Size = Size(256 << 10);
/// How often a relay reads how often each has written. What is lost of later writes, and of no
/// earlier ones, is noticed by the relay that had made them.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often a relay says that it is there.
const SEEN_EVERY: Duration = Duration::from_secs(5);
/// How often leftovers are deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// What a look has found.
#[derive(Default)]
struct Found {
    snapshot: String,
    /// The chunks of each document.
    chunks: HashMap<DocumentId, Vec<New>>,
    marks: Vec<(DocumentId, Mark)>,
    /// Tokens were added or removed.
    has_tokens: bool,
}

/// A chunk that another relay has stored.
struct New {
    key: Key,
    bytes: i64,
    /// Its data, if it is small.
    data: Option<Vec<u8>>,
}

struct Mark {
    is_deleted: bool,
    is_blocked: bool,
    /// How often it was deleted.
    generation: i64,
}

impl PostgresStore {
    /// Follows what other relays write, and tells `live` of it. `describe` says what others are told
    /// of this relay. Never returns.
    pub(super) async fn follow(
        &self,
        live: &impl Live,
        describe: &impl Fn() -> Option<RelayReport>,
    ) {
        let mut follower = self.follower.lock().await;
        let mut is_failing = false;
        let mut cause = Cause::Poll;
        loop {
            let group = self.link.connected().await;
            self.maintain(&mut follower, &group, describe).await;
            match self.look(&mut follower, &group, live, cause).await {
                Ok(()) => {
                    is_failing = false;
                    sleep(PAUSE).await;
                    cause = Cause::next(&self.link, &group).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(
                            "cannot look for what other relays have stored; retrying: {}",
                            error.problem
                        );
                    }
                    sleep(RETRY.1).await;
                }
            }
        }
    }

    /// Hears hints and messages of other relays. Never returns.
    pub(super) async fn listen(&self, live: &impl Live) {
        let mut notifications = self.notifications.lock().await;
        let mut heard = Heard::default();
        while let Some(notification) = notifications.recv().await {
            let group = self.link.connected().await;
            if notification.channel() == MESSAGES {
                for message in messages::read(notification.payload(), &group.node) {
                    self.metrics.relay_messages.with_label_values(&["received"]).inc();
                    live.heard(message);
                }
                continue;
            }
            let hint = Hint::read(notification.payload()).filter(|hint| hint.node != group.node);
            let Some(hint) = hint else { continue };
            self.metrics.hints.with_label_values(&["received"]).inc();
            self.metrics.hints.with_label_values(&["lost"]).inc_by(heard.record(&hint));
            if heard.count() > self.link.others.count() {
                self.link.others.set_count(heard.count());
            }
            self.link.hint(hint.at);
        }
        std::future::pending().await
    }

    /// Takes the present as what is known from now on: what was stored before has to be read.
    pub(super) async fn take_position(
        &self,
        follower: &mut Follower,
        group: &Group,
    ) -> Result<(), QueryError> {
        let found = self.find(group, None).await?;
        self.load_marks(group).await?;
        self.load_tokens(group).await?;
        *lock(&self.link.seen) = self.nodes(group).await?;
        follower.snapshot = Some(found.snapshot);
        follower.connection.clone_from(&group.name);
        Ok(())
    }

    /// Looks once.
    async fn look(
        &self,
        follower: &mut Follower,
        group: &Group,
        live: &impl Live,
        cause: Cause,
    ) -> Result<(), QueryError> {
        let same_timeline = follower.connection == group.name || group.same_timeline;
        let Some(since) = follower.snapshot.clone().filter(|_| same_timeline) else {
            return self.resync(follower, group, live).await;
        };
        // In this order: what is remembered as written by the relays has been found before.
        let counts = follower.counted_at.is_none_or(|at| at.elapsed() >= COUNT_EVERY);
        let counting = async { if counts { self.nodes(group).await.map(Some) } else { Ok(None) } };
        let (found, nodes) = join(self.find(group, Some(&since)), counting).await;
        let (found, nodes) = (found?, nodes?);
        let rows = found.chunks.values().map(Vec::len).sum::<usize>() + found.marks.len();
        let metrics = &self.metrics;
        metrics.looks.with_label_values(&[cause.label()]).inc();
        metrics.rows.with_label_values(&[cause.label()]).inc_by(rows as u64);
        if let Some(nodes) = &nodes {
            metrics.relays.set(i64::try_from(nodes.others + 1).unwrap_or(i64::MAX));
            self.link.others.set_count(nodes.others);
            metrics.notification_queue.set(nodes.queue);
            self.link.others.set_seen(nodes.present.clone());
            let in_progress = transactions(&found.snapshot).1;
            let oldest = follower.oldest_transaction(in_progress.first().copied());
            metrics.oldest_transaction.set(oldest.as_secs_f64());
            self.link.set_time(nodes.time);
        }
        if rows >= PAGE || next_transaction(&found.snapshot) < next_transaction(&since) {
            return self.resync(follower, group, live).await;
        }
        if self.marked.is_unsure.swap(false, Ordering::Relaxed) {
            for document in self.load_marks(group).await? {
                live.marked(document);
            }
        }
        for (document, mark) in &found.marks {
            let is_news = self.take_marks(*document, mark.is_deleted, mark.is_blocked);
            if is_news || (mark.generation > 0 && !mark.is_deleted) {
                live.marked(*document);
            }
        }
        // After a time away one that was removed may be forgotten.
        if found.has_tokens || follower.connection != group.name {
            self.load_tokens(group).await?;
        } else {
            self.confirm_tokens();
        }
        self.pass_on(group, live, found.chunks).await?;
        if let Cause::Hint(at) = cause
            && rows > 0
        {
            let took = Duration::from_millis(self.link.now().saturating_sub(at));
            metrics.news_seconds.observe(took.as_secs_f64());
            follower.worst_news = follower.worst_news.max(Some(took));
        }
        if let Some(nodes) = nodes {
            *lock(&self.link.seen) = nodes;
            follower.counted_at = Some(Instant::now());
        }
        follower.snapshot = Some(found.snapshot);
        follower.connection.clone_from(&group.name);
        Ok(())
    }

    /// Has everything that is live read again.
    async fn resync(
        &self,
        follower: &mut Follower,
        group: &Group,
        live: &impl Live,
    ) -> Result<(), QueryError> {
        self.take_position(follower, group).await?;
        self.metrics.resyncs.inc();
        live.resync();
        Ok(())
    }

    async fn nodes(&self, group: &Group) -> Result<Nodes, QueryError> {
        self.link.run_within(group, 0, group.looker.read_nodes(&group.node)).await
    }

    /// Finds what is new since a snapshot; nothing if there is none.
    async fn find(&self, group: &Group, since: Option<&str>) -> Result<Found, QueryError> {
        let (node, page) = (group.node.as_slice(), PAGE as i64);
        let (next, in_progress) = since.map(transactions).unzip();
        let parameters: [&(dyn ToSql + Sync); 5] = [&next, &in_progress, &node, &page, &MAX_INLINE];
        let looking = group.looker.client.query(&group.looker.look, &parameters);
        let mut found = Found::default();
        for row in self.link.run_within(group, 0, looking).await? {
            tokio::task::consume_budget().await;
            (found.snapshot, found.has_tokens) = (row.try_get(0)?, row.try_get(9)?);
            let Some(id) = row.try_get::<_, Option<&[u8]>>(1)? else { continue };
            let id = document(id)?;
            match row.try_get(2)? {
                Some(kind) => {
                    let (document, kind) = (id, kind_of(kind));
                    let key = Key::Chunk { document, kind, name: row.try_get(3)? };
                    let new = New { key, bytes: row.try_get(4)?, data: row.try_get(5)? };
                    found.chunks.entry(document).or_default().push(new);
                }
                None => {
                    let mark = Mark {
                        is_deleted: row.try_get(6)?,
                        is_blocked: row.try_get(7)?,
                        generation: row.try_get(8)?,
                    };
                    found.marks.push((id, mark));
                }
            }
        }
        Ok(found)
    }

    /// Hands new chunks to the rooms of their documents. What is large is read by the rooms.
    async fn pass_on(
        &self,
        group: &Group,
        live: &impl Live,
        found: HashMap<DocumentId, Vec<New>>,
    ) -> Result<(), QueryError> {
        let (mut wanted, mut total) = (Vec::new(), 0);
        let mut all: HashMap<DocumentId, Vec<StoredChunk>> = HashMap::new();
        for (document, chunks) in found {
            if !live.wants(document) {
                continue;
            }
            self.metrics.live_rows.inc_by(chunks.len() as u64);
            let bytes: i64 = chunks.iter().map(|new| new.bytes).sum();
            let is_small = bytes <= MAX_FETCHED
                && total + bytes <= MAX_BATCH as i64
                && !chunks.iter().any(|new| new.key.is_snapshot());
            if is_small {
                total += bytes;
                for New { key, data, .. } in chunks {
                    match data {
                        Some(data) => all.entry(document).or_default().push((key, data)),
                        None => wanted.push(key),
                    }
                }
            } else {
                live.stored(document, News::Unread);
            }
        }
        for (document, chunks) in self.fetch(group, &wanted).await? {
            all.entry(document).or_default().extend(chunks);
        }
        for (document, chunks) in all {
            let news = match unpacked::of(&joined(&chunks), Origin::Peer, MAX_UNPACKED) {
                Err(NotUnpacked::TooMuch { .. }) => News::Unread,
                // The room reports a chunk that it cannot use.
                unpacked => {
                    let unpacked = unpacked.unwrap_or_default();
                    News::Chunks(StoredByAnother { chunks, unpacked })
                }
            };
            live.stored(document, news);
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    /// Reads chunks. Those that were replaced meanwhile are in what replaces them.
    async fn fetch(
        &self,
        group: &Group,
        keys: &[Key],
    ) -> Result<HashMap<DocumentId, Vec<StoredChunk>>, QueryError> {
        let mut chunks: HashMap<DocumentId, Vec<StoredChunk>> = HashMap::new();
        if keys.is_empty() {
            return Ok(chunks);
        }
        let mut wanted = (Vec::new(), Vec::new(), Vec::new());
        for (document, kind, name) in keys.iter().filter_map(columns) {
            wanted.0.push(document);
            wanted.1.push(kind);
            wanted.2.push(name);
        }
        let parameters: [&(dyn ToSql + Sync); 3] = [&wanted.0, &wanted.1, &wanted.2];
        let fetching = group.looker.client.query(&group.looker.fetch, &parameters);
        for row in self.link.run_within(group, MAX_BATCH as u64, fetching).await? {
            tokio::task::consume_budget().await;
            let (document, kind) = (document(row.try_get(0)?)?, kind_of(row.try_get(1)?));
            let key = Key::Chunk { document, kind, name: row.try_get(2)? };
            chunks.entry(document).or_default().push((key, row.try_get(3)?));
        }
        Ok(chunks)
    }

    /// Says that this relay is there, and deletes leftovers, where it is time. Nothing depends on
    /// either, so a failure only means that it is done later.
    async fn maintain(
        &self,
        follower: &mut Follower,
        group: &Group,
        describe: &impl Fn() -> Option<RelayReport>,
    ) {
        if follower.seen_at.is_none_or(|at| at.elapsed() >= SEEN_EVERY) {
            let news_ms = follower.worst_news.map(|took| took.as_millis() as u64);
            let report = describe().map(|report| RelayReport { news_ms, ..report });
            // Numbers and strings can be written as JSON.
            let report = report.and_then(|report| serde_json::to_string(&report).ok());
            let node = group.node.as_slice();
            let parameters: [&(dyn ToSql + Sync); 2] = [&node, &report];
            let seen = group.looker.client.execute(SEEN, &parameters);
            // While a commit holds the row it is tried again after the next look.
            if self.link.run_within(group, 0, seen).await.is_ok_and(|rows| rows > 0) {
                (follower.seen_at, follower.worst_news) = (Some(Instant::now()), None);
            }
        }
        if follower.swept_at.elapsed() >= SWEEP_EVERY {
            follower.swept_at = Instant::now();
            let swept = group.looker.client.batch_execute(SWEEP);
            if let Err(error) = self.link.run_within(group, 0, swept).await {
                warn!("cannot delete leftovers of deleted documents: {}", error.problem);
            }
        }
    }
}

/// The first transaction that had not begun in a snapshot, and those that were in progress, from
/// the snapshot's text.
fn transactions(snapshot: &str) -> (&str, Vec<&str>) {
    let mut parts = snapshot.split(':').skip(1);
    let (next, in_progress) = (parts.next().unwrap_or("0"), parts.next().unwrap_or_default());
    (next, in_progress.split(',').filter(|id| !id.is_empty()).collect())
}

fn next_transaction(snapshot: &str) -> u64 {
    transactions(snapshot).0.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transactions_of_a_snapshot_are_read() {
        assert_eq!(transactions("100:107:100,103"), ("107", vec!["100", "103"]));
        assert_eq!(transactions("7:7:"), ("7", vec![]));
        assert_eq!(next_transaction("100:107:100,103"), 107);
    }
}
