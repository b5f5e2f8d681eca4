//! A change as its fields.

use std::io::Write;

use automerge::{ActorId, Change, ChangeHash};
use flate2::{Compression, write::DeflateEncoder};

use super::{
    draw::Draw,
    encoding::{
        MAGIC, alter_column, chunk, columns, leb, prefixed, read_leb, read_signed, signed_leb,
        take, write_heads,
    },
};

/// The id of the nth author.
pub(super) fn actor(n: usize) -> ActorId {
    ActorId::from([n as u8 + 1; 16])
}

/// The fields of a change.
pub(super) struct RawChange {
    pub(super) deps: Vec<ChangeHash>,
    actor: Vec<u8>,
    seq: u64,
    start_op: u64,
    time: i64,
    message: Vec<u8>,
    others: Vec<Vec<u8>>,
    columns: Vec<(u64, Vec<u8>)>,
    extra: Vec<u8>,
}

impl RawChange {
    pub(super) fn of(change: &Change) -> Self {
        let mut data = &change.raw_bytes()[9..];
        let _ = read_leb(&mut data);
        let deps = read_leb(&mut data);
        let hash = |data: &mut &[u8]| ChangeHash(take(data, 32).try_into().expect("32 bytes"));
        let deps = (0..deps).map(|_| hash(&mut data)).collect();
        let actor = prefixed(&mut data).to_vec();
        let (seq, start_op) = (read_leb(&mut data), read_leb(&mut data));
        let time = read_signed(&mut data);
        let message = prefixed(&mut data).to_vec();
        let others = read_leb(&mut data);
        let others = (0..others).map(|_| prefixed(&mut data).to_vec()).collect();
        let columns = columns(&mut data);
        let extra = data.to_vec();
        Self { deps, actor, seq, start_op, time, message, others, columns, extra }
    }

    /// Encodes the change as a chunk. Returns its hash, too.
    pub(super) fn bytes(&self, is_deflated: bool) -> (Vec<u8>, ChangeHash) {
        let mut out = Vec::new();
        leb(self.deps.len() as u64, &mut out);
        self.deps.iter().for_each(|dep| out.extend(dep.0));
        leb(self.actor.len() as u64, &mut out);
        out.extend(&self.actor);
        leb(self.seq, &mut out);
        leb(self.start_op, &mut out);
        signed_leb(self.time, &mut out);
        leb(self.message.len() as u64, &mut out);
        out.extend(&self.message);
        leb(self.others.len() as u64, &mut out);
        for other in &self.others {
            leb(other.len() as u64, &mut out);
            out.extend(other);
        }
        write_heads(&self.columns, &mut out);
        self.columns.iter().for_each(|(_, data)| out.extend(data));
        out.extend(&self.extra);
        let (bytes, hash) = chunk(1, &out);
        if !is_deflated {
            return (bytes, ChangeHash(hash));
        }
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::best());
        deflate.write_all(&out).expect("written");
        let deflated = deflate.finish().expect("finished");
        let mut bytes = [&MAGIC[..], &hash[..4], &[2]].concat();
        leb(deflated.len() as u64, &mut bytes);
        bytes.extend(deflated);
        (bytes, ChangeHash(hash))
    }

    /// Alters a field. Returns a description.
    pub(super) fn alter(&mut self, draw: &mut Draw<'_>, known: &[ChangeHash]) -> String {
        match draw.below(22) {
            which @ (0 | 1 | 13..=15) => self.alter_scalar(which, draw),
            which @ 2..=8 => self.alter_dependencies(which, draw, known),
            which @ 9..=12 => self.alter_actors(which, draw),
            which => self.alter_columns(which, draw),
        }
    }

    /// Alters the sequence number, the first operation, the time, the message or the extra bytes.
    fn alter_scalar(&mut self, which: usize, draw: &mut Draw<'_>) -> String {
        match which {
            0 => {
                self.seq = match draw.below(4) {
                    0 => self.seq.wrapping_add(1),
                    1 => self.seq.saturating_sub(1),
                    2 => 1,
                    _ => draw.number(),
                };
                format!("seq is {}", self.seq)
            }
            1 => {
                self.start_op = match draw.below(6) {
                    0 => self.start_op + 1,
                    1 => self.start_op.saturating_sub(1),
                    2 => self.start_op + 500,
                    3 => 1,
                    4 => self.start_op + 900_000,
                    _ => draw.number(),
                };
                format!("startOp is {}", self.start_op)
            }
            13 => {
                self.time = match draw.below(4) {
                    0 => i64::MIN,
                    1 => i64::MAX,
                    2 => -1,
                    _ => (1 << 53) + 1,
                };
                format!("the time is {}", self.time)
            }
            14 => {
                self.message = match draw.below(4) {
                    0 => vec![0xff, 0xfe],
                    1 => b"x".repeat(5000),
                    2 => b"\0\n".to_vec(),
                    _ => Vec::new(),
                };
                "another message".to_owned()
            }
            _ => {
                self.extra = match draw.below(3) {
                    0 => vec![draw.byte(); 1 + draw.below(20)],
                    1 => Vec::new(),
                    _ => [&[draw.byte(); 4][..], b"author"].concat(),
                };
                format!("{} trailing bytes", self.extra.len())
            }
        }
    }

    /// Alters the dependencies.
    fn alter_dependencies(
        &mut self,
        which: usize,
        draw: &mut Draw<'_>,
        known: &[ChangeHash],
    ) -> String {
        match which {
            2 => {
                self.deps.pop();
                "a dependency is missing".to_owned()
            }
            3 => {
                self.deps.clear();
                "all dependencies are missing".to_owned()
            }
            4 => {
                self.deps.push(ChangeHash([draw.byte(); 32]));
                "a dependency that nobody has".to_owned()
            }
            5 => {
                let again = self.deps.first().copied();
                self.deps.extend(again);
                "a dependency twice".to_owned()
            }
            6 => {
                self.deps.extend(known.get(draw.below(known.len())).copied());
                self.deps.sort_unstable();
                "one more dependency".to_owned()
            }
            7 => {
                self.deps.reverse();
                "dependencies in another order".to_owned()
            }
            _ => {
                self.deps = known.get(draw.below(known.len())).copied().into_iter().collect();
                "another dependency".to_owned()
            }
        }
    }

    /// Alters the actor or the other actors.
    fn alter_actors(&mut self, which: usize, draw: &mut Draw<'_>) -> String {
        match which {
            9 => {
                self.actor = match draw.below(4) {
                    0 => actor(draw.below(3)).to_bytes().to_vec(),
                    1 => vec![draw.byte(); 16],
                    2 => Vec::new(),
                    _ => vec![draw.byte(); 3000],
                };
                format!("the actor's id has {} bytes", self.actor.len())
            }
            10 => {
                self.others.push(match draw.below(3) {
                    0 => actor(draw.below(3)).to_bytes().to_vec(),
                    1 => self.actor.clone(),
                    _ => vec![draw.byte(); 16],
                });
                "another actor more".to_owned()
            }
            11 => {
                self.others.pop();
                "another actor less".to_owned()
            }
            _ => {
                self.others.reverse();
                "other actors in another order".to_owned()
            }
        }
    }

    /// Alters the columns of the operations.
    fn alter_columns(&mut self, which: usize, draw: &mut Draw<'_>) -> String {
        match which {
            16 => {
                self.columns.clear();
                "no operations".to_owned()
            }
            17 => {
                let at = draw.below(self.columns.len());
                if at < self.columns.len() {
                    self.columns.remove(at);
                }
                "a column is missing".to_owned()
            }
            18 => {
                let name = u64::from(draw.byte());
                self.columns.push((name, vec![draw.byte(), draw.byte()]));
                if draw.one_in(2) {
                    self.columns.sort_by_key(|(name, _)| *name);
                }
                format!("one more column, {name}")
            }
            19 => {
                // The operations of a mark that begins and never ends, or ends and never began.
                self.columns = mark_columns(draw);
                "half a mark".to_owned()
            }
            _ => {
                let at = draw.below(self.columns.len());
                match self.columns.get_mut(at) {
                    Some((name, data)) => {
                        format!("column {name:#x}: {}", alter_column(data, draw))
                    }
                    None => "no column".to_owned(),
                }
            }
        }
    }
}

/// The columns of one operation on the document's text: a mark whose other half is missing.
fn mark_columns(draw: &mut Draw<'_>) -> Vec<(u64, Vec<u8>)> {
    let counter = 1 + draw.byte() % 4;
    let mut columns = vec![
        (0x01, vec![0x7f, 0]),
        (0x02, vec![0x7f, 1]),
        (0x11, vec![0x7f, 0]),
        (0x13, vec![0x7f, counter]),
        (0x34, vec![0, 1]),
        (0x42, vec![0x7f, 7]),
        (0x56, vec![0x7f, 0]),
        (0x70, vec![0x7f, 0]),
        (0x94, vec![0, 1]),
    ];
    if draw.one_in(2) {
        columns.push((0xa5, [&[0x7f, 4][..], b"bold"].concat()));
    }
    columns
}
