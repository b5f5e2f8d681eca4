//! The statements.
//!
//! The first columns of every change are those of [`WRITE`]. A third one tells whether it has changed
//! anything.

/// Stores chunks (parameters 2 to 5), and deletes those that they replace (6 to 8), if the relay
/// still writes as `$1`. Nothing is stored of deleted documents. All in one statement, which is a
/// transaction of its own.
///
/// Returns the number of the write, or null if the relay may not write any more, and whether the
/// commit is durable. Rows are sorted, so that two writes never wait for each other.
macro_rules! write_if {
    ($allowed:literal) => {
        concat!(
            "with allowed as (",
            $allowed,
            "), stored as (
                insert into tonk_relay.chunk (document, kind, name, data)
                select document, kind, name, data
                from unnest($2::bytea[], $3::smallint[], $4::text[], $5::bytea[])
                    as new (document, kind, name, data)
                where exists (select from allowed) and not exists (
                    select from tonk_relay.document as marked
                    where marked.document = new.document and marked.deleted_at is not null
                )
                order by document, kind, name
                on conflict (document, kind, name) do update
                    set data = excluded.data, quarantined_at = null, quarantine_reason = null
            ), replaced as (
                delete from tonk_relay.chunk as old
                using unnest($6::bytea[], $7::smallint[], $8::text[])
                    as gone (document, kind, name)
                where (old.document, old.kind, old.name) = (gone.document, gone.kind, gone.name)
                    and old.quarantined_at is null and exists (select from allowed)
            )
            select (select writes from allowed), current_setting('synchronous_commit') <> 'off'"
        )
    };
}

/// Writes small chunks. It waits for an earlier write, and the next connection's name waits for it.
pub(super) const WRITE: &str =
    write_if!("update tonk_relay.writer set writes = writes + 1 where name = $1 returning writes");

/// Writes a large chunk, while others write small ones. So it may still be made when a later
/// connection writes: it then stores what is stored again or was replaced, which is harmless.
/// A small write must follow over the same connections, which is counted.
pub(super) const WRITE_LARGE: &str =
    write_if!("select writes from tonk_relay.writer where name = $1 for key share");

/// Bytes of the chunks of the document `$1`.
pub(super) const SIZE: &str = "select coalesce(sum(octet_length(data)), 0)::bigint \
                               from tonk_relay.chunk \
                               where document = $1 and quarantined_at is null";
/// The chunks of the document `$1`.
pub(super) const LOAD: &str = "select kind, name, data from tonk_relay.chunk \
                               where document = $1 and quarantined_at is null order by kind, name";

/// The time of a column, in RFC 3339.
macro_rules! rfc3339 {
    ($column:literal) => {
        concat!("to_char(", $column, " at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
    };
}

/// A change, which is made only if the relay still writes as `$1`, from the parts of its statement
/// that make it, and the columns that it returns after those of [`WRITE`].
macro_rules! guarded {
    ($change:literal) => {
        guarded!(@ $change, "")
    };
    ($change:literal, $columns:expr) => {
        guarded!(@ $change, concat!(", ", $columns))
    };
    (@ $change:literal, $columns:expr) => {
        concat!(
            "with allowed as (update tonk_relay.writer set writes = writes + 1 \
             where name = $1 returning writes)",
            $change,
            " select (select writes from allowed), current_setting('synchronous_commit') <> 'off'",
            $columns
        )
    };
}

pub(super) const DELETE: &str = guarded!(
    ", marked as (
        insert into tonk_relay.document as mark (document, deleted_at, deleted_reason)
        select $2, $3::text::timestamptz, $4 where exists (select from allowed)
        on conflict (document) do update set deleted_at = excluded.deleted_at,
            deleted_reason = excluded.deleted_reason
    ), gone as (
        delete from tonk_relay.chunk where document = $2 and exists (select from allowed)
        returning octet_length(data)::bigint as bytes
    )",
    "count(*), coalesce(sum(bytes), 0)::bigint from gone"
);

/// Deletes what a write has stored before it knew of the deletion, too.
pub(super) const UNDELETE: &str = guarded!(
    ", unmarked as (
        update tonk_relay.document set deleted_at = null, deleted_reason = null
        where document = $2 and deleted_at is not null and exists (select from allowed)
        returning document
    ), gone as (
        delete from tonk_relay.chunk where document in (select document from unmarked)
    )",
    "exists (select from unmarked)"
);

pub(super) const IMPORT_TOMBSTONE: &str = guarded!(
    ", marked as (
        insert into tonk_relay.document as mark (document, deleted_at, deleted_reason)
        select $2, $3::text::timestamptz, $4 where exists (select from allowed)
            and not exists (select from tonk_relay.chunk where document = $2)
        on conflict (document) do update set deleted_at = excluded.deleted_at,
            deleted_reason = excluded.deleted_reason
            where mark.deleted_at is null
        returning document
    )",
    "exists (select from marked)"
);

pub(super) const BLOCK: &str = guarded!(
    ", marked as (
        insert into tonk_relay.document as mark (document, blocked_at, blocked_reason)
        select $2, $3::text::timestamptz, $4 where exists (select from allowed)
        on conflict (document) do update set
            blocked_at = case when mark.blocked_at is null or $4 is not null
                then excluded.blocked_at else mark.blocked_at end,
            blocked_reason = case when mark.blocked_at is null or $4 is not null
                then excluded.blocked_reason else mark.blocked_reason end
        returning blocked_at, blocked_reason
    )",
    concat!(
        "(select ",
        rfc3339!("blocked_at"),
        " from marked), (select blocked_reason from marked)"
    )
);

pub(super) const UNBLOCK: &str = guarded!(
    ", unmarked as (
        update tonk_relay.document set blocked_at = null, blocked_reason = null
        where document = $2 and blocked_at is not null and exists (select from allowed)
        returning document
    )",
    "exists (select from unmarked)"
);

pub(super) const QUARANTINE: &str = guarded!(
    ", moved as (
        update tonk_relay.chunk set quarantined_at = now(), quarantine_reason = $5
        where document = $2 and kind = $3 and name = $4 and quarantined_at is null
            and exists (select from allowed)
        returning document
    )",
    "exists (select from moved)"
);

pub(super) const RELEASE: &str = guarded!(
    ", moved as (
        update tonk_relay.chunk set quarantined_at = null, quarantine_reason = null
        where document = $2 and kind = $3 and name = $4 and exists (select from allowed)
        returning document
    )",
    "exists (select from moved)"
);

pub(super) const PURGE: &str = guarded!(
    ", gone as (
        delete from tonk_relay.chunk where document = $2 and kind = $3 and name = $4
            and quarantined_at is not null and exists (select from allowed)
        returning document
    )",
    "exists (select from gone)"
);

pub(super) const RECORD_IMPORT: &str = guarded!(
    ", recorded as (
        insert into tonk_relay.import (bundle, etag, documents)
        select $2, $3, $4 where exists (select from allowed)
        on conflict (bundle) do update set etag = excluded.etag, documents = excluded.documents
    )"
);

pub(super) const FORGET_IMPORTS: &str =
    guarded!(", gone as (delete from tonk_relay.import where exists (select from allowed))");

pub(super) const STORE_ID: &str = guarded!(
    ", stored as (
        update tonk_relay.meta set storage_id = $2 where exists (select from allowed)
    )"
);

pub(super) const TOMBSTONES: &str = concat!(
    "select document, ",
    rfc3339!("deleted_at"),
    ", deleted_reason from tonk_relay.document where deleted_at is not null \
     and ($1::bytea is null or document = $1) order by document"
);
pub(super) const BLOCKS: &str = concat!(
    "select document, ",
    rfc3339!("blocked_at"),
    ", blocked_reason from tonk_relay.document where blocked_at is not null order by document"
);
pub(super) const QUARANTINED: &str = concat!(
    "select document, kind, name, octet_length(data)::bigint, ",
    rfc3339!("quarantined_at"),
    ", quarantine_reason from tonk_relay.chunk where quarantined_at is not null"
);
/// The chunks after the one with the first three parameters, at most `$4`.
pub(super) const LIST: &str = "
select document, kind, name, octet_length(data)::bigint from tonk_relay.chunk
where quarantined_at is null and (document, kind, name) > ($1, $2, $3)
order by document, kind, name limit $4";
