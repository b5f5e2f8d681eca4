//! Generates documents and invalid changes to them: valid changes of which a field or column was
//! altered.
//!
//! Every decision is drawn from bytes, so that a property test can shrink a case by shrinking its
//! bytes, and a fuzzer can explore cases by altering them. Format:
//! <https://automerge.org/automerge-binary-format-spec/>.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "it works on what it made itself; unit tests use it, too, where these are allowed"
)]

mod draw;
mod encoding;
mod raw_change;
mod raw_document;

use automerge::{
    Automerge, Change, ChangeHash, ObjType, ROOT, ReadDoc, ScalarValue,
    marks::{ExpandMark, Mark},
    transaction::{CommitOptions, Transactable},
};

use self::{
    draw::Draw,
    raw_change::{RawChange, actor},
    raw_document::RawDocument,
};

/// A document, and changes that are sent to it.
pub(crate) struct Case {
    /// The document before the changes.
    pub(crate) base: Automerge,
    /// The messages: chunks of changes, in the order in which they are sent.
    pub(crate) messages: Vec<Vec<u8>>,
    /// A description of the alterations, for failure messages.
    pub(crate) story: Vec<String>,
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
        // An altered change has another hash. Changes that depend on it refer to the new hash, or
        // do not.
        let mut renamed: Vec<(ChangeHash, ChangeHash)> = Vec::new();
        let known: Vec<ChangeHash> = ahead.get_changes(&[]).iter().map(Change::hash).collect();
        for (n, change) in honest.iter().enumerate() {
            let mut raw = RawChange::of(change);
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
    // An operation that does not apply to this document, such as a mark in an empty text, gives an
    // empty change, or none.
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
