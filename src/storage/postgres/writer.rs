//! The task that commits changes, and then notifies their savers. Large chunks bypass it:
//! `chunk_store` writes each over a connection of its own.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};
use tokio_postgres::{Client, Row, Statement, types::ToSql};
use tracing::{error, warn};

use super::{
    connection::Group,
    error::QueryError,
    link::{Link, RETRY},
};
use crate::{
    base::backoff::Backoff,
    document::chunk::{ChunkKind, Key},
    observe::metrics::StorageMetrics,
    storage::{Basis, StorageError},
};

/// The most changes of a commit, and the most that wait for the next one.
pub(super) const BATCH: usize = 1024;
/// The most bytes of a commit.
pub(super) const MAX_BATCH: usize = 8 << 20;

/// A request to the writer, for its next commit.
pub(super) struct Request {
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<Outcome, StorageError>>,
}

/// A change of chunks.
#[derive(Clone)]
pub(super) struct Change {
    /// The chunk to store, if there is one.
    pub(super) put: Option<(Key, Bytes)>,
    /// The chunks to delete.
    pub(super) delete: Vec<Key>,
    /// What it builds on.
    pub(super) basis: Basis,
    /// The only connections over which it may be made, by their name, if it matters.
    pub(super) only_over: Option<Vec<u8>>,
}

/// The number of a kind in the column `kind`: snapshots first.
pub(super) fn kind_number(kind: ChunkKind) -> i16 {
    match kind {
        ChunkKind::Snapshot => 0,
        ChunkKind::Incremental => 1,
    }
}

/// The kind with this number.
pub(super) fn kind_of(number: i16) -> ChunkKind {
    if number == 0 { ChunkKind::Snapshot } else { ChunkKind::Incremental }
}

/// The parts of a key as columns, or nothing for a key that is not a chunk's.
pub(super) fn columns(key: &Key) -> Option<(&[u8], i16, &str)> {
    match key {
        Key::Chunk { document, kind, name } => {
            Some((document.as_bytes(), kind_number(*kind), name))
        }
        Key::StorageId => None,
    }
}

/// Commits changes in batches.
pub(super) struct Writer {
    pub(super) link: Arc<Link>,
    /// The shortest time between commits.
    pub(super) interval: Duration,
    pub(super) metrics: StorageMetrics,
}

impl Writer {
    pub(super) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::new();
        let mut next = Instant::now();
        while !waiting.is_empty() || requests.recv_many(&mut waiting, BATCH).await > 0 {
            // The first change after a pause is committed at once. Later ones are collected for an
            // interval.
            while waiting.len() < BATCH {
                let more = requests.recv_many(&mut waiting, BATCH);
                if timeout_at(next, more).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            next = Instant::now() + self.interval;
            let rest = waiting.split_off(batch_length(&waiting));
            self.commit(std::mem::replace(&mut waiting, rest)).await;
        }
    }

    /// Commits a batch. If the database refuses it, commits each of its changes alone, so that only
    /// those fail that are refused.
    async fn commit(&self, batch: Vec<Request>) {
        let changes: Vec<&Change> = batch.iter().map(|request| &request.change).collect();
        let results = match self.write(&changes).await {
            Ok(results) => results,
            Err(error) if batch.len() == 1 => vec![Err(error)],
            Err(error) => {
                if !error.is_outdated() {
                    error!(
                        "the database refuses changes; committing each by itself: {}",
                        error.problem
                    );
                }
                let mut results = Vec::new();
                for change in changes {
                    let written = self.write(&[change]).await;
                    results
                        .push(written.and_then(|mut only| only.pop().unwrap_or(Ok(Outcome::Made))));
                }
                results
            }
        };
        for (Request { done, .. }, result) in batch.into_iter().zip(results) {
            let failed = |error: QueryError| error.into_storage("write to", self.link.database());
            let _ = done.send(result.map_err(failed));
        }
    }

    async fn write(
        &self,
        changes: &[&Change],
    ) -> Result<Vec<Result<Outcome, QueryError>>, QueryError> {
        let written = write(&self.link, false, changes).await?;
        self.metrics.commits.inc();
        let chunks = changes.iter().filter(|change| change.put.is_some()).count();
        self.metrics.committed_chunks.inc_by(chunks as u64);
        Ok(written.results)
    }
}

/// What has become of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was made.
    Made,
    /// Another chunk is stored under its key, and nothing was changed.
    KeyTaken,
}

/// Changes that a statement has made.
pub(super) struct Written {
    /// The name of the connections over which it was made.
    pub(super) connection: Vec<u8>,
    /// For each change, what has become of it.
    pub(super) results: Vec<Result<Outcome, QueryError>>,
}

/// Writes changes with one statement, and repeats it until the database has confirmed or refused
/// it. Waits while the database is away.
pub(super) async fn write(
    link: &Link,
    is_large: bool,
    changes: &[&Change],
) -> Result<Written, QueryError> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut failing = None;
    loop {
        let group = link.connected().await;
        if !changes.iter().all(|change| change.is_made_over(&group)) {
            return Err(QueryError::outdated());
        }
        // One large chunk at a time, and no deletion meanwhile: neither waits for longer than one
        // attempt.
        let turn = if is_large { Some(link.large.lock().await) } else { None };
        let (client, statement) = match is_large {
            false => (&group.writer, &group.write),
            true => (&group.large, &group.write_large),
        };
        let before = group.confirmed.load(Ordering::SeqCst);
        let bytes = changes.iter().map(|change| change.size() as u64).sum();
        let writing = send(client, statement, &group.name, changes);
        let answered = link.run_within(&group, bytes, writing).await;
        let confirmed = answered.and_then(|row| {
            group.confirmed_by(&row, before, !is_large)?;
            Ok((row.try_get::<_, Vec<i64>>(2)?, row.try_get::<_, Vec<i64>>(3)?))
        });
        match confirmed {
            Ok((not_admitted, there_before)) => {
                link.has_written();
                let results = changes.iter().zip(numbers(changes)).map(|(change, n)| match n {
                    Some(n) if not_admitted.contains(&n) => Err(QueryError::deleted()),
                    // An increment's name is made of all that it holds.
                    Some(n) if there_before.contains(&n) && change.is_snapshot() => {
                        Ok(Outcome::KeyTaken)
                    }
                    _ => Ok(Outcome::Made),
                });
                let results = results.collect();
                return Ok(Written { connection: group.name.clone(), results });
            }
            Err(error) if error.is_passing() => {
                if failing.is_none() {
                    warn!("cannot write to the database yet; retrying: {}", error.problem);
                }
                failing = Some(link.failing(&error));
            }
            Err(error) => return Err(error),
        }
        drop(turn);
        sleep(backoff.pause()).await;
    }
}

/// For each change, the number of its chunk among all of them, counted from 1, if it has one.
fn numbers(changes: &[&Change]) -> impl Iterator<Item = Option<i64>> {
    changes.iter().scan(0, |last, change| {
        Some(change.put.is_some().then(|| {
            *last += 1;
            *last
        }))
    })
}

async fn send(
    client: &Client,
    statement: &Statement,
    name: &[u8],
    changes: &[&Change],
) -> Result<Row, tokio_postgres::Error> {
    let mut new = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut gone = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (change, number) in changes.iter().zip(numbers(changes)) {
        if let Some((key, data)) = &change.put
            && let Some((document, kind, name)) = columns(key)
        {
            new.0.push(document);
            new.1.push(kind);
            new.2.push(name);
            new.3.push(&**data);
            new.4.push(change.basis.generation);
        }
        for (document, kind, name) in change.delete.iter().filter_map(columns) {
            gone.0.push(document);
            gone.1.push(kind);
            gone.2.push(name);
            gone.3.push(number.unwrap_or(0));
        }
    }
    let new: [&(dyn ToSql + Sync); 6] = [&name, &new.0, &new.1, &new.2, &new.3, &new.4];
    let gone: [&(dyn ToSql + Sync); 4] = [&gone.0, &gone.1, &gone.2, &gone.3];
    client.query_one(statement, &[new.as_slice(), &gone].concat()).await
}

impl Change {
    fn is_snapshot(&self) -> bool {
        self.put.as_ref().is_some_and(|(key, _)| key.is_snapshot())
    }

    fn size(&self) -> usize {
        self.put.as_ref().map_or(0, |(_, data)| data.len())
    }

    /// Whether it may be made over these connections.
    fn is_made_over(&self, group: &Group) -> bool {
        self.basis.losses == group.losses
            && self.only_over.as_ref().is_none_or(|name| *name == group.name)
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.put.iter().map(|(key, _)| key).chain(&self.delete)
    }
}

/// How many of these requests one statement can carry out: it cannot change a row twice.
fn batch_length(waiting: &[Request]) -> usize {
    let (mut keys, mut bytes) = (HashSet::new(), 0);
    for (n, Request { change, .. }) in waiting.iter().enumerate() {
        bytes += change.size();
        let is_full = n == BATCH || (n > 0 && bytes > MAX_BATCH);
        if is_full || change.keys().any(|key| keys.contains(key)) {
            return n.max(1);
        }
        keys.extend(change.keys());
    }
    waiting.len()
}
