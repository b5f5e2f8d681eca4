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

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
};

// flate2: what automerge itself inflates with.
use flate2::bufread::DeflateDecoder;

use crate::config::Size;

/// The first bytes of every chunk; a checksum of four bytes follows, then the kind of the chunk and its length.
pub(super) const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
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
/// More columns than any chunk has: 18 today.
const MAX_COLUMNS: u64 = 1_000;
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

/// Where chunks come from, which decides how far beyond the limit they may go if their size explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A message or a bundle, which may be meant to do harm.
    Peer,
    /// Storage: it has grown by what was admitted before.
    Storage,
}

impl Origin {
    /// How many times the limit large inputs may unpack to.
    fn most(self) -> u64 {
        match self {
            Self::Peer => 4,
            Self::Storage => 16,
        }
    }

    /// How many unpacked bytes each input byte explains. A pasted text is an operation a character, at 500 bytes, and
    /// two characters a byte when it is deflated; a log that has grown in many changes is 40 characters a byte, at 100.
    fn explains(self) -> u64 {
        match self {
            Self::Peer => 1024,
            Self::Storage => 4096,
        }
    }
}

/// Why chunks must not be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum NotUnpacked {
    #[error(
        "unpacks to more than {limit} (sync.max_inflated): {operations} operations or more, at least {} MiB",
        bytes >> 20
    )]
    TooMuch { limit: Size, operations: u64, bytes: u64 },
    #[error("is not a sequence of automerge chunks")]
    Malformed,
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

/// What `size` bytes may unpack to.
pub fn allowed(size: usize, from: Origin, limit: Size) -> u64 {
    let explained = (size as u64).saturating_mul(from.explains());
    explained.min(limit.0.saturating_mul(from.most())).max(limit.0)
}

/// The chunks that stand one after the other in `bytes`: the kind of each, and all of its bytes.
///
/// # Errors
/// They are not a sequence of chunks.
pub fn chunks(mut bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, NotUnpacked> {
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let first = split(bytes).map_err(|_| NotUnpacked::Malformed)?;
        chunks.push((first.kind, first.whole));
        bytes = first.rest;
    }
    Ok(chunks)
}

/// A chunk at the beginning of bytes.
struct Split<'a> {
    kind: u8,
    contents: &'a [u8],
    /// All of it.
    whole: &'a [u8],
    /// What comes after it.
    rest: &'a [u8],
}

/// The first chunk of `bytes`.
fn split(bytes: &[u8]) -> Result<Split<'_>, Stop> {
    let mut rest = bytes;
    let mut head = [0; 9];
    rest.read_exact(&mut head)?;
    let [m0, m1, m2, m3, _, _, _, _, kind] = head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Stop::Malformed);
    }
    let length = usize::try_from(unsigned(&mut rest)?).map_err(|_| Stop::Malformed)?;
    let (contents, rest) = rest.split_at_checked(length).ok_or(Stop::Malformed)?;
    let whole = bytes.get(..bytes.len() - rest.len()).ok_or(Stop::Malformed)?;
    Ok(Split { kind, contents, whole, rest })
}

enum Stop {
    TooMuch,
    Malformed,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Malformed
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

/// How many bytes may be inflated. It grows as values are claimed.
#[derive(Clone, Debug, Default)]
struct Room(Rc<Cell<u64>>);

impl Room {
    fn new(bytes: u64) -> Self {
        Self(Rc::new(Cell::new(bytes)))
    }

    fn extend(&self, bytes: u64) {
        self.0.set(self.0.get().saturating_add(bytes));
    }
}

/// Deflated bytes, inflated as they are read, as long as there is room.
struct Inflated<R> {
    decoder: DeflateDecoder<R>,
    bytes: u64,
    room: Room,
    is_over: bool,
}

impl<R: BufRead> Inflated<R> {
    fn over(from: R, room: Room) -> Self {
        Self { decoder: DeflateDecoder::new(from), bytes: 0, room, is_over: false }
    }
}

impl<R: BufRead> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_over {
            return Ok(0);
        }
        let read = self.decoder.read(buffer)?;
        self.bytes += read as u64;
        self.is_over = self.bytes > self.room.0.get();
        Ok(read)
    }
}

/// Types of columns: counts of a group, booleans, texts, types and lengths of values, values.
const GROUP: u64 = 0;
const BOOLEAN: u64 = 4;
const TEXT: u64 = 5;
const LENGTHS: u64 = 6;
const RAW: u64 = 7;

/// What a column holds, and in how many bytes.
struct Column {
    /// The specification: an id, a flag for deflate, and a type.
    specification: u64,
    length: u64,
}

impl Column {
    fn is_deflated(&self) -> bool {
        self.specification & 8 != 0
    }

    fn kind(&self) -> u64 {
        self.specification & 7
    }

    /// The number that columns share which belong together.
    fn group(&self) -> u64 {
        self.specification >> 4
    }

    /// Whether it holds the types and lengths of values.
    fn is_lengths(&self) -> bool {
        self.kind() == LENGTHS
    }
}

fn columns(data: &mut impl BufRead) -> Result<Vec<Column>, Stop> {
    let count = unsigned(data)?;
    if count > MAX_COLUMNS {
        return Err(Stop::TooMuch);
    }
    (0..count)
        .map(|_| Ok(Column { specification: unsigned(data)?, length: unsigned(data)? }))
        .collect()
}

/// What a column holds.
#[derive(Clone, Copy, Default)]
struct Values {
    /// How many values. In a group column, which says how many values of others belong to each row, the sum of these if that
    /// is more.
    rows: u64,
    /// Bytes of all its texts, each as often as it stands there.
    text: u64,
    /// If these are types and lengths, the sum of the lengths.
    lengths: u64,
    /// If these are actions, how many of them make or end a mark.
    marks: u64,
    /// automerge 0.12 would read them for ever.
    is_endless: bool,
}

/// Count the values of a column, up to where there are more than `most`, or more text than that.
fn values(column: &Column, data: &mut impl BufRead, most: u64, most_text: u64) -> Values {
    let mut found = Values::default();
    // An end within a value: what stands before it is read by automerge as well.
    let _ = sum_runs(column, data, most, most_text, &mut found);
    found
}

fn sum_runs(
    column: &Column,
    data: &mut impl BufRead,
    most: u64,
    most_text: u64,
    found: &mut Values,
) -> io::Result<()> {
    /// The column of actions, without its flag for deflate, and the action (automerge 0.12, `op_set2/columns.rs`).
    const ACTIONS: u64 = 0x42;
    const MARK: u64 = 7;
    let (kind, is_action) = (column.kind(), column.specification & !8 == ACTIONS);
    let mut grouped = 0u64;
    while found.rows <= most && found.text <= most_text && !data.fill_buf()?.is_empty() {
        match kind {
            RAW => return Ok(()),
            BOOLEAN => match count(data) {
                Some(count) => found.rows = found.rows.saturating_add(count),
                // hexane 1.0, `BoolDecoder`: where it can read no count it tries again, at the same place.
                None => {
                    found.is_endless = true;
                    return Ok(());
                }
            },
            _ => {
                let run = signed(data)?;
                if run == 0 {
                    found.rows = found.rows.saturating_add(unsigned(data)?);
                    continue;
                }
                let (values, repeated) =
                    if run > 0 { (1, run.unsigned_abs()) } else { (run.unsigned_abs(), 1) };
                found.rows = found.rows.saturating_add(run.unsigned_abs());
                for _ in 0..values {
                    let value = unsigned(data)?;
                    let all = value.saturating_mul(repeated);
                    if kind == TEXT {
                        found.text = found.text.saturating_add(all);
                        skip(data, value)?;
                    } else if kind == LENGTHS {
                        found.lengths =
                            found.lengths.saturating_add((value >> 4).saturating_mul(repeated));
                    } else if kind == GROUP {
                        grouped = grouped.saturating_add(all);
                        found.rows = found.rows.max(grouped);
                    } else if is_action && value == MARK {
                        found.marks = found.marks.saturating_add(repeated);
                    }
                    if found.rows > most || found.text > most_text {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

/// A list of change hashes.
fn hashes(data: &mut impl BufRead) -> io::Result<()> {
    let count = unsigned(data)?;
    skip(data, count.saturating_mul(32))
}

/// How many actors a chunk names, and the length of their longest id.
#[derive(Clone, Copy)]
struct Actors {
    count: u64,
    longest: u64,
}

/// A list of actor ids.
fn actors(data: &mut impl BufRead) -> io::Result<Actors> {
    let count = unsigned(data)?;
    let mut longest = 0;
    for _ in 0..count {
        longest = longest.max(prefixed(data)?);
    }
    Ok(Actors { count, longest })
}

/// Bytes after their length, which is returned.
fn prefixed(data: &mut impl BufRead) -> io::Result<u64> {
    let length = unsigned(data)?;
    skip(data, length)?;
    Ok(length)
}

fn skip(data: &mut impl BufRead, bytes: u64) -> io::Result<()> {
    let mut skipped = data.by_ref().take(bytes);
    if io::copy(&mut skipped, &mut io::sink())? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// A LEB128 number, without its sign's meaning; what goes beyond 64 bits is the largest there is.
fn unsigned(data: &mut impl BufRead) -> io::Result<u64> {
    let mut number = 0u64;
    for place in 0u32.. {
        let byte = byte(data)?;
        let bits = u64::from(byte & 0x7f);
        number = match bits.checked_shl(7 * place) {
            Some(shifted) if shifted >> (7 * place) == bits => number | shifted,
            _ if bits == 0 => number,
            _ => u64::MAX,
        };
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(number)
}

/// A LEB128 number of 64 bits at most that is whole, as the `leb128` crate reads it.
fn count(data: &mut impl BufRead) -> Option<u64> {
    let mut number = 0u64;
    for place in 0..10 {
        let byte = byte(data).ok()?;
        if place == 9 && byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A signed LEB128 number.
fn signed(data: &mut impl BufRead) -> io::Result<i64> {
    let mut number = 0i64;
    for place in 0u32.. {
        let byte = byte(data)?;
        let bits = i64::from(byte & 0x7f);
        number |= bits.checked_shl(7 * place).unwrap_or(0);
        if byte & 0x80 == 0 {
            let used = 7 * (place + 1);
            if used < 64 && byte & 0x40 != 0 {
                number |= -1i64 << used;
            }
            break;
        }
        if place > 10 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(number)
}

fn byte(data: &mut impl BufRead) -> io::Result<u8> {
    let first = data.fill_buf()?.first().copied();
    data.consume(1.min(usize::from(first.is_some())));
    first.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests;
