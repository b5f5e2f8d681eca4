//! Estimates what automerge chunks take in memory once they are unpacked, without unpacking them. Pure.
//!
//! automerge packs repetition: a run of a million equal values is a few bytes, and columns are deflated. Measured with
//! automerge 0.12: a change of 104 bytes takes 451 MiB and 3 s, a document of 174 bytes takes 87 MiB. So the runs of a
//! chunk's columns are summed before automerge sees it, and deflated data is read as a stream that stops at the limit.
//!
//! Byte arrays and strings count as the bytes that they are, however well they compress: each value's length is in the
//! column before them, so what a chunk claims is known before any of it is inflated. Operations count by what automerge
//! spends on each while it applies them.
//!
//! Format: <https://automerge.org/automerge-binary-format-spec/>, and automerge 0.12 `storage/{chunk,change,document,bundle}.rs`.
//! Chunks that do not follow it are refused.

mod chunks;
mod columns;
mod inflate;
mod limit;
mod reader;

use std::io::{self, BufRead, BufReader, Read};

pub use self::{
    chunks::chunks,
    limit::{NotUnpacked, Origin, allowed},
};
use self::{
    chunks::split,
    columns::{Column, RAW, Values, columns, values},
    inflate::{Inflated, Room},
    limit::Stop,
    reader::{Actors, actors, hashes, prefixed, unsigned},
};
use crate::config::Size;

/// Memory that applying an operation of a change chunk takes: 451 to 589 bytes, measured with 1,000,000 of them.
const CHANGE_OPERATION: u64 = 500;
/// Memory of an operation of a loaded document: 87 bytes in runs, measured with 1,000,000 of them.
const DOCUMENT_OPERATION: u64 = 100;
/// Memory that loading a change of a document chunk takes besides its texts: 735 MiB were measured for 400,000 without
/// operations; changes that claim many operations take twice that.
const DOCUMENT_CHANGE: u64 = 2_000;
/// Memory of a change in a loaded document: its place in the graph, its hash twice, its share of the clocks.
const RESIDENT_CHANGE: u64 = 500;
/// What automerge keeps of an actor besides its id, each time that a change names it.
const ACTOR: u64 = 40;
/// Rows that name an actor, for each of the longest column: an operation, what it is about, what it replaces.
const NAMES: u64 = 3;
/// Marks cost time, by the square of their number: 20,000 in one place 0.2 s, 200,000 43 s. So they count as bytes.
const MARK_PAIRS: u64 = 8;
/// Copies of a text or an actor's id in what automerge makes of a change.
const COPIES: u64 = 2;
/// Copies of inflated bytes while a chunk is applied. Values of operations are the exception: they count once.
const INFLATED: u64 = 8;

/// What chunks unpack to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Memory that unpacking them takes, by estimate.
    pub bytes: u64,
    /// Operations in them.
    pub operations: u64,
    /// Changes in them.
    pub changes: u64,
    /// Bytes of the values of their operations: texts, byte arrays, numbers.
    pub values: u64,
    /// Beginnings and ends of marks in them.
    pub marks: u64,
}

impl Unpacked {
    /// Memory that a document takes which holds all of this and is loaded, by estimate.
    pub fn resident(&self) -> u64 {
        let operations = self.operations.saturating_mul(DOCUMENT_OPERATION);
        let changes = self.changes.saturating_mul(RESIDENT_CHANGE);
        operations.saturating_add(changes).saturating_add(self.values)
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            operations: self.operations.saturating_add(other.operations),
            changes: self.changes.saturating_add(other.changes),
            values: self.values.saturating_add(other.values),
            marks: self.marks.saturating_add(other.marks),
        }
    }
}

/// What one chunk after the other unpacks to, if that is within `limit`, or is explained by how many bytes they are.
/// Pieces of chunks have to be put together first: automerge reads over their ends.
///
/// # Errors
/// It is more, or is not a sequence of chunks.
pub fn of(chunks: &[u8], from: Origin, limit: Size) -> Result<Unpacked, NotUnpacked> {
    let allowed = allowed(chunks.len(), from, limit);
    let values = match from {
        Origin::Peer => limit.0,
        Origin::Storage => allowed,
    };
    let mut meter = Meter { found: Unpacked::default(), from, allowed, values, bytes: 0 };
    match meter.chunks(chunks) {
        Ok(()) => Ok(meter.found),
        Err(Stop::TooMuch) => {
            let (operations, bytes) = (meter.found.operations, meter.bytes.max(meter.found.bytes));
            Err(NotUnpacked::TooMuch { limit, operations, bytes })
        }
        Err(Stop::Malformed) => Err(NotUnpacked::Malformed),
    }
}

struct Meter {
    found: Unpacked,
    from: Origin,
    /// The limit of all bytes, and of those of values.
    allowed: u64,
    values: u64,
    /// The estimate at which the limit was exceeded.
    bytes: u64,
}

impl Meter {
    fn add(&mut self, bytes: u64) -> Result<(), Stop> {
        self.found.bytes = self.found.bytes.saturating_add(bytes);
        if self.found.bytes > self.allowed { Err(Stop::TooMuch) } else { Ok(()) }
    }

    fn add_values(&mut self, bytes: u64) -> Result<(), Stop> {
        self.found.values = self.found.values.saturating_add(bytes);
        if self.found.values > self.values {
            self.bytes = self.found.bytes.saturating_add(bytes);
            return Err(Stop::TooMuch);
        }
        self.add(bytes)
    }

    /// Bytes that may still be inflated, apart from those of values.
    fn inflatable(&self) -> u64 {
        self.allowed.saturating_sub(self.found.bytes) / INFLATED
    }

    fn chunks(&mut self, mut rest: &[u8]) -> Result<(), Stop> {
        while !rest.is_empty() {
            let first = split(rest)?;
            let data = first.contents;
            rest = first.rest;
            match first.kind {
                0 => self.document(data)?,
                1 => self.change(data, &Room::default())?,
                2 => self.deflated_change(data)?,
                3 => self.bundle(data)?,
                _ => return Err(Stop::Malformed),
            }
        }
        Ok(())
    }

    fn deflated_change(&mut self, data: &[u8]) -> Result<(), Stop> {
        let room = Room::new(self.inflatable());
        let mut inflated = BufReader::new(Inflated::over(data, room.clone()));
        let before = self.found.values;
        let measured = self.change(&mut inflated, &room);
        // A bomb ends early, and looks cut off.
        let values = self.found.values - before;
        self.end(inflated, values)?;
        measured
    }

    /// Counts all that was deflated, also what has no meaning. `values` of it were counted before.
    fn end(
        &mut self,
        mut inflated: BufReader<Inflated<impl BufRead>>,
        values: u64,
    ) -> Result<(), Stop> {
        // Where it does not inflate any further it ends for automerge too.
        let _ = io::copy(&mut inflated, &mut io::sink());
        let Inflated { bytes, is_over, .. } = inflated.into_inner();
        if is_over {
            self.bytes = self.allowed;
            return Err(Stop::TooMuch);
        }
        self.add(bytes.saturating_sub(values).saturating_mul(INFLATED))
    }

    fn change(&mut self, mut data: impl BufRead, room: &Room) -> Result<(), Stop> {
        let data = &mut data;
        self.found.changes = self.found.changes.saturating_add(1);
        self.add(CHANGE_OPERATION)?;
        hashes(data)?;
        // The actor, the sequence number, the first operation, the time, the message; the other actors.
        prefixed(data)?;
        for _ in 0..3 {
            unsigned(data)?;
        }
        prefixed(data)?;
        actors(data)?;
        let columns = columns(data)?;
        self.operations(data, &columns, CHANGE_OPERATION, room).map(drop)
    }

    fn document(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        let data = &mut data;
        let actors = actors(data)?;
        hashes(data)?;
        let (changes, operations) = (columns(data)?, columns(data)?);
        let changes = self.changes_of(data, &changes, actors)?;
        let operations =
            self.operations(data, &operations, DOCUMENT_OPERATION, &Room::default())?;
        self.named(actors, changes, operations)
    }

    fn bundle(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        let data = &mut data;
        hashes(data)?;
        let actors = actors(data)?;
        let change_columns = columns(data)?;
        let changes = self.changes_of(data, &change_columns, actors)?;
        let operation_columns = columns(data)?;
        let room = Room::default();
        let operations = self.operations(data, &operation_columns, CHANGE_OPERATION, &room)?;
        self.named(actors, changes, operations)
    }

    /// Each change that is rebuilt from a chunk has the ids of all actors that its operations name.
    fn named(&mut self, actors: Actors, changes: u64, operations: u64) -> Result<(), Stop> {
        let names = changes.saturating_mul(actors.count).min(operations.saturating_mul(NAMES));
        let size = actors.longest.saturating_add(ACTOR).saturating_mul(COPIES);
        self.add(names.saturating_mul(size))
    }

    /// The changes of a chunk; automerge rebuilds each of them, with the id of its actor. Returns how many.
    fn changes_of(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        actors: Actors,
    ) -> Result<u64, Stop> {
        let cost = DOCUMENT_CHANGE.saturating_add(actors.longest.saturating_mul(COPIES));
        let changes = self.rows(data, columns, cost, &Room::default())?;
        self.found.changes = self.found.changes.saturating_add(changes);
        self.add(changes.saturating_mul(cost))?;
        Ok(changes)
    }

    /// The operations of a chunk, at `cost` bytes each. Returns how many.
    fn operations(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        cost: u64,
        room: &Room,
    ) -> Result<u64, Stop> {
        let before = self.found.operations;
        let operations = self.rows(data, columns, cost, room)?;
        self.found.operations = before.saturating_add(operations);
        self.add(operations.saturating_mul(cost))?;
        Ok(operations)
    }

    /// The rows of the longest of some columns; each of them counts `cost`, so far. `room` is what may be inflated where
    /// `data` is deflated as a whole.
    fn rows(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        cost: u64,
        room: &Room,
    ) -> Result<u64, Stop> {
        let most = self.allowed.saturating_sub(self.found.bytes) / cost.max(1);
        let mut longest = 0;
        // What the column of lengths claims for the column of values that follows it.
        let mut claimed = (None, 0);
        for column in columns {
            let values_claimed = match claimed {
                (Some(group), bytes) if column.kind() == RAW && group == column.group() => bytes,
                _ => 0,
            };
            if column.kind() == RAW {
                self.add_values(values_claimed)?;
                room.extend(values_claimed);
                if !column.is_deflated() && column.length > values_claimed {
                    return Err(Stop::Malformed);
                }
            }
            let mut own = data.by_ref().take(column.length);
            let most_text = self.allowed;
            let values = if column.is_deflated() {
                let own_room = match column.kind() {
                    RAW => Room::new(values_claimed),
                    _ => Room::new(self.inflatable()),
                };
                let mut inflated = BufReader::new(Inflated::over(&mut own, own_room));
                let values = values(column, &mut inflated, most, most_text);
                self.end(inflated, values_claimed)?;
                values
            } else {
                if column.kind() != RAW {
                    self.add(column.length)?;
                }
                values(column, &mut own, most, most_text)
            };
            let Values { rows, text, lengths, marks, is_endless } = values;
            if is_endless {
                return Err(Stop::Malformed);
            }
            if rows > most {
                self.found.operations = self.found.operations.saturating_add(rows);
                self.bytes = self.found.bytes.saturating_add(rows.saturating_mul(cost));
                return Err(Stop::TooMuch);
            }
            claimed = (column.is_lengths().then(|| column.group()), lengths);
            self.add(text.saturating_mul(COPIES))?;
            self.add_marks(marks)?;
            longest = longest.max(rows);
            io::copy(&mut own, &mut io::sink())?;
        }
        Ok(longest)
    }

    /// Stored marks were bounded when they came, and may have become many since.
    fn add_marks(&mut self, marks: u64) -> Result<(), Stop> {
        let squared = |marks: u64| marks.saturating_mul(marks) / MARK_PAIRS;
        let before = self.found.marks;
        self.found.marks = before.saturating_add(marks);
        match self.from {
            Origin::Peer => self.add(squared(self.found.marks) - squared(before)),
            Origin::Storage => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
