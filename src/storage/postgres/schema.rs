//! The tables in the database.
//!
//! They are in a schema of their own, [`SCHEMA`], and every statement names it, so that no
//! `search_path` decides what the relay reads.

use tokio_postgres::Client;

use super::error::ConnectError;

/// The version of the tables. A relay refuses a newer one.
const FORMAT: i32 = 1;

/// The schema with the tables.
pub(super) const SCHEMA: &str = "tonk_relay";

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

/// Creates the tables if there are none, and checks that they can be used.
pub(super) async fn prepare(client: &Client) -> Result<(), ConnectError> {
    if !exist(client).await? {
        may_create(client).await?;
        // All or nothing: a batch is one transaction.
        client.batch_execute(CREATE).await.map_err(ConnectError::NoTables)?;
    }
    check(client).await
}

/// Checks that the tables can be used, or created if there are none.
pub(super) async fn check(client: &Client) -> Result<(), ConnectError> {
    if !exist(client).await? {
        return may_create(client).await;
    }
    let rights = "select quote_ident(current_user), class.relname::text from pg_class as class \
                  join pg_namespace as space on space.oid = class.relnamespace \
                  where space.nspname = $1 and class.relkind = 'r' and not ( \
                      has_schema_privilege(space.oid, 'usage') \
                      and has_table_privilege(class.oid, 'select') \
                      and has_table_privilege(class.oid, 'insert') \
                      and has_table_privilege(class.oid, 'update') \
                      and has_table_privilege(class.oid, 'delete'))";
    if let Some(row) = client.query(rights, &[&SCHEMA]).await?.first() {
        let (role, table): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        return Err(ConnectError::NoRights { role, table: format!("{SCHEMA}.{table}") });
    }
    let format: i32 =
        client.query_one("select format from tonk_relay.meta", &[]).await?.try_get(0)?;
    if format > FORMAT {
        return Err(ConnectError::NewerFormat { found: format, known: FORMAT });
    }
    Ok(())
}

async fn exist(client: &Client) -> Result<bool, ConnectError> {
    let exist = "select exists (select from pg_class as class \
                 join pg_namespace as space on space.oid = class.relnamespace \
                 where space.nspname = $1 and class.relname = 'meta')";
    Ok(client.query_one(exist, &[&SCHEMA]).await?.try_get(0)?)
}

async fn may_create(client: &Client) -> Result<(), ConnectError> {
    let may = "select has_database_privilege(current_database(), 'create'), \
               quote_ident(current_user), quote_ident(current_database())";
    let row = client.query_one(may, &[]).await?;
    if row.try_get(0)? {
        return Ok(());
    }
    Err(ConnectError::MayNotCreate { role: row.try_get(1)?, database: row.try_get(2)? })
}
