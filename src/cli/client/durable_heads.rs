//! `remote-heads-changed`: which heads of a document a storage has. samod ignores this message.

use automerge::ChangeHash;
use minicbor::Decoder;

use super::cbor::{field, text};
use crate::base::document_id::DocumentId;

/// The most heads that are read.
const MAX_HEADS: usize = 1000;

/// Returns the heads of `document` that the storage `storage_id` has, if the frame tells them.
pub(super) fn decode(
    frame: &[u8],
    document: DocumentId,
    storage_id: &str,
) -> Option<Vec<ChangeHash>> {
    let message = Decoder::new(frame);
    let is_about = text(&message, "documentId")? == document.to_string();
    if text(&message, "type")? != "remote-heads-changed" || !is_about {
        return None;
    }
    let storages = field(&message, "newHeads").ok()??;
    let storage = field(&storages, storage_id).ok()??;
    let mut list = field(&storage, "heads").ok()??;
    // automerge-repo writes heads as base58check.
    let texts = list.array_iter::<&str>().ok()?.take(MAX_HEADS);
    texts
        .map(|text| {
            let bytes = bs58::decode(text.ok()?).with_check(None).into_vec().ok()?;
            Some(ChangeHash(bytes.try_into().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::wire;

    #[test]
    fn the_heads_of_this_document_in_this_storage_are_read() {
        let document = DocumentId::random();
        let heads = [ChangeHash([1; 32]), ChangeHash([2; 32])];
        let frame = wire::remote_heads_changed("relay", "us", document, "storage", &heads, 7);
        assert_eq!(decode(&frame, document, "storage"), Some(heads.to_vec()));
        assert_eq!(decode(&frame, document, "another"), None);
        assert_eq!(decode(&frame, DocumentId::random(), "storage"), None);
        assert_eq!(decode(&wire::join("us"), document, "storage"), None);
    }
}
