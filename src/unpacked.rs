//! What automerge chunks take in memory when they are unpacked, told without unpacking them. Pure.
//!
//! automerge packs repetition: a run of a million equal values is a few bytes, and columns are deflated. Measured with
//! automerge 0.12: a change of 104 bytes that takes 451 MiB and 3 s, a document of 174 bytes that takes 87 MiB. So before
//! automerge sees a chunk, the runs of its columns are summed up here, and what is deflated is read as a stream that ends
//! at the limit.
//!
//! Format: <https://automerge.org/automerge-binary-format-spec/>, and automerge 0.12 `storage/{chunk,change,document,bundle}.rs`.
//! What cannot be followed here is not passed on either.

use std::io::{self, BufRead, BufReader, Read};

// flate2: what automerge itself inflates with.
use flate2::bufread::DeflateDecoder;

use crate::config::Size;

const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
/// Memory of an operation of a change chunk while it is taken in: 451 to 589 bytes, measured with 1,000,000 of them.
const CHANGE_OPERATION: u64 = 500;
/// Memory of an operation of a document chunk: 87 bytes in runs, measured with 1,000,000 of them.
const DOCUMENT_OPERATION: u64 = 100;
/// Memory of a change that a document chunk tells of, beside its texts: 735 MiB were measured of 400,000 without operations;
/// those that claim many take twice that.
const DOCUMENT_CHANGE: u64 = 2_000;
/// What automerge keeps of an actor beside its id, each time that a change names it.
const ACTOR: u64 = 40;
/// Rows that name an actor, for each of the longest column: an operation, what it is about, what it replaces.
const NAMES: u64 = 3;
/// Marks cost time, by the square of their number: 20,000 in one place 0.2 s, 200,000 43 s. So they count as bytes.
const MARK_PAIRS: u64 = 8;
/// A text or an actor's id stands so often in what automerge makes of a change.
const COPIES: u64 = 2;
/// More columns than any chunk has: 18 today.
const MAX_COLUMNS: u64 = 1_000;
/// Bytes of which each may explain so many: a pasted text is an operation a character, at 500 bytes, and two characters a
/// byte when it is deflated.
const EXPLAINED: u64 = 1024;
/// What is inflated counts so many times: it is copied, and copied again while it is taken in.
const INFLATED: u64 = 8;
/// From here on deflate is looked at: what is packed more than [`DENSE`] times is a bomb. Below, it harms nobody.
const INFLATES: u64 = 4 << 20;
const DENSE: u64 = 256;

/// What chunks unpack to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Memory that they take, by estimate.
    pub bytes: u64,
    /// Changes in them.
    pub changes: u64,
    /// Beginnings and ends of marks in them.
    pub marks: u64,
}

/// Where chunks come from, and how many times the limit they may be if their size explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A message or a bundle: whoever sends it may mean harm.
    Peer = 4,
    /// Storage: it has grown by what was taken before.
    Storage = 16,
}

/// Why chunks are not to be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum NotUnpacked {
    #[error("unpacks to more than {limit} (sync.max_inflated)")]
    TooMuch { limit: Size },
    #[error("is no sequence of automerge chunks")]
    Malformed,
}

/// What one chunk after the other unpacks to, if that is within `limit`, or is explained by how many bytes they are. What
/// came in pieces has to be put together first: automerge reads over their ends.
///
/// # Errors
/// It is more, or is no sequence of chunks.
pub fn of(chunks: &[u8], from: Origin, limit: Size) -> Result<Unpacked, NotUnpacked> {
    let allowed = allowed(chunks.len(), from, limit);
    let mut meter = Meter { found: Unpacked::default(), from, allowed };
    match meter.chunks(chunks) {
        Ok(()) => Ok(meter.found),
        Err(Stop::TooMuch) => Err(NotUnpacked::TooMuch { limit }),
        Err(Stop::Malformed) => Err(NotUnpacked::Malformed),
    }
}

/// What `size` bytes may unpack to.
pub fn allowed(size: usize, from: Origin, limit: Size) -> u64 {
    let explained = (size as u64).saturating_mul(EXPLAINED);
    explained.min(limit.0.saturating_mul(from as u64)).max(limit.0)
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
    allowed: u64,
}

impl Meter {
    fn add(&mut self, bytes: u64) -> Result<(), Stop> {
        self.found.bytes = self.found.bytes.saturating_add(bytes);
        if self.found.bytes > self.allowed { Err(Stop::TooMuch) } else { Ok(()) }
    }

    fn chunks(&mut self, mut rest: &[u8]) -> Result<(), Stop> {
        while !rest.is_empty() {
            let mut head = [0; 9];
            rest.read_exact(&mut head)?;
            let [m0, m1, m2, m3, _, _, _, _, kind] = head;
            if [m0, m1, m2, m3] != MAGIC {
                return Err(Stop::Malformed);
            }
            let length = usize::try_from(unsigned(&mut rest)?).map_err(|_| Stop::Malformed)?;
            let (data, after) = rest.split_at_checked(length).ok_or(Stop::Malformed)?;
            rest = after;
            let measured = match kind {
                0 => self.document(data),
                1 => self.change(data),
                2 => self.deflated_change(data),
                3 => self.bundle(data),
                _ => return Err(Stop::Malformed),
            };
            measured?;
        }
        Ok(())
    }

    fn deflated_change(&mut self, data: &[u8]) -> Result<(), Stop> {
        let mut inflated = BufReader::new(Inflated::over(data));
        let measured = self.change(&mut inflated);
        // A bomb ends early, and looks cut off.
        self.end(inflated)?;
        measured
    }

    /// Count all that was deflated, also what is of no meaning.
    fn end(&mut self, mut inflated: BufReader<Inflated<impl BufRead>>) -> Result<(), Stop> {
        // Where it does not inflate any further it ends for automerge too.
        let _ = io::copy(&mut inflated.by_ref().take(self.allowed), &mut io::sink());
        let Inflated { bytes, is_bomb, .. } = inflated.into_inner();
        if is_bomb { Err(Stop::TooMuch) } else { self.add(bytes.saturating_mul(INFLATED)) }
    }

    fn change(&mut self, mut data: impl BufRead) -> Result<(), Stop> {
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
        let operations = self.rows(data, &columns, CHANGE_OPERATION)?;
        self.add(operations.saturating_mul(CHANGE_OPERATION))
    }

    fn document(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        let data = &mut data;
        let actors = actors(data)?;
        hashes(data)?;
        let (changes, operations) = (columns(data)?, columns(data)?);
        let changes = self.changes_of(data, &changes, actors)?;
        let operations = self.rows(data, &operations, DOCUMENT_OPERATION)?;
        self.add(operations.saturating_mul(DOCUMENT_OPERATION))?;
        self.named(actors, changes, operations)
    }

    fn bundle(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        let data = &mut data;
        hashes(data)?;
        let actors = actors(data)?;
        let change_columns = columns(data)?;
        let changes = self.changes_of(data, &change_columns, actors)?;
        let operation_columns = columns(data)?;
        let operations = self.rows(data, &operation_columns, CHANGE_OPERATION)?;
        self.add(operations.saturating_mul(CHANGE_OPERATION))?;
        self.named(actors, changes, operations)
    }

    /// Each change that is made anew of a chunk has the ids of all actors that its operations name.
    fn named(&mut self, actors: Actors, changes: u64, operations: u64) -> Result<(), Stop> {
        let names = changes.saturating_mul(actors.count).min(operations.saturating_mul(NAMES));
        let size = actors.longest.saturating_add(ACTOR).saturating_mul(COPIES);
        self.add(names.saturating_mul(size))
    }

    /// The changes that a chunk tells of; automerge makes each of them anew, with the id of its actor. Returns how many.
    fn changes_of(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        actors: Actors,
    ) -> Result<u64, Stop> {
        let cost = DOCUMENT_CHANGE.saturating_add(actors.longest.saturating_mul(COPIES));
        let changes = self.rows(data, columns, cost)?;
        self.found.changes = self.found.changes.saturating_add(changes);
        self.add(changes.saturating_mul(cost))?;
        Ok(changes)
    }

    /// The rows of the longest of some columns; each of them counts `cost`, so far.
    fn rows(
        &mut self,
        data: &mut impl BufRead,
        columns: &[Column],
        cost: u64,
    ) -> Result<u64, Stop> {
        let left = self.allowed.saturating_sub(self.found.bytes);
        let most = left / cost.max(1);
        let mut longest = 0;
        for column in columns {
            let mut own = data.by_ref().take(column.length);
            let Values { rows, text, marks, is_endless } = if column.is_deflated() {
                let mut inflated = BufReader::new(Inflated::over(&mut own));
                let values = values(column, &mut inflated, most, self.allowed);
                self.end(inflated)?;
                values
            } else {
                self.add(column.length)?;
                values(column, &mut own, most, self.allowed)
            };
            if is_endless {
                return Err(Stop::Malformed);
            }
            if rows > most {
                return Err(Stop::TooMuch);
            }
            self.add(text.saturating_mul(COPIES))?;
            self.add_marks(marks)?;
            longest = longest.max(rows);
            io::copy(&mut own, &mut io::sink())?;
        }
        Ok(longest)
    }

    /// Marks that are stored already were bounded when they came, and may have become many since.
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

/// Deflated bytes, inflated as they are read, up to where they are seen to be a bomb.
struct Inflated<R> {
    decoder: DeflateDecoder<R>,
    bytes: u64,
    is_bomb: bool,
}

impl<R: BufRead> Inflated<R> {
    fn over(from: R) -> Self {
        Self { decoder: DeflateDecoder::new(from), bytes: 0, is_bomb: false }
    }
}

impl<R: BufRead> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_bomb {
            return Ok(0);
        }
        let read = self.decoder.read(buffer)?;
        self.bytes += read as u64;
        let packed = self.decoder.total_in().max(1);
        self.is_bomb = self.bytes > INFLATES && self.bytes / packed > DENSE;
        Ok(read)
    }
}

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
    const GROUP: u64 = 0;
    const BOOLEAN: u64 = 4;
    const TEXT: u64 = 5;
    const RAW: u64 = 7;
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
