//! The encoding of chunks and columns.

use sha2::{Digest, Sha256};

use super::draw::Draw;

/// The first bytes of every chunk.
pub(super) const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// Writes an unsigned LEB128 number.
pub(super) fn leb(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f | 0x80) as u8);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes a signed LEB128 number.
pub(super) fn signed_leb(mut number: i64, out: &mut Vec<u8>) {
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        let is_last = (number == 0 && byte & 0x40 == 0) || (number == -1 && byte & 0x40 != 0);
        if is_last {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

/// Reads an unsigned LEB128 number.
pub(super) fn read_leb(data: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    while let Some((byte, rest)) = data.split_first() {
        *data = rest;
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// Reads a signed LEB128 number.
pub(super) fn read_signed(data: &mut &[u8]) -> i64 {
    let (mut number, mut shift) = (0i64, 0);
    while let Some((byte, rest)) = data.split_first() {
        *data = rest;
        number |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            if shift < 64 && byte & 0x40 != 0 {
                number |= -1 << shift;
            }
            break;
        }
    }
    number
}

/// Takes the first `length` bytes.
pub(super) fn take<'a>(data: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(length.min(data.len()));
    *data = rest;
    taken
}

/// Takes bytes after their length.
pub(super) fn prefixed<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let length = read_leb(data) as usize;
    take(data, length)
}

/// Reads columns: their specifications and lengths, and then their data.
pub(super) fn columns(data: &mut &[u8]) -> Vec<(u64, Vec<u8>)> {
    let heads = read_heads(data);
    heads.into_iter().map(|(name, length)| (name, take(data, length).to_vec())).collect()
}

/// Reads the specifications and the lengths of columns.
pub(super) fn read_heads(data: &mut &[u8]) -> Vec<(u64, usize)> {
    let count = read_leb(data);
    (0..count).map(|_| (read_leb(data), read_leb(data) as usize)).collect()
}

/// Writes the specifications and the lengths of columns.
pub(super) fn write_heads(columns: &[(u64, Vec<u8>)], out: &mut Vec<u8>) {
    leb(columns.len() as u64, out);
    for (name, data) in columns {
        leb(*name, out);
        leb(data.len() as u64, out);
    }
}

/// A chunk with a valid checksum, and its hash.
pub(super) fn chunk(kind: u8, contents: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let mut checked = vec![kind];
    leb(contents.len() as u64, &mut checked);
    checked.extend(contents);
    let hash: [u8; 32] = Sha256::digest(&checked).into();
    ([&MAGIC[..], &hash[..4], &checked].concat(), hash)
}

/// Alters the bytes of a column. Returns a description.
pub(super) fn alter_column(data: &mut Vec<u8>, draw: &mut Draw<'_>) -> &'static str {
    match draw.below(6) {
        0 => {
            let at = draw.below(data.len());
            let bit = draw.below(8);
            if let Some(byte) = data.get_mut(at) {
                *byte ^= 1 << bit;
            }
            "a bit flipped"
        }
        1 => {
            data.pop();
            "cut short"
        }
        2 => {
            data.push(draw.byte());
            "a byte longer"
        }
        3 => {
            data.clear();
            "empty"
        }
        4 => {
            let again = data.clone();
            data.extend(again);
            "twice as long"
        }
        // A run of one value, written as literals of one value each, or the reverse.
        _ => {
            if let Some(first) = data.first_mut() {
                *first = match *first {
                    0x7f => 1,
                    1 => 0x7f,
                    other => other.wrapping_add(1),
                };
            }
            "its first run written in another way"
        }
    }
}
