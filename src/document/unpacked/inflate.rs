//! Inflates deflated bytes up to a limit.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    rc::Rc,
};

// flate2: what automerge itself inflates with.
use flate2::bufread::DeflateDecoder;

/// How many bytes may be inflated. It grows as values are claimed.
#[derive(Clone, Debug, Default)]
pub(super) struct Room(Rc<Cell<u64>>);

impl Room {
    pub(super) fn new(bytes: u64) -> Self {
        Self(Rc::new(Cell::new(bytes)))
    }

    pub(super) fn extend(&self, bytes: u64) {
        self.0.set(self.0.get().saturating_add(bytes));
    }
}

/// Deflated bytes, inflated as they are read, as long as there is room.
pub(super) struct Inflated<R> {
    decoder: DeflateDecoder<R>,
    pub(super) bytes: u64,
    room: Room,
    pub(super) is_over: bool,
}

impl<R: BufRead> Inflated<R> {
    pub(super) fn over(from: R, room: Room) -> Self {
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
