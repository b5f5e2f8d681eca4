//! Estimates what automerge chunks take in memory once they are unpacked, without unpacking them.
//! Pure.
//!
//! automerge encodes repetition: a run of a million equal values takes a few bytes, and columns are
//! deflated. Measured with automerge 0.12, a change of 104 bytes takes 451 MiB and 3 s, and a
//! document of 174 bytes takes 87 MiB. So the runs in a chunk's columns are summed before automerge
//! sees it, and deflated data is read as a stream that stops at the limit.
//!
//! Byte arrays and strings count as their bytes, however well they compress: each value's length is
//! in the column before them, so what a chunk claims is known before it is inflated. Each operation
//! counts as the memory that automerge uses to apply it.
//!
//! Format: <https://automerge.org/automerge-binary-format-spec/>, and automerge 0.12
//! `storage/{chunk,change,document,bundle}.rs`. Chunks in another format are refused.

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
    inflate::{InflateBudget, Inflated},
    limit::Stop,
    reader::{Actors, actors, hashes, prefixed, unsigned},
};
use crate::config::Size;

/// Memory to apply an operation of a change chunk, in bytes: 451 to 589, measured with 1,000,000 of
/// them.
const CHANGE_OPERATION: u64 = 500;
/// Memory of an operation in a loaded document, in bytes: 87 in runs, measured with 1,000,000 of
/// them.
const DOCUMENT_OPERATION: u64 = 100;
/// Memory to load a change of a document chunk, in bytes, without its texts: 400,000 changes
/// without operations took 735 MiB, and changes that claim many operations take twice that.
const DOCUMENT_CHANGE: u64 = 2_000;
/// Memory of a change in a loaded document, in bytes: its node in the graph, its hash twice, its
/// share of the clocks.
const RESIDENT_CHANGE: u64 = 500;
/// Memory of an actor in a change that names it, in bytes, without its id.
const ACTOR: u64 = 40;
/// How many actors an operation names: its own, and those of its object and of what it replaces.
const ACTORS_NAMED: u64 = 3;
/// Marks cost time by the square of their number: 20,000 in one place take 0.2 s, 200,000 take 43
/// s. So this many pairs of marks count as one byte.
const MARK_PAIRS: u64 = 8;
/// How many copies of a text or of an actor's id automerge makes for a change.
const COPIES: u64 = 2;
/// How many copies of inflated bytes exist while a chunk is applied. Only values of operations
/// count once.
const INFLATED: u64 = 8;

/// What chunks unpack to, by estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Memory to unpack them.
    pub bytes: u64,
    /// Number of operations.
    pub operations: u64,
    /// Number of changes.
    pub changes: u64,
    /// Bytes of the values of the operations: texts, byte arrays, numbers.
    pub values: u64,
    /// Begins and ends of marks.
    pub marks: u64,
}

impl Unpacked {
    /// Estimates the memory of a loaded document that holds all of this.
    pub fn resident(&self) -> u64 {
        let operations = self.operations.saturating_mul(DOCUMENT_OPERATION);
        let changes = self.changes.saturating_mul(RESIDENT_CHANGE);
        operations.saturating_add(changes).saturating_add(self.values)
    }

    /// Returns the sum.
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

/// Estimates what concatenated chunks unpack to. More than `limit` is allowed for large inputs (see
/// [`allowed`]). Parts of one chunk must be concatenated first: automerge reads across their
/// boundaries.
///
/// # Errors
/// They unpack to more than is allowed, or are not a sequence of chunks.
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

/// Sums what chunks unpack to.
struct Meter {
    /// The estimate so far.
    found: Unpacked,
    from: Origin,
    /// The limit of all bytes.
    allowed: u64,
    /// The limit of the bytes of values.
    values: u64,
    /// The estimate of all bytes with which the limit was exceeded.
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

    /// How many bytes may still be inflated, apart from those of values.
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
                1 => self.change(data, &InflateBudget::default())?,
                2 => self.deflated_change(data)?,
                3 => self.bundle(data)?,
                _ => return Err(Stop::Malformed),
            }
        }
        Ok(())
    }

    fn deflated_change(&mut self, data: &[u8]) -> Result<(), Stop> {
        let budget = InflateBudget::new(self.inflatable());
        let mut inflated = BufReader::new(Inflated::new(data, budget.clone()));
        let before = self.found.values;
        let measured = self.change(&mut inflated, &budget);
        // A decompression bomb is cut off at the limit, and looks like a truncated chunk.
        let values = self.found.values - before;
        self.finish_inflating(inflated, values)?;
        measured
    }

    /// Counts all that was deflated, also what follows the chunk's data. `values` bytes of it were
    /// counted before.
    fn finish_inflating(
        &mut self,
        mut inflated: BufReader<Inflated<impl BufRead>>,
        values: u64,
    ) -> Result<(), Stop> {
        // Data that does not inflate ends here for automerge, too.
        let _ = io::copy(&mut inflated, &mut io::sink());
        let Inflated { bytes, is_over, .. } = inflated.into_inner();
        if is_over {
            self.bytes = self.allowed;
            return Err(Stop::TooMuch);
        }
        self.add(bytes.saturating_sub(values).saturating_mul(INFLATED))
    }

    fn change(&mut self, mut data: impl BufRead, budget: &InflateBudget) -> Result<(), Stop> {
        let data = &mut data;
        self.found.changes = self.found.changes.saturating_add(1);
        self.add(CHANGE_OPERATION)?;
        hashes(data)?;
        // The actor; the sequence number, first operation and time; the message; the other actors.
        prefixed(data)?;
        for _ in 0..3 {
            unsigned(data)?;
        }
        prefixed(data)?;
        actors(data)?;
        let columns = columns(data)?;
        self.operations(data, &columns, CHANGE_OPERATION, budget).map(drop)
    }

    fn document(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        let data = &mut data;
        let actors = actors(data)?;
        hashes(data)?;
        let (changes, operations) = (columns(data)?, columns(data)?);
        let changes = self.changes_of(data, &changes, actors)?;
        let operations =
            self.operations(data, &operations, DOCUMENT_OPERATION, &InflateBudget::default())?;
        self.add_actors(actors, changes, operations)
    }

    fn bundle(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        let data = &mut data;
        hashes(data)?;
        let actors = actors(data)?;
        let change_columns = columns(data)?;
        let changes = self.changes_of(data, &change_columns, actors)?;
        let operation_columns = columns(data)?;
        let budget = InflateBudget::default();
        let operations = self.operations(data, &operation_columns, CHANGE_OPERATION, &budget)?;
        self.add_actors(actors, changes, operations)
    }

    /// Counts the ids of actors: each change that is rebuilt from a chunk has those of all actors
    /// that its operations name.
    fn add_actors(&mut self, actors: Actors, changes: u64, operations: u64) -> Result<(), Stop> {
        let names =
            changes.saturating_mul(actors.count).min(operations.saturating_mul(ACTORS_NAMED));
        let size = actors.longest.saturating_add(ACTOR).saturating_mul(COPIES);
        self.add(names.saturating_mul(size))
    }

    /// Counts the changes of a chunk, each of which automerge rebuilds with its actor's id. Returns
    /// how many there are.
    fn changes_of(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        actors: Actors,
    ) -> Result<u64, Stop> {
        let cost = DOCUMENT_CHANGE.saturating_add(actors.longest.saturating_mul(COPIES));
        let changes = self.rows(data, columns, cost, &InflateBudget::default())?;
        self.found.changes = self.found.changes.saturating_add(changes);
        self.add(changes.saturating_mul(cost))?;
        Ok(changes)
    }

    /// Counts the operations of a chunk, at `cost` bytes each. Returns how many there are.
    fn operations(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        cost: u64,
        budget: &InflateBudget,
    ) -> Result<u64, Stop> {
        let before = self.found.operations;
        let operations = self.rows(data, columns, cost, budget)?;
        self.found.operations = before.saturating_add(operations);
        self.add(operations.saturating_mul(cost))?;
        Ok(operations)
    }

    /// Returns how many rows the longest of these columns has, each of which will count `cost`
    /// bytes. `budget` grows with the values that are claimed; it limits `data` that is deflated as
    /// a whole.
    fn rows(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        cost: u64,
        budget: &InflateBudget,
    ) -> Result<u64, Stop> {
        let most = self.allowed.saturating_sub(self.found.bytes) / cost.max(1);
        let mut longest = 0;
        // What a column of lengths claims for the column of values that follows it.
        let mut claimed = (None, 0);
        for column in columns {
            let values_claimed = match claimed {
                (Some(group), bytes) if column.kind() == RAW && group == column.group() => bytes,
                _ => 0,
            };
            if column.kind() == RAW {
                self.add_values(values_claimed)?;
                budget.extend(values_claimed);
                if !column.is_deflated() && column.length > values_claimed {
                    return Err(Stop::Malformed);
                }
            }
            let mut own = data.by_ref().take(column.length);
            let most_text = self.allowed;
            let values = if column.is_deflated() {
                let own_budget = match column.kind() {
                    RAW => InflateBudget::new(values_claimed),
                    _ => InflateBudget::new(self.inflatable()),
                };
                let mut inflated = BufReader::new(Inflated::new(&mut own, own_budget));
                let values = values(column, &mut inflated, most, most_text);
                self.finish_inflating(inflated, values_claimed)?;
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

    /// Counts marks. Stored ones were limited when they were admitted, and may have become many
    /// since.
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
