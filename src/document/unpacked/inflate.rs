//! Inflates deflated bytes up to a limit.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    rc::Rc,
};

// automerge itself inflates with flate2.
use flate2::bufread::DeflateDecoder;

/// How many bytes may be inflated. Clones share one budget.
#[derive(Clone, Debug, Default)]
pub(super) struct InflateBudget(Rc<Cell<u64>>);

impl InflateBudget {
    pub(super) fn new(bytes: u64) -> Self {
        Self(Rc::new(Cell::new(bytes)))
    }

    /// Increases the budget.
    pub(super) fn extend(&self, bytes: u64) {
        self.0.set(self.0.get().saturating_add(bytes));
    }
}

/// Inflates bytes as they are read, up to a budget.
pub(super) struct Inflated<R> {
    decoder: DeflateDecoder<R>,
    /// How many bytes were inflated.
    pub(super) bytes: u64,
    budget: InflateBudget,
    /// The budget is exceeded: nothing more is inflated.
    pub(super) is_over: bool,
}

impl<R: BufRead> Inflated<R> {
    pub(super) fn new(from: R, budget: InflateBudget) -> Self {
        Self { decoder: DeflateDecoder::new(from), bytes: 0, budget, is_over: false }
    }
}

impl<R: BufRead> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_over {
            return Ok(0);
        }
        let read = self.decoder.read(buffer)?;
        self.bytes += read as u64;
        self.is_over = self.bytes > self.budget.0.get();
        Ok(read)
    }
}
