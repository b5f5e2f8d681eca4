//! The statements.
//!
//! The first columns of every change are those of [`WRITE`]. A third one tells whether it has changed
//! anything.
//!
//! The server plans each prepared statement once (`connection::OPTIONS`), and does not know then
//! how many rows its parameters stand for. So it reads tables by their indexes only, and `not in`
//! is used where lists are compared: it looks into a hash table, whatever the server estimates.

/// The first step of every change: it is made only over the connections that the relay uses now
/// (`$1`), and counted. It waits for an earlier change of the same relay.
macro_rules! counted {
    () => {
        "update tonk_relay.node set writes = writes + 1, seen = now() \
         where id = substr($1::bytea, 1, 16) and connection = $1 \
             and (select oldest_writer from tonk_relay.meta) <= 4 \
         returning id, writes"
    };
}

/// Whether a row of `chunk` belongs to its document as it is now.
macro_rules! is_current {
    () => {
        "chunk.quarantined_at is null and not exists (select from tonk_relay.document as marked \
         where marked.document = chunk.document \
             and (marked.generation <> chunk.generation or marked.deleted_at is not null))"
    };
}

/// Stores chunks (parameters 2 to 6: documents, kinds, names, data, and the generations of the
/// documents that they build on, if these matter), and deletes those that they replace (7 to 10:
/// documents, kinds, names, and which new chunk replaces them). Nothing is stored of deleted
/// documents and of those of another generation. All in one statement, which is a transaction of
/// its own.
///
/// A chunk that another relay has stored under the same key stays: it may have more than ours, and
/// then nothing is deleted for ours. Rows are sorted, and rows that another relay is deleting are
/// skipped, so that two writes seldom wait for each other.
///
/// Returns the number of the write, or null if the relay may no longer write, whether the commit is
/// durable, which of the chunks were not admitted, and which were there before, counted from 1.
macro_rules! write_if {
    ($allowed:expr) => {
        concat!(
            "with allowed as (",
            $allowed,
            "), new as (
                select * from unnest($2::bytea[], $3::smallint[], $4::text[], $5::bytea[],
                    $6::bigint[]) with ordinality as new (document, kind, name, data, generation, n)
            ), admitted as (
                select new.document, kind, name, data, n, coalesce(marked.generation, 0) as current
                from new left join tonk_relay.document as marked
                    on marked.document = new.document
                where exists (select from allowed) and marked.deleted_at is null
                    and (new.generation is null
                        or new.generation = coalesce(marked.generation, 0))
            ), stored as (
                insert into tonk_relay.chunk as there
                    (document, kind, name, data, generation, node)
                select document, kind, name, data, current, (select id from allowed) from admitted
                order by document, kind, name
                on conflict (document, kind, name) do update
                    set data = excluded.data, generation = excluded.generation,
                        node = excluded.node, xid = pg_current_xact_id(),
                        quarantined_at = null, quarantine_reason = null
                    where there.generation < excluded.generation
                        or (there.generation = excluded.generation
                            and there.quarantined_at is not null)
                returning document, kind, name
            ), replaced as (
                delete from tonk_relay.chunk as old using (
                    select chunk.document, chunk.kind, chunk.name from tonk_relay.chunk
                    join unnest($7::bytea[], $8::smallint[], $9::text[], $10::bigint[])
                        as gone (document, kind, name, by)
                        on (chunk.document, chunk.kind, chunk.name)
                            = (gone.document, gone.kind, gone.name)
                    where exists (select from allowed) and chunk.quarantined_at is null
                        and (gone.by = 0 or (gone.by, chunk.generation) in (
                            select n, current from admitted
                            where ((document, kind, name)
                                not in (select document, kind, name from stored)) is false
                        ))
                    for update of chunk skip locked
                ) as gone
                where (old.document, old.kind, old.name) = (gone.document, gone.kind, gone.name)
            )
            select (select writes from allowed), current_setting('synchronous_commit') <> 'off',
                array(select n from new except select n from admitted),
                array(select n from admitted where (document, kind, name)
                    not in (select document, kind, name from stored))"
        )
    };
}

/// Writes small chunks. It waits for an earlier write, and the next connection's name waits for it.
pub(super) const WRITE: &str = write_if!(counted!());

/// Writes a large chunk, while others write small ones. So it may still be made when a later
/// connection writes: it then stores what is stored again or was replaced, which is harmless.
/// A small write must follow over the same connections, which is counted.
pub(super) const WRITE_LARGE: &str = write_if!(
    "select id, writes from tonk_relay.node \
     where id = substr($1::bytea, 1, 16) and connection = $1 for key share"
);

/// Bytes of the chunks of the document `$1`.
pub(super) const SIZE: &str = concat!(
    "select coalesce(sum(octet_length(data)), 0)::bigint from tonk_relay.chunk \
     where document = $1 and ",
    is_current!()
);
/// The chunks of the document `$1`, without the data of those whose kinds and names are in `$2` and
/// `$3`: how often it was deleted, whether it is, and a chunk. One row without a chunk if there are
/// none.
pub(super) const LOAD: &str = "
select generation, is_deleted, kind, name,
    case when (kind, name) not in (select * from unnest($2::smallint[], $3::text[])) then data end
from (
    select coalesce(max(generation), 0) as generation,
        coalesce(bool_or(deleted_at is not null), false) as is_deleted
    from tonk_relay.document where document = $1
) as marked
left join (select kind, name, data, generation from tonk_relay.chunk
    where document = $1 and quarantined_at is null) as chunk using (generation)
order by kind, name";
/// The chunks whose documents, kinds and names are in the parameters.
pub(super) const FETCH: &str = concat!(
    "select document, kind, name, data from tonk_relay.chunk \
     join unnest($1::bytea[], $2::smallint[], $3::text[]) as wanted (document, kind, name) \
         using (document, kind, name) \
     where ",
    is_current!()
);

/// What others than the relay `$3` have written since a snapshot, at most `$4` rows of each kind: a
/// chunk (document, kind, name, bytes, and its data if these are at most `$5`), or a document whose
/// marks have changed (whether it is deleted, whether it is blocked, how often it was deleted). Each
/// row follows the present snapshot. One row without a change if there are none. The last column
/// tells whether tokens have changed.
///
/// `$1` is the first transaction that had not begun in the old snapshot, and `$2` are those that
/// were in progress: a row is new if its transaction is one of these, or later. So each is found
/// exactly once, in whatever order transactions end (section 9.26.8 of PostgreSQL's manual).
pub(super) const LOOK: &str = concat!(
    "select pg_current_snapshot()::text, news.*, exists (
    select from tonk_relay.token where xid >= $1::text::xid8 or xid = any ($2::text[]::xid8[])
)
from (select) as one left join (
    (select document, kind, name, octet_length(data)::bigint as bytes,
        case when octet_length(data) <= $5::bigint and ",
    is_current!(),
    " then data end as data,
        null::bool as is_deleted, null::bool as is_blocked, null::bigint as generation
    from tonk_relay.chunk
    where (xid >= $1::text::xid8 or xid = any ($2::text[]::xid8[]))
        and node is distinct from $3::bytea
    limit $4::bigint)
    union all
    (select document, null, null, null, null, deleted_at is not null, blocked_at is not null,
        generation
    from tonk_relay.document
    where xid >= $1::text::xid8 or xid = any ($2::text[]::xid8[])
    limit $4::bigint)
) as news on true"
);
/// How often each relay has written, how many seconds ago it was last seen, which run of the server
/// this is, the server's time in milliseconds since 1970, how full its queue of notifications is,
/// and the relay's name, version and report.
pub(super) const NODES: &str = "
select id, writes, extract(epoch from now() - seen)::float8,
    coalesce((select id::text from tonk_relay.incarnation), '')
        || ' since ' || pg_postmaster_start_time()::text,
    (extract(epoch from clock_timestamp()) * 1000)::bigint, pg_notification_queue_usage(),
    coalesce(nullif(name, ''), host), version, report
from tonk_relay.node";
/// Says that the relay `$1` is there, and its report `$2`, unless it is just writing.
pub(super) const SEEN: &str = "
update tonk_relay.node set seen = now(), report = $2
where id = (select id from tonk_relay.node where id = $1 for update skip locked)";
/// Says that the relay `$1` has ended, for those who count the relays that are there.
pub(super) const LEFT: &str =
    "update tonk_relay.node set seen = now() - interval '1 minute' where id = $1";
/// Forgets relays that were not seen for a day, and deletes some chunks that were written while
/// their documents were being deleted. All in one transaction, which waits for nobody.
pub(super) const SWEEP: &str = "
set local statement_timeout = '2s';
delete from tonk_relay.node where seen < now() - interval '1 day';
delete from tonk_relay.token where removed_at < now() - interval '1 day';
delete from tonk_relay.chunk where ctid = any (array(
    select late.ctid from tonk_relay.document cross join lateral (
        select chunk.ctid from tonk_relay.chunk
        where chunk.document = document.document and chunk.generation < document.generation
        limit 100
    ) as late
    where document.generation > 0 limit 1000
))";

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
            "with allowed as (",
            counted!(),
            ")",
            $change,
            " select (select writes from allowed), current_setting('synchronous_commit') <> 'off'",
            $columns
        )
    };
}

pub(super) const DELETE: &str = guarded!(
    ", marked as (
        insert into tonk_relay.document as mark (document, deleted_at, deleted_reason, generation)
        select $2, $3::text::timestamptz, $4, 1 where exists (select from allowed)
        on conflict (document) do update set deleted_at = excluded.deleted_at,
            deleted_reason = excluded.deleted_reason, xid = pg_current_xact_id(),
            generation = mark.generation + (mark.deleted_at is null)::int
    ), gone as (
        delete from tonk_relay.chunk where document = $2 and exists (select from allowed)
        returning octet_length(data)::bigint as bytes
    )",
    "count(*), coalesce(sum(bytes), 0)::bigint from gone"
);

/// Deletes what a write has stored before it knew of the deletion, too.
pub(super) const UNDELETE: &str = guarded!(
    ", unmarked as (
        update tonk_relay.document
        set deleted_at = null, deleted_reason = null, xid = pg_current_xact_id()
        where document = $2 and deleted_at is not null and exists (select from allowed)
        returning document
    ), gone as (
        delete from tonk_relay.chunk where document in (select document from unmarked)
    )",
    "exists (select from unmarked)"
);

pub(super) const IMPORT_TOMBSTONE: &str = guarded!(
    ", marked as (
        insert into tonk_relay.document as mark (document, deleted_at, deleted_reason, generation)
        select $2, $3::text::timestamptz, $4, 1 where exists (select from allowed)
            and not exists (select from tonk_relay.chunk where document = $2)
        on conflict (document) do update set deleted_at = excluded.deleted_at,
            deleted_reason = excluded.deleted_reason, xid = pg_current_xact_id(),
            generation = mark.generation + 1
            where mark.deleted_at is null
        returning document
    )",
    "exists (select from marked)"
);

pub(super) const BLOCK: &str = guarded!(
    ", marked as (
        insert into tonk_relay.document as mark (document, blocked_at, blocked_reason)
        select $2, $3::text::timestamptz, $4 where exists (select from allowed)
        on conflict (document) do update set xid = pg_current_xact_id(),
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
        update tonk_relay.document
        set blocked_at = null, blocked_reason = null, xid = pg_current_xact_id()
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
        update tonk_relay.chunk
        set quarantined_at = null, quarantine_reason = null, xid = pg_current_xact_id(),
            node = (select id from allowed)
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

/// Stores a storage id if there is none, and returns the one that is stored.
pub(super) const CREATE_ID: &str = guarded!(
    ", stored as (
        update tonk_relay.meta set storage_id = coalesce(storage_id, $2)
        where exists (select from allowed) returning storage_id
    )",
    "(select storage_id from stored)"
);

/// The tokens of all relays.
pub(super) const TOKENS: &str = "select entry from tonk_relay.token where removed_at is null";

pub(super) const ADD_TOKEN: &str = guarded!(
    ", added as (
        insert into tonk_relay.token (sha256, entry)
        select $2, $3 where exists (select from allowed)
    )"
);

/// Removes the tokens with the hashes `$2`.
pub(super) const REMOVE_TOKENS: &str = guarded!(
    ", removed as (
        update tonk_relay.token set removed_at = now(), xid = pg_current_xact_id()
        where sha256 = any ($2) and removed_at is null and exists (select from allowed)
    )"
);

pub(super) const TOMBSTONES: &str = concat!(
    "select document, ",
    rfc3339!("deleted_at"),
    ", deleted_reason from tonk_relay.document where deleted_at is not null order by document"
);
/// The tombstone of the document `$1`.
pub(super) const TOMBSTONE: &str = concat!(
    "select document, ",
    rfc3339!("deleted_at"),
    ", deleted_reason from tonk_relay.document where deleted_at is not null and document = $1"
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
pub(super) const LIST: &str = concat!(
    "select document, kind, name, octet_length(data)::bigint from tonk_relay.chunk \
     where (document, kind, name) > ($1, $2, $3) and ",
    is_current!(),
    " order by document, kind, name limit $4"
);
