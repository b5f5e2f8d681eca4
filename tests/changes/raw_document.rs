//! A saved document as its parts.

use automerge::Automerge;

use super::{
    draw::Draw,
    encoding::{alter_column, chunk, leb, prefixed, read_heads, read_leb, take, write_heads},
};

/// The parts of a saved document.
pub(super) struct RawDocument {
    actors: Vec<Vec<u8>>,
    heads: Vec<[u8; 32]>,
    changes: Vec<(u64, Vec<u8>)>,
    operations: Vec<(u64, Vec<u8>)>,
    suffix: Vec<u8>,
}

impl RawDocument {
    pub(super) fn of(doc: &Automerge) -> Self {
        let saved = doc.save_nocompress();
        let mut data = &saved[9..];
        let _ = read_leb(&mut data);
        let actors = read_leb(&mut data);
        let actors = (0..actors).map(|_| prefixed(&mut data).to_vec()).collect();
        let heads = read_leb(&mut data);
        let heads = (0..heads).map(|_| take(&mut data, 32).try_into().expect("32 bytes")).collect();
        let (changes, operations) = (read_heads(&mut data), read_heads(&mut data));
        let mut bodies = |heads: Vec<(u64, usize)>| -> Vec<(u64, Vec<u8>)> {
            heads
                .into_iter()
                .map(|(name, length)| (name, take(&mut data, length).to_vec()))
                .collect()
        };
        let (changes, operations) = (bodies(changes), bodies(operations));
        let suffix = data.to_vec();
        Self { actors, heads, changes, operations, suffix }
    }

    /// Encodes the document as a chunk.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        leb(self.actors.len() as u64, &mut out);
        for actor in &self.actors {
            leb(actor.len() as u64, &mut out);
            out.extend(actor);
        }
        leb(self.heads.len() as u64, &mut out);
        self.heads.iter().for_each(|head| out.extend(head));
        write_heads(&self.changes, &mut out);
        write_heads(&self.operations, &mut out);
        self.changes.iter().chain(&self.operations).for_each(|(_, data)| out.extend(data));
        out.extend(&self.suffix);
        chunk(0, &out).0
    }

    /// Alters a part. Returns a description.
    pub(super) fn alter(&mut self, draw: &mut Draw<'_>) -> String {
        match draw.below(8) {
            0 => {
                self.actors.push(vec![0xee; 16]);
                "an actor that made nothing".to_owned()
            }
            1 => {
                self.actors.reverse();
                "actors in another order".to_owned()
            }
            2 => {
                self.heads.pop();
                "a head is missing".to_owned()
            }
            3 => {
                self.suffix.push(draw.byte());
                "a trailing byte".to_owned()
            }
            n => {
                let columns = if n < 6 { &mut self.changes } else { &mut self.operations };
                let at = draw.below(columns.len());
                match columns.get_mut(at) {
                    Some((name, data)) => {
                        format!("document column {name:#x}: {}", alter_column(data, draw))
                    }
                    None => "no column".to_owned(),
                }
            }
        }
    }
}
