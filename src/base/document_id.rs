//! Document ids: 16 bytes, written as base58check.
//!
//! The text form is automerge-repo's (`automerge-repo/src/AutomergeUrl.ts`): base58 with Bitcoin's
//! alphabet and a four-byte double SHA-256 checksum, 27 or 28 characters for most ids.

use std::{cell::RefCell, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest text form of 20 bytes (16 and the checksum) in base58.
const MAX_TEXT: usize = 28;
/// How many ids each thread remembers with their texts.
const REMEMBERED: usize = 256;

thread_local! {
    /// The ids that this thread has lately written and read, with their texts. The checksum and
    /// base58 take about a microsecond, and every message has an id.
    static WRITTEN: Remembered = Remembered::default();
    static READ: Remembered = Remembered::default();
}

/// Ids with their texts, each in the slot that the hash of a key chooses.
#[derive(Default)]
struct Remembered(RefCell<Vec<Option<(DocumentId, Text)>>>);

impl Remembered {
    /// Returns what is in the slot of a key. Replaces it by what `make` returns unless it is what
    /// is looked for.
    fn get(
        &self,
        key: [u8; 8],
        is_right: impl FnOnce(&(DocumentId, Text)) -> bool,
        make: impl FnOnce() -> Option<(DocumentId, Text)>,
    ) -> Option<(DocumentId, Text)> {
        let mut slots = self.0.borrow_mut();
        if slots.is_empty() {
            slots.resize(REMEMBERED, None);
        }
        // Fibonacci hashing: the high bits of the product depend on all bits of the key.
        let hash = u64::from_le_bytes(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let slot = slots.get_mut(hash as usize % REMEMBERED)?;
        if !slot.as_ref().is_some_and(is_right) {
            *slot = Some(make()?);
        }
        *slot
    }
}

/// The text form of an id.
#[derive(Clone, Copy)]
struct Text {
    bytes: [u8; MAX_TEXT],
    len: usize,
}

impl Text {
    fn of(id: DocumentId) -> Self {
        let mut bytes = [0; MAX_TEXT];
        // It fits.
        let len = bs58::encode(id.0).with_check().onto(bytes.as_mut_slice()).unwrap_or_default();
        Self { bytes, len }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The id of an automerge document.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentId([u8; 16]);

/// A text that is not a document id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a document id; expected base58check of 16 bytes, such as \
     2XehcERzGALTcjP7C7VxwFJdWoEW"
)]
pub struct BadDocumentId {
    text: String,
}

impl DocumentId {
    /// Returns the id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns a random id, which no other document has.
    pub fn random() -> Self {
        let mut bytes = [0u8; 16];
        // An actor id of automerge is 16 bytes from the operating system's random generator.
        for (to, from) in bytes.iter_mut().zip(automerge::ActorId::random().to_bytes()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// Returns the folder of its chunks, in automerge-repo's layout and in bundles: its text form,
    /// split after two characters.
    pub fn folder(&self) -> String {
        let mut text = self.to_string();
        // Base58 is ASCII, and 20 bytes are at least 20 characters.
        text.insert(2, '/');
        text
    }

    /// Returns the 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for DocumentId {
    type Err = BadDocumentId;

    fn from_str(text: &str) -> Result<Self, BadDocumentId> {
        let bad = || BadDocumentId { text: text.chars().take(2 * MAX_TEXT).collect() };
        // The length is checked first: decoding base58 takes quadratic time.
        let key =
            text.as_bytes().last_chunk().filter(|_| text.len() <= MAX_TEXT).ok_or_else(bad)?;
        let read = || {
            let bytes = bs58::decode(text).with_check(None).into_vec().ok()?;
            let id = Self(bytes.try_into().ok()?);
            Some((id, Text::of(id)))
        };
        let is_right = |(_, known): &(Self, Text)| known.as_bytes() == text.as_bytes();
        READ.with(|ids| ids.get(*key, is_right, read)).map(|(id, _)| id).ok_or_else(bad)
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [key @ .., _, _, _, _, _, _, _, _] = self.0;
        let is_right = |(known, _): &(Self, Text)| known == self;
        let written = WRITTEN.with(|ids| ids.get(key, is_right, || Some((*self, Text::of(*self)))));
        let text = written.map_or_else(|| Text::of(*self), |(_, text)| text);
        f.write_str(str::from_utf8(text.as_bytes()).unwrap_or_default())
    }
}

impl Serialize for DocumentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DocumentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_is_parsed_from_its_text_form(bytes: [u8; 16]) {
            let id = DocumentId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse::<DocumentId>(), Ok(id));
        }

        #[test]
        fn a_text_is_accepted_only_in_canonical_form(text in ".{0,60}") {
            if let Ok(id) = text.parse::<DocumentId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn the_folder_is_the_text_form_split_after_two_characters() {
        for bytes in [[0; 16], [1; 16], [255; 16]] {
            let id = DocumentId::from_bytes(bytes);
            assert_eq!(id.folder().replacen('/', "", 1), id.to_string());
            assert_eq!(id.folder().find('/'), Some(2));
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        assert!("2XehcERzGALTcjP7C7VxwFJdWoEX".parse::<DocumentId>().is_err());
        assert!("2XehcERzGALTcjP7C7VxwFJdWoEW".parse::<DocumentId>().is_ok());
    }
}
