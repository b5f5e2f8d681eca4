//! Decisions that are drawn from bytes.

/// Bytes from which decisions are drawn. After the last byte, zeros are drawn.
pub(crate) struct Draw<'a>(&'a [u8]);

impl<'a> Draw<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    pub(super) fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => 1,
            2 => u64::from(self.byte()),
            3 => 1_000_002,
            4 => 300_000_000,
            5 => u64::from(u32::MAX) - u64::from(self.byte()),
            6 => u64::from(u32::MAX) + 1 + u64::from(self.byte()),
            _ => u64::MAX - u64::from(self.byte()),
        }
    }
}
