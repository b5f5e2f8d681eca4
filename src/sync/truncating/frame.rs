//! Headers of WebSocket frames (RFC 6455, section 5.2).

pub(super) const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
pub(super) const MASKED: u8 = 0x80;
pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
const PONG: u8 = 10;
/// The longest payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// A frame's header.
pub(super) struct Frame {
    pub(super) is_final: bool,
    pub(super) opcode: u8,
    pub(super) length: u64,
    pub(super) key: [u8; 4],
}

impl Frame {
    /// Parses a complete header. Returns nothing for one that no client may send.
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = header.split_first_chunk()?;
        let (extended, key) = rest.split_last_chunk()?;
        let (is_final, opcode) = (first & FINAL != 0, first & OPCODE);
        let length = if extended.is_empty() {
            u64::from(second & !MASKED)
        } else {
            extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
        };
        let frame = Self { is_final, opcode, length, key: *key };
        let is_allowed = match opcode {
            CONTINUATION..=BINARY => true,
            CLOSE..=PONG => is_final && length <= MAX_CONTROL,
            _ => false,
        };
        (is_allowed && second & MASKED != 0 && first & RESERVED == 0).then_some(frame)
    }
}

/// Returns the length of a header, from its first two bytes if they are there.
pub(super) fn header_length(begin: &[u8]) -> usize {
    let Some(second) = begin.get(1) else { return 2 };
    let extended = match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & MASKED == 0 { 0 } else { 4 }
}

/// Writes the header of a masked frame of at most 64 KiB.
pub(super) fn write_header(first: u8, length: u64, key: [u8; 4], out: &mut impl FnMut(&[u8])) {
    match u8::try_from(length) {
        Ok(length @ 0..=125) => out(&[first, MASKED | length]),
        _ => {
            let [.., high, low] = length.to_be_bytes();
            out(&[first, MASKED | 126, high, low]);
        }
    }
    out(&key);
}
