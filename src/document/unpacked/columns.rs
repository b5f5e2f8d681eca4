//! The columns of a chunk: their headers, and the values that their runs claim.

use std::io::{self, BufRead};

use super::{
    limit::Stop,
    reader::{count, signed, skip, unsigned},
};

/// How many columns a chunk may have. Today's have 18.
const MAX_COLUMNS: u64 = 1_000;
/// Column type: how many values of other columns belong to each row.
const GROUP: u64 = 0;
/// Column type: booleans.
const BOOLEAN: u64 = 4;
/// Column type: texts.
const TEXT: u64 = 5;
/// Column type: types and lengths of values.
const LENGTHS: u64 = 6;
/// Column type: values.
pub(super) const RAW: u64 = 7;

/// The header of a column.
pub(super) struct Column {
    /// An id, a flag for deflate, and a type.
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

    /// The id, which columns that belong together share.
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
    /// How many values there are. In a group column, the sum of the values if that is more.
    pub(super) rows: u64,
    /// Bytes of all texts, repeated ones included.
    pub(super) text: u64,
    /// In a column of types and lengths, the sum of the lengths.
    pub(super) lengths: u64,
    /// In the column of actions, how many begin or end a mark.
    pub(super) marks: u64,
    /// automerge 0.12 would read the column in an endless loop.
    pub(super) is_endless: bool,
}

/// Sums the values of a column. Stops after more than `most` values, or `most_text` bytes of text.
pub(super) fn values(
    column: &Column,
    data: &mut impl BufRead,
    most: u64,
    most_text: u64,
) -> Values {
    let mut found = Values::default();
    // If the column ends within a value, automerge reads the values before it as well.
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
                // hexane 1.0, `BoolDecoder`: if it cannot read a count, it tries again at the same
                // position.
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
