//! What an operator should know of a database: the server, how safe it is, its size, and what is
//! amiss.

use std::collections::BTreeSet;

use serde::Serialize;
use tokio_postgres::{Client, Row, error::SqlState};

use super::{checks, connection::Server, error::ConnectError, schema};
use crate::storage::relay_report::SeenRelay;

/// A transaction that is open for longer keeps deleted rows on the disk.
const LONG_TRANSACTION: i64 = 3600;
/// So do this many dead rows, if they are more than the living ones.
const DEAD_ROWS: i64 = 10_000;
/// The server stops writing at about 2.1 billion transactions without a vacuum (section 25.1.5 of
/// PostgreSQL's manual).
const OLD_XIDS: i32 = 1_000_000_000;

/// A database, as `tonk-relay cluster status` shows it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The database.
    pub database: String,
    /// The version of PostgreSQL.
    pub server: String,
    /// When the server was started, in RFC 3339.
    pub started_at: String,
    /// The relays that were there within the last minute.
    pub relays: Vec<SeenRelay>,
    /// The version of the tables; 0 if there are none. None if this role may not read it.
    pub format: Option<i32>,
    /// The version that this program uses.
    pub needed_format: i32,
    /// Settings that decide what a crash, or the loss of a server, can lose.
    pub durability: Vec<Setting>,
    /// Its standbys that are connected.
    pub standbys: Vec<Standby>,
    /// Connections to the server, and the most that there may be.
    pub connections: (i64, i32),
    /// Bytes of the database on the disk.
    pub bytes: i64,
    /// Rows of the table `chunk`: living and dead ones, as the server estimates them.
    pub chunks: (i64, i64),
    /// Seconds since the oldest transaction of the server began, of those that this role may see.
    pub oldest_transaction: i64,
    /// Whether this role may see the transactions and standbys of others.
    pub sees_all: bool,
    /// What is amiss, and what to do.
    pub problems: Vec<String>,
}

/// A setting of the server.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A standby.
#[derive(Debug, Serialize)]
pub struct Standby {
    /// Its name, or what it is called if this role may not see it.
    pub name: String,
    /// Whether a commit waits for it: `sync`, `quorum`, `potential` or `async`.
    pub kind: String,
    /// How many bytes of the log it has not written yet.
    pub behind_bytes: i64,
}

impl Server {
    /// Looks at the database, which a relay may be using.
    pub(super) async fn report(&self, name: String) -> Result<Report, ConnectError> {
        self.with_one(async |client| look(client, name).await).await
    }
}

async fn look(client: &Client, database: String) -> Result<Report, ConnectError> {
    let general = "select current_setting('server_version'), \
                   to_char(pg_postmaster_start_time() at time zone 'UTC', \
                       'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
                   pg_database_size(current_database()), \
                   pg_has_role('pg_read_all_stats', 'usage'), \
                   (select sum(numbackends)::bigint from pg_stat_database), \
                   current_setting('max_connections')::int, \
                   (select coalesce(max(extract(epoch from now() - xact_start)), 0)::bigint \
                       from pg_stat_activity where pid <> pg_backend_pid()), \
                   (select age(datfrozenxid) from pg_database \
                       where datname = current_database())";
    let row = client.query_one(general, &[]).await?;
    let (live, dead) = chunks(client).await?;
    let format = match schema::format(client).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => None,
        format => Some(format?),
    };
    let mut report = Report {
        database,
        server: row.try_get(0)?,
        started_at: row.try_get(1)?,
        relays: if format >= Some(schema::FORMAT) { relays(client).await? } else { Vec::new() },
        format,
        needed_format: schema::FORMAT,
        durability: settings(client).await?,
        standbys: standbys(client).await?,
        connections: (row.try_get(4)?, row.try_get(5)?),
        bytes: row.try_get(2)?,
        chunks: (live, dead),
        oldest_transaction: row.try_get(6)?,
        sees_all: row.try_get(3)?,
        problems: Vec::new(),
    };
    let mut problems = Vec::new();
    let has_connections = checks::has_connections(client).await;
    for checked in [checks::check(client).await, has_connections, schema::check(client).await] {
        match checked {
            Err(error @ ConnectError::Postgres(_)) => return Err(error),
            checked => problems.extend(checked.err().map(|error| error.to_string())),
        }
    }
    problems.extend(report.weak_settings());
    problems.extend(differences(&report.relays));
    problems.extend(report.long_transaction());
    if dead > DEAD_ROWS && dead > live {
        problems.push(format!(
            "the table tonk_relay.chunk has {dead} dead rows and {live} living ones: autovacuum \
             does not keep up; look for an old transaction or a replication slot that nobody reads"
        ));
    }
    let age: i32 = row.try_get(7)?;
    if age > OLD_XIDS {
        problems.push(format!(
            "the database has not been vacuumed for {age} transactions, and at 2.1 billion the \
             server stops writing: run `vacuum` in it"
        ));
    }
    problems.extend(failing_archive(client).await?);
    report.problems = problems;
    Ok(report)
}

impl Report {
    fn weak_settings(&self) -> Option<String> {
        let value = |name: &str| {
            let setting = self.durability.iter().find(|setting| setting.name == name);
            setting.map_or("", |setting| &setting.value)
        };
        if value("full_page_writes") == "off" {
            return Some(
                "the setting full_page_writes is off, with which a crash can damage tables; \
                 expected on"
                    .to_owned(),
            );
        }
        let names = value("synchronous_standby_names");
        let waits_for = value("synchronous_commit");
        (!names.is_empty() && waits_for == "local").then(|| {
            format!(
                "synchronous_standby_names is {names}, and synchronous_commit is local, so no \
                 commit waits for a standby; expected on"
            )
        })
    }

    fn long_transaction(&self) -> Option<String> {
        let seconds = self.oldest_transaction;
        (seconds > LONG_TRANSACTION).then(|| {
            format!(
                "a transaction has been open for {} minutes, so deleted rows stay on the disk: \
                 select * from pg_stat_activity order by xact_start",
                seconds / 60
            )
        })
    }
}

/// What should be the same at all relays, and is not.
fn differences(relays: &[SeenRelay]) -> Vec<String> {
    let mut found = Vec::new();
    let versions: BTreeSet<&str> = relays.iter().map(|relay| relay.version.as_str()).collect();
    if versions.len() > 1 {
        let versions = Vec::from_iter(versions).join(", ");
        found.push(format!("relays have different versions, {versions}: upgrade all of them"));
    }
    let reports = relays.iter().filter_map(|relay| relay.report.as_ref());
    let bundles: BTreeSet<_> = reports.map(|report| &report.bundle).collect();
    if bundles.len() > 1 {
        found.push(
            "relays serve different bundles: give all of them the same file at bundle.path"
                .to_owned(),
        );
    }
    let names: BTreeSet<&str> = relays.iter().map(|relay| relay.name.as_str()).collect();
    if names.len() < relays.len() {
        found.push(
            "two relays have the same name, or one was just restarted after a crash: each needs a \
             sync.peer_id of its own"
                .to_owned(),
        );
    }
    found
}

/// The relays that were there within the last minute. None if this role may not read of them.
async fn relays(client: &Client) -> Result<Vec<SeenRelay>, tokio_postgres::Error> {
    let relays = "select coalesce(nullif(name, ''), host), version, \
                      extract(epoch from now() - seen)::float8, report \
                  from tonk_relay.node where seen > now() - interval '1 minute' order by 1, id";
    let relay = |row: &Row| {
        let (name, version): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        Ok(SeenRelay::new(name, version, row.try_get(2)?, row.try_get(3)?))
    };
    match client.query(relays, &[]).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(Vec::new()),
        found => found?.iter().map(relay).collect(),
    }
}

/// Living and dead rows of the table with the chunks, as far as the server has counted them.
async fn chunks(client: &Client) -> Result<(i64, i64), tokio_postgres::Error> {
    let counts = "select n_live_tup, n_dead_tup from pg_stat_all_tables \
                  where schemaname = $1 and relname = 'chunk'";
    match client.query_opt(counts, &[&schema::SCHEMA]).await? {
        None => Ok((0, 0)),
        Some(row) => Ok((row.try_get(0)?, row.try_get(1)?)),
    }
}

async fn settings(client: &Client) -> Result<Vec<Setting>, tokio_postgres::Error> {
    let settings = "select name, setting from pg_settings where name in ('fsync', \
                    'synchronous_commit', 'synchronous_standby_names', 'full_page_writes', \
                    'data_checksums', 'archive_mode') order by name";
    let setting = |row: &Row| Ok(Setting { name: row.try_get(0)?, value: row.try_get(1)? });
    client.query(settings, &[]).await?.iter().map(setting).collect()
}

async fn standbys(client: &Client) -> Result<Vec<Standby>, tokio_postgres::Error> {
    let standbys = "select coalesce(application_name, 'not shown to this role'), \
                    coalesce(sync_state, ''), \
                    coalesce(pg_current_wal_lsn() - flush_lsn, 0)::bigint \
                    from pg_stat_replication order by application_name";
    // A standby has no end of the log to compare with.
    let is_standby: bool = client.query_one("select pg_is_in_recovery()", &[]).await?.try_get(0)?;
    if is_standby {
        return Ok(Vec::new());
    }
    let standby = |row: &Row| {
        Ok(Standby { name: row.try_get(0)?, kind: row.try_get(1)?, behind_bytes: row.try_get(2)? })
    };
    client.query(standbys, &[]).await?.iter().map(standby).collect()
}

async fn failing_archive(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let failing = "select last_failed_wal, failed_count from pg_stat_archiver \
                   where last_failed_time > coalesce(last_archived_time, '-infinity')";
    let failing = client.query_opt(failing, &[]).await?;
    failing
        .map(|row| {
            let (file, count): (Option<String>, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok(format!(
                "the server cannot archive its log (failed {count} times, last for {}): the disk \
                 fills up, and a restore to a point in time lacks what is not archived",
                file.unwrap_or_default()
            ))
        })
        .transpose()
}
