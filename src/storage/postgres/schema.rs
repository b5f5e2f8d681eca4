//! The tables in the database.
//!
//! They are in a schema of their own, [`SCHEMA`], and every statement names it, so that no
//! `search_path` decides what the relay reads.

use tokio_postgres::{Client, Row};

use super::error::ConnectError;

/// The schema with the tables.
pub(super) const SCHEMA: &str = "tonk_relay";

/// The advisory lock of the relay that creates or changes the tables: "tonl" in ASCII.
const LOCK: i64 = 0x746f_6e6c;

/// The statements that lead from each version of the tables to the next: the first ones make them.
/// A step must leave the tables usable by the release before it.
const STEPS: [&str; 4] = [CREATE, SEVERAL_RELAYS, TOKENS, REPORTS];

/// The version of the tables that this program uses. A relay refuses a newer one.
pub(super) const FORMAT: i32 = version(STEPS.len());

/// Creates the tables of version 1.
///
/// - `chunk`: the chunks. `kind` is `writer::kind_number`. The data is already
///   compressed, so it is stored as it is. A chunk in quarantine stays in the table, with the
///   reason.
/// - `document`: documents that were deleted or are blocked. Others have no row.
/// - `import`: uploaded bundles whose documents were merged into storage.
/// - `writer`: the name with which the relay writes, and how often it has.
///
/// The tables grow and shrink quickly, so they are vacuumed more often than PostgreSQL would.
const CREATE: &str = "
create schema if not exists tonk_relay;
create table tonk_relay.meta (
    only_row boolean primary key default true check (only_row),
    format integer not null,
    storage_id text
);
insert into tonk_relay.meta (format) values (1);
create table tonk_relay.writer (
    only_row boolean primary key default true check (only_row),
    name bytea not null,
    writes bigint not null
);
insert into tonk_relay.writer (name, writes) values ('', 0);
create table tonk_relay.document (
    document bytea primary key,
    deleted_at timestamptz,
    deleted_reason text,
    blocked_at timestamptz,
    blocked_reason text
);
create table tonk_relay.chunk (
    document bytea not null,
    kind smallint not null,
    name text not null,
    data bytea not null,
    quarantined_at timestamptz,
    quarantine_reason text,
    primary key (document, kind, name)
);
create index on tonk_relay.chunk (document) where quarantined_at is not null;
alter table tonk_relay.chunk alter column data set storage external;
alter table tonk_relay.chunk set (
    autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02
);
create table tonk_relay.import (
    bundle bytea primary key,
    etag text not null,
    documents bytea[] not null
);
";

/// Adds what several relays need, and leads to version 2.
///
/// - `meta.oldest_writer`: the oldest version that a program may know and still write. Every write
///   checks it.
/// - `node`: one run of a relay, by a random id: the `connection` with which it writes, how often it
///   has written, and when it was last there.
/// - `incarnation`: one row, which is empty after a crash of the server and on a promoted standby:
///   the table is unlogged. A relay that finds it empty adds the row.
/// - `generation`: how often a document was deleted. Chunks of an earlier generation are no longer part of
///   it.
/// - `xid`: the transaction that wrote the row, by which others find what is new.
/// - `chunk.node`: who wrote it.
///
/// The table `writer` stays for relays of version 1, which may still be running.
const SEVERAL_RELAYS: &str = "
alter table tonk_relay.meta add column oldest_writer integer not null default 1;
create table tonk_relay.node (
    id bytea primary key,
    connection bytea not null,
    writes bigint not null default 0,
    host text not null,
    version text not null,
    seen timestamptz not null default now()
);
create unlogged table tonk_relay.incarnation (
    only_row boolean primary key default true check (only_row),
    id uuid not null
);
alter table tonk_relay.document
    add column generation bigint not null default 0,
    add column xid xid8 not null default pg_current_xact_id();
update tonk_relay.document set generation = 1 where deleted_at is not null;
create index on tonk_relay.document (xid);
alter table tonk_relay.chunk
    add column generation bigint not null default 0,
    add column xid xid8 not null default pg_current_xact_id(),
    add column node bytea;
create index on tonk_relay.chunk (xid);
";

/// Adds the tokens of all relays, and leads to version 3. Relays of version 2 do not know them.
///
/// `entry` is the token as JSON. A token that was removed stays for a while, so that others find it.
const TOKENS: &str = "
create table tonk_relay.token (
    sha256 text primary key,
    entry text not null,
    removed_at timestamptz,
    xid xid8 not null default pg_current_xact_id()
);
create index on tonk_relay.token (xid);
";

/// Adds what relays say about themselves, and leads to version 4. Relays of version 3 say nothing.
///
/// `name` is the relay's peer id, and `report` a `RelayReport` as JSON.
const REPORTS: &str = "
alter table tonk_relay.node add column name text not null default '', add column report text;
";

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "there are few")]
const fn version(steps: usize) -> i32 {
    steps as i32
}

/// The version of tables, or 0 if there are none.
pub(super) async fn format(client: &Client) -> Result<i32, tokio_postgres::Error> {
    if !exist(client).await? {
        return Ok(0);
    }
    client.query_one("select format from tonk_relay.meta", &[]).await?.try_get(0)
}

/// The statements that bring tables of this version to the one of this program, in one transaction.
/// None if they have it, or a newer one.
pub(super) fn steps_from(format: i32) -> Option<String> {
    steps(&STEPS, format)
}

fn steps(all: &[&str], format: i32) -> Option<String> {
    let done = usize::try_from(format).unwrap_or(0);
    let missing = all.get(done..).filter(|missing| !missing.is_empty())?;
    let to = version(all.len());
    Some(format!("{}\nupdate tonk_relay.meta set format = {to};\n", missing.concat()))
}

/// Checks that the tables can be used. Returns whether they have to be created, or brought to the
/// version of this program, by [`make`].
pub(super) async fn is_missing(client: &Client) -> Result<bool, ConnectError> {
    check(client).await?;
    Ok(steps_from(format(client).await?).is_some())
}

/// Creates the tables, or brings them to the version of this program. This takes longer if they are
/// large.
pub(super) async fn make(client: &Client) -> Result<(), ConnectError> {
    // One relay does it, all or nothing.
    client.batch_execute("begin").await?;
    client.query("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    if let Some(steps) = steps_from(format(client).await?) {
        client.batch_execute(&steps).await.map_err(ConnectError::NoTables)?;
    }
    client.batch_execute("commit").await?;
    Ok(())
}

/// Checks that the tables can be used, or created if there are none.
pub(super) async fn check(client: &Client) -> Result<(), ConnectError> {
    if !exist(client).await? {
        return may_change(client, 0).await;
    }
    // Without rights not even the version can be read.
    if let Some((role, table)) = lacking_rights(client, None).await? {
        return Err(ConnectError::NoRights { role, table });
    }
    let found = format(client).await?;
    match found {
        FORMAT => Ok(()),
        ..FORMAT => may_change(client, found).await,
        _ => {
            let oldest = "select oldest_writer from tonk_relay.meta";
            let oldest: i32 = client.query_one(oldest, &[]).await?.try_get(0)?;
            if oldest <= FORMAT {
                return Ok(());
            }
            Err(ConnectError::NewerFormat { found, known: FORMAT })
        }
    }
}

/// A role, and a table that it may not read and write, if there is one. The role is that of this
/// connection if none is named; one that is named must exist.
pub(super) async fn lacking_rights(
    client: &Client,
    role: Option<&str>,
) -> Result<Option<(String, String)>, tokio_postgres::Error> {
    let lacking = "select role, class.relname::text \
                   from (select coalesce($2::text, current_user::text) as role) as asked, \
                       pg_class as class join pg_namespace as space \
                       on space.oid = class.relnamespace \
                   where space.nspname = $1 and class.relkind = 'r' and not ( \
                       has_schema_privilege(role, space.oid, 'usage') \
                       and has_table_privilege(role, class.oid, 'select') \
                       and has_table_privilege(role, class.oid, 'insert') \
                       and has_table_privilege(role, class.oid, 'update') \
                       and has_table_privilege(role, class.oid, 'delete'))";
    let read = |row: &Row| {
        let table: String = row.try_get(1)?;
        Ok((row.try_get(0)?, format!("{SCHEMA}.{table}")))
    };
    client.query(lacking, &[&SCHEMA, &role]).await?.first().map(read).transpose()
}

async fn exist(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let exist = "select exists (select from pg_class as class \
                 join pg_namespace as space on space.oid = class.relnamespace \
                 where space.nspname = $1 and class.relname = 'meta')";
    client.query_one(exist, &[&SCHEMA]).await?.try_get(0)
}

/// Checks that this role may bring the tables of version `format` to that of this program: in an
/// empty database by its rights there, later as the owner of the tables.
async fn may_change(client: &Client, format: i32) -> Result<(), ConnectError> {
    let may = "select case when $1 = 0 then has_database_privilege(current_database(), 'create') \
               else (select pg_has_role(relowner, 'usage') from pg_class \
                   where oid = to_regclass('tonk_relay.meta')) end, \
               quote_ident(current_user)";
    let row = client.query_one(may, &[&format]).await?;
    match format {
        _ if row.try_get(0)? => Ok(()),
        0 => Err(ConnectError::MayNotCreate { role: row.try_get(1)? }),
        found => Err(ConnectError::OlderFormat { found, needed: FORMAT }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::postgres::statements;

    #[test]
    fn writes_check_the_version_of_this_program() {
        let checked = format!("(select oldest_writer from tonk_relay.meta) <= {FORMAT} ");
        for statement in [statements::WRITE, statements::DELETE] {
            assert!(statement.contains(&checked), "{statement}");
        }
    }

    #[test]
    fn only_missing_steps_are_made() {
        let all = ["first;", "second;", "third;"];
        let two = "second;third;\nupdate tonk_relay.meta set format = 3;\n";
        assert_eq!(steps(&all, 1).as_deref(), Some(two));
        assert!(steps(&all, 0).is_some_and(|steps| steps.starts_with("first;second;third;")));
        assert_eq!((steps(&all, 3), steps(&all, 4)), (None, None));
    }
}
