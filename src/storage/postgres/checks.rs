//! What is checked of a server before a relay uses it.

use tokio_postgres::Client;

use super::error::ConnectError;

/// The oldest supported version of PostgreSQL, as in `server_version_num`.
pub(super) const OLDEST: i32 = 150_000;
/// Connections of a relay that only read.
pub(super) const READERS: usize = 4;
/// All connections of a relay: those that read, two that write, one that looks for what is new, and
/// one for hints.
const CONNECTIONS: usize = READERS + 4;
/// A setting of every connection, as PostgreSQL shows it.
const LOCK_TIMEOUT: &str = "2s";
/// The advisory lock of the relays that use the database: "tonk" in ASCII. They share it; a relay
/// of the tables' version 1 takes it for itself.
const LOCK: i64 = 0x746f_6e6b;

/// Checks that what the server confirms is durable, and that statements reach it as they are sent.
pub(super) async fn check(client: &Client) -> Result<(), ConnectError> {
    let settings = "select current_setting('server_version_num')::int, \
                    current_setting('server_version'), current_setting('fsync'), \
                    current_setting('synchronous_commit'), current_setting('lock_timeout'), \
                    current_setting('server_encoding'), \
                    pg_is_in_recovery() or current_setting('transaction_read_only')::bool";
    let row = client.query_one(settings, &[]).await?;
    if row.try_get::<_, i32>(0)? < OLDEST {
        return Err(ConnectError::TooOld(row.try_get(1)?));
    }
    if row.try_get::<_, &str>(4)? != LOCK_TIMEOUT {
        return Err(ConnectError::Pooled);
    }
    for (column, setting) in [(2, "fsync"), (3, "synchronous_commit")] {
        let found: &str = row.try_get(column)?;
        if found == "off" {
            return Err(ConnectError::NotDurable { setting, found: found.to_owned() });
        }
    }
    let encoding: String = row.try_get(5)?;
    if encoding != "UTF8" {
        return Err(ConnectError::Encoding(encoding));
    }
    if row.try_get(6)? {
        return Err(ConnectError::ReadOnly);
    }
    Ok(())
}

/// Checks that the server has room for the connections of a relay.
pub(super) async fn has_connections(client: &Client) -> Result<(), ConnectError> {
    let limits = "select rolconnlimit, 'the role ' || rolname from pg_roles \
                  where rolname = current_user union all \
                  select datconnlimit, 'the database ' || datname from pg_database \
                  where datname = current_database() union all \
                  select current_setting('max_connections')::int \
                      - current_setting('superuser_reserved_connections')::int, \
                      'max_connections, less those for superusers'";
    let needed = i32::try_from(CONNECTIONS).unwrap_or(i32::MAX);
    for row in client.query(limits, &[]).await? {
        let allowed: i32 = row.try_get(0)?;
        // A negative one is none.
        if (0..needed).contains(&allowed) {
            return Err(ConnectError::FewConnections { allowed, by: row.try_get(1)?, needed });
        }
    }
    Ok(())
}

/// Shares the lock of the relays that use the database. It is released with the connection.
pub(super) async fn share_lock(client: &Client) -> Result<(), ConnectError> {
    let locked = client.query_one("select pg_try_advisory_lock_shared($1)", &[&LOCK]).await?;
    if locked.try_get(0)? {
        return Ok(());
    }
    let holder = lock_holder(client).await?;
    Err(ConnectError::InUse { from: holder.unwrap_or_else(|| "unknown".to_owned()) })
}

/// The connection that holds the lock of the relay that uses the database, if one does.
async fn lock_holder(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    // Its address is empty at a Unix socket.
    // All of it is hidden for a connection of another role.
    let holder = "select coalesce(coalesce(host(client_addr), 'this machine') || ', since ' || \
                  to_char(backend_start at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') || \
                  ', server process ' || pid, 'another role') from pg_locks join pg_stat_activity using (pid) \
                  where locktype = 'advisory' and granted and objsubid = 1 \
                  and (classid::bigint << 32 | objid::bigint) = $1 \
                  and pg_locks.database = (select oid from pg_database \
                      where datname = current_database())";
    let row = client.query_opt(holder, &[&LOCK]).await?;
    row.map(|row| row.try_get(0)).transpose().map(Option::flatten)
}

/// Checks that a connection is to the server on which this relay writes as `name`, and not to a
/// standby of it, or to another server of the same host name.
pub(super) async fn is_same_server(client: &Client, name: &[u8]) -> Result<(), ConnectError> {
    let statement = "select not pg_is_in_recovery() and exists (\
                     select from tonk_relay.node where connection = $1)";
    let row = client.query_one(statement, &[&name]).await?;
    if row.try_get(0)? { Ok(()) } else { Err(ConnectError::OtherServer) }
}
