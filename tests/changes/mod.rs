//! Generates documents and invalid changes to them: valid changes of which a field or column was altered.
//!
//! Every decision is drawn from bytes, so that a property test can shrink a case by shrinking its bytes, and a
//! fuzzer can explore cases by altering them. Format: <https://automerge.org/automerge-binary-format-spec/>.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "it works on what it made itself; unit tests use it, too, where these are allowed"
)]

use automerge::{
    ActorId, Automerge, Change, ChangeHash, ObjType, ROOT, ReadDoc, ScalarValue,
    marks::{ExpandMark, Mark},
    transaction::{CommitOptions, Transactable},
};
use flate2::{Compression, write::DeflateEncoder};
use sha2::{Digest, Sha256};
use std::io::Write;

const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// Bytes from which decisions are drawn. After the last byte, zeros are drawn.
pub(crate) struct Draw<'a>(&'a [u8]);

impl<'a> Draw<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    fn number(&mut self) -> u64 {
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

/// A document, and changes that are sent to it.
pub(crate) struct Case {
    /// The document before the changes.
    pub(crate) base: Automerge,
    /// The messages: chunks of changes, in the order in which they are sent.
    pub(crate) messages: Vec<Vec<u8>>,
    /// A description of the alterations, for failure messages.
    pub(crate) story: Vec<String>,
}

fn actor(n: usize) -> ActorId {
    ActorId::from([n as u8 + 1; 16])
}

impl Case {
    pub(crate) fn draw(bytes: &[u8]) -> Self {
        let mut draw = Draw::new(bytes);
        let base = document(&mut draw);
        let mut story = Vec::new();
        // Honest changes that the base lacks, in the order of their dependencies.
        let mut ahead = base.clone();
        for _ in 0..=draw.below(3) {
            let by = draw.below(3);
            edit(&mut ahead, by, &mut draw);
        }
        let mut honest: Vec<Change> = ahead.get_changes(&base.get_heads());
        if draw.one_in(8) {
            // Changes that the base already has are altered, too.
            honest = ahead.get_changes(&[]);
        }
        let mut sent = Vec::new();
        // An altered change has another hash. Changes that depend on it refer to the new hash, or do not.
        let mut renamed: Vec<(ChangeHash, ChangeHash)> = Vec::new();
        let known: Vec<ChangeHash> = ahead.get_changes(&[]).iter().map(Change::hash).collect();
        for (n, change) in honest.iter().enumerate() {
            let mut raw = Raw::of(change);
            if !draw.one_in(4) {
                for (from, to) in &renamed {
                    raw.deps.iter_mut().filter(|dep| *dep == from).for_each(|dep| *dep = *to);
                }
            }
            let is_last = n + 1 == honest.len();
            let alterations = if is_last { 1 + draw.below(3) } else { draw.below(2) };
            for _ in 0..alterations {
                story.push(raw.alter(&mut draw, &known));
            }
            let (bytes, hash) = raw.bytes(draw.one_in(4));
            renamed.push((change.hash(), hash));
            sent.push(bytes);
        }
        match draw.below(8) {
            0 => sent.reverse(),
            1 => {
                let twice = sent.clone();
                sent.extend(twice);
            }
            _ => {}
        }
        let saved = || base.save();
        let messages = match draw.below(8) {
            // One message for each change.
            0 | 1 => sent,
            // One message for all changes.
            2..=4 => vec![sent.concat()],
            // After the document, as a bundle or a store may have them.
            5 => vec![[saved(), sent.concat()].concat()],
            // A document that was altered itself.
            6 => {
                let mut document = RawDocument::of(&ahead);
                for _ in 0..=draw.below(2) {
                    story.push(document.alter(&mut draw));
                }
                vec![document.bytes()]
            }
            // Alters some of its bytes.
            _ => {
                let mut all = sent.concat();
                for _ in 0..=draw.below(3) {
                    let at = usize::from(draw.byte()) * 7 % all.len().max(1);
                    let bit = draw.below(8);
                    if let Some(byte) = all.get_mut(at) {
                        *byte ^= 1 << bit;
                    }
                }
                story.push("flipped bits, under the old checksum".to_owned());
                vec![all]
            }
        };
        Self { base, messages, story }
    }
}

impl Case {
    /// A description of the case.
    pub(crate) fn describe(&self) -> String {
        let mut lines = self.story.clone();
        lines.push(format!("the document has heads {:?}", self.base.get_heads()));
        let changes = self.base.get_changes(&[]);
        lines.extend(changes.iter().map(|change| format!("it has {:?}", change.decode())));
        for message in &self.messages {
            lines.push(format!("sent: {message:?}"));
            if let Ok(change) = Change::try_from(message.as_slice()) {
                lines.push(format!("which is {:?}", change.decode()));
            }
        }
        lines.join("\n")
    }
}

/// An honest document of one to three authors.
fn document(draw: &mut Draw<'_>) -> Automerge {
    let mut doc = Automerge::new().with_actor(actor(0));
    let mut tx = doc.transaction();
    tx.put_object(ROOT, "text", ObjType::Text).expect("a text");
    tx.put_object(ROOT, "list", ObjType::List).expect("a list");
    tx.put(ROOT, "count", ScalarValue::counter(1)).expect("a counter");
    tx.commit_with(CommitOptions::default().with_time(1_700_000_000));
    for _ in 0..draw.below(4) {
        let by = draw.below(3);
        if draw.one_in(3) {
            // Two concurrent changes.
            let mut other = doc.clone();
            edit(&mut other, (by + 1) % 3, draw);
            edit(&mut doc, by, draw);
            doc.merge(&mut other).expect("honest documents merge");
        } else {
            edit(&mut doc, by, draw);
        }
    }
    doc
}

/// An honest change.
fn edit(doc: &mut Automerge, by: usize, draw: &mut Draw<'_>) {
    doc.set_actor(actor(by));
    if draw.one_in(10) {
        doc.empty_commit(CommitOptions::default());
        return;
    }
    let object = |doc: &Automerge, key: &str| {
        doc.get(ROOT, key).ok().flatten().map(|(_, id)| id).unwrap_or(ROOT)
    };
    let (text, list) = (object(doc, "text"), object(doc, "list"));
    let length = doc.length(&text);
    let mut options = CommitOptions::default().with_time(1_700_000_000 + i64::from(draw.byte()));
    if draw.one_in(5) {
        options = options.with_message("why");
    }
    let what = draw.below(9);
    let mut tx = doc.transaction();
    // An operation that does not apply to this document, such as a mark in an empty text, gives an empty change, or none.
    let done = match what {
        0 => tx.put(ROOT, format!("k{}", draw.below(3)), i64::from(draw.byte())),
        1 => tx.splice_text(&text, draw.below(length + 1), 0, "words "),
        2 => tx.splice_text(&text, 0, 1.min(length) as isize, ""),
        3 => tx.insert(&list, 0, "item"),
        4 => tx.delete(ROOT, format!("k{}", draw.below(3)).as_str()),
        5 => tx.increment(ROOT, "count", 2),
        6 if length > 2 => {
            let mark = Mark::new("bold".to_owned(), true, 0, 1 + draw.below(length - 1));
            tx.mark(&text, mark, ExpandMark::Both)
        }
        7 => tx.put(ROOT, "bytes", ScalarValue::Bytes(vec![draw.byte(); 300])),
        _ => tx.put_object(ROOT, "map", ObjType::Map).map(drop),
    };
    let _ = done;
    tx.commit_with(options);
}

fn leb(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f | 0x80) as u8);
        number >>= 7;
    }
    out.push(number as u8);
}

fn signed_leb(mut number: i64, out: &mut Vec<u8>) {
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

fn read_leb(data: &mut &[u8]) -> u64 {
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

fn read_signed(data: &mut &[u8]) -> i64 {
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

fn take<'a>(data: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(length.min(data.len()));
    *data = rest;
    taken
}

fn prefixed<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let length = read_leb(data) as usize;
    take(data, length)
}

fn columns(data: &mut &[u8]) -> Vec<(u64, Vec<u8>)> {
    let heads = read_heads(data);
    heads.into_iter().map(|(name, length)| (name, take(data, length).to_vec())).collect()
}

fn read_heads(data: &mut &[u8]) -> Vec<(u64, usize)> {
    let count = read_leb(data);
    (0..count).map(|_| (read_leb(data), read_leb(data) as usize)).collect()
}

fn write_heads(columns: &[(u64, Vec<u8>)], out: &mut Vec<u8>) {
    leb(columns.len() as u64, out);
    for (name, data) in columns {
        leb(*name, out);
        leb(data.len() as u64, out);
    }
}

/// A chunk with a valid checksum, and its hash.
fn chunk(kind: u8, contents: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let mut checked = vec![kind];
    leb(contents.len() as u64, &mut checked);
    checked.extend(contents);
    let hash: [u8; 32] = Sha256::digest(&checked).into();
    ([&MAGIC[..], &hash[..4], &checked].concat(), hash)
}

/// Alters the bytes of a column. Returns a description.
fn alter_column(data: &mut Vec<u8>, draw: &mut Draw<'_>) -> &'static str {
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

/// The fields of a change.
struct Raw {
    deps: Vec<ChangeHash>,
    actor: Vec<u8>,
    seq: u64,
    start_op: u64,
    time: i64,
    message: Vec<u8>,
    others: Vec<Vec<u8>>,
    columns: Vec<(u64, Vec<u8>)>,
    extra: Vec<u8>,
}

impl Raw {
    fn of(change: &Change) -> Self {
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

    fn bytes(&self, is_deflated: bool) -> (Vec<u8>, ChangeHash) {
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
    fn alter(&mut self, draw: &mut Draw<'_>, known: &[ChangeHash]) -> String {
        match draw.below(22) {
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
            8 => {
                self.deps = known.get(draw.below(known.len())).copied().into_iter().collect();
                "another dependency".to_owned()
            }
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
            12 => {
                self.others.reverse();
                "other actors in another order".to_owned()
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
            15 => {
                self.extra = match draw.below(3) {
                    0 => vec![draw.byte(); 1 + draw.below(20)],
                    1 => Vec::new(),
                    _ => [&[draw.byte(); 4][..], b"author"].concat(),
                };
                format!("{} trailing bytes", self.extra.len())
            }
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

/// The parts of a saved document.
struct RawDocument {
    actors: Vec<Vec<u8>>,
    heads: Vec<[u8; 32]>,
    changes: Vec<(u64, Vec<u8>)>,
    operations: Vec<(u64, Vec<u8>)>,
    suffix: Vec<u8>,
}

impl RawDocument {
    fn of(doc: &Automerge) -> Self {
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

    fn bytes(&self) -> Vec<u8> {
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

    fn alter(&mut self, draw: &mut Draw<'_>) -> String {
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
