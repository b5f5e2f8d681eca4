//! Reads the numbers and lists of automerge chunks.

use std::io::{self, BufRead, Read};

/// Skips a list of change hashes.
pub(super) fn hashes(data: &mut impl BufRead) -> io::Result<()> {
    let count = unsigned(data)?;
    skip(data, count.saturating_mul(32))
}

/// How many actors a chunk names, and the length of the longest id.
#[derive(Clone, Copy)]
pub(super) struct Actors {
    pub(super) count: u64,
    pub(super) longest: u64,
}

/// Reads a list of actor ids.
pub(super) fn actors(data: &mut impl BufRead) -> io::Result<Actors> {
    let count = unsigned(data)?;
    let mut longest = 0;
    for _ in 0..count {
        longest = longest.max(prefixed(data)?);
    }
    Ok(Actors { count, longest })
}

/// Skips bytes that follow their length, which is returned.
pub(super) fn prefixed(data: &mut impl BufRead) -> io::Result<u64> {
    let length = unsigned(data)?;
    skip(data, length)?;
    Ok(length)
}

pub(super) fn skip(data: &mut impl BufRead, bytes: u64) -> io::Result<()> {
    let mut skipped = data.by_ref().take(bytes);
    if io::copy(&mut skipped, &mut io::sink())? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Reads an unsigned LEB128 number. More than 64 bits saturate.
pub(super) fn unsigned(data: &mut impl BufRead) -> io::Result<u64> {
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

/// Reads an unsigned LEB128 number as the `leb128` crate does. None if it is cut off or has more
/// than 64 bits.
pub(super) fn count(data: &mut impl BufRead) -> Option<u64> {
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

/// Reads a signed LEB128 number.
pub(super) fn signed(data: &mut impl BufRead) -> io::Result<i64> {
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
