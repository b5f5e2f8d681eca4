//! The columns of a chunk: their headers, and the values that their runs claim.

use std::io::{self, BufRead};

use super::{
    limit::Stop,
    reader::{count, signed, skip, unsigned},
};

/// More columns than any chunk has: 18 today.
const MAX_COLUMNS: u64 = 1_000;
/// Types of columns: counts of a group, booleans, texts, types and lengths of values, values.
const GROUP: u64 = 0;
const BOOLEAN: u64 = 4;
const TEXT: u64 = 5;
const LENGTHS: u64 = 6;
pub(super) const RAW: u64 = 7;

/// What a column holds, and in how many bytes.
pub(super) struct Column {
    /// The specification: an id, a flag for deflate, and a type.
    specification: u64,
    pub(super) length: u64,
}

impl Column {
    pub(super) fn is_deflated(&self) -> bool {
        self.specification & 8 != 0
    }

    pub(super) fn kind(&self) -> u64 {
        self.specification & 7
    }

    /// The number that columns share which belong together.
    pub(super) fn group(&self) -> u64 {
        self.specification >> 4
    }

    /// Whether it holds the types and lengths of values.
    pub(super) fn is_lengths(&self) -> bool {
        self.kind() == LENGTHS
    }
}

pub(super) fn columns(data: &mut impl BufRead) -> Result<Vec<Column>, Stop> {
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
pub(super) struct Values {
    /// How many values. In a group column, which says how many values of others belong to each row,
    /// the sum of these if that is more.
    pub(super) rows: u64,
    /// Bytes of all its texts, each as often as it stands there.
    pub(super) text: u64,
    /// If these are types and lengths, the sum of the lengths.
    pub(super) lengths: u64,
    /// If these are actions, how many of them make or end a mark.
    pub(super) marks: u64,
    /// automerge 0.12 would read them for ever.
    pub(super) is_endless: bool,
}

/// Count the values of a column, up to where there are more than `most`, or more text than that.
pub(super) fn values(
    column: &Column,
    data: &mut impl BufRead,
    most: u64,
    most_text: u64,
) -> Values {
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
    /// The column of actions, without its flag for deflate, and the action (automerge 0.12,
    /// `op_set2/columns.rs`).
    const ACTIONS: u64 = 0x42;
    const MARK: u64 = 7;
    let (kind, is_action) = (column.kind(), column.specification & !8 == ACTIONS);
    let mut grouped = 0u64;
    while found.rows <= most && found.text <= most_text && !data.fill_buf()?.is_empty() {
        match kind {
            RAW => return Ok(()),
            BOOLEAN => match count(data) {
                Some(count) => found.rows = found.rows.saturating_add(count),
                // hexane 1.0, `BoolDecoder`: where it can read no count it tries again, at the same
                // place.
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
