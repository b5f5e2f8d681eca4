//! Messages between relays, as notifications. Those of a moment are sent together.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use futures::FutureExt;
use tokio::{sync::mpsc, time::sleep};
use tracing::debug;

use super::{connection::MESSAGES, link::Link, nodes::NodeId};
use crate::{
    base::hex::hex,
    storage::relay_message::{MAX_MESSAGE, OtherRelays, RelayMessage},
};

/// The shortest time between two notifications. What comes meanwhile is sent together.
const PAUSE: Duration = Duration::from_millis(20);
/// The version of the texts.
const VERSION: &str = "1";

/// Sends messages to the other relays. Never returns.
pub(super) async fn send(
    link: &Link,
    others: &OtherRelays,
    messages: &mut mpsc::Receiver<RelayMessage>,
) {
    let mut next: Option<Vec<u8>> = None;
    loop {
        let mut batch = match next.take() {
            Some(first) => first,
            None => match messages.recv().await {
                Some(first) => encoded(&first, others),
                None => return std::future::pending().await,
            },
        };
        // All that waits.
        while let Ok(message) = messages.try_recv() {
            let message = encoded(&message, others);
            if batch.len() + message.len() > MAX_MESSAGE {
                next = Some(message);
                break;
            }
            batch.extend(message);
        }
        if !batch.is_empty() {
            send_batch(link, others, &batch).await;
        }
        sleep(PAUSE).await;
    }
}

/// A message as bytes; none if it is too large.
fn encoded(message: &RelayMessage, others: &OtherRelays) -> Vec<u8> {
    // Writing to memory does not fail.
    let bytes = minicbor::to_vec(message).unwrap_or_default();
    if bytes.len() > MAX_MESSAGE {
        others.dropped(1);
        return Vec::new();
    }
    bytes
}

async fn send_batch(link: &Link, others: &OtherRelays, batch: &[u8]) {
    // What is of the moment does not wait for the database.
    let Some(group) = link.connected().now_or_never() else { return others.dropped(1) };
    let text = format!("{VERSION} {} {}", hex(&group.node), BASE64_STANDARD_NO_PAD.encode(batch));
    match link.notify(&group, MESSAGES, &text).await {
        Ok(()) => link.metrics.relay_messages.with_label_values(&["sent"]).inc(),
        Err(error) => debug!("cannot send messages to other relays: {}", error.problem),
    }
}

/// Reads the messages of another relay, until the first one that this relay does not know.
pub(super) fn read(text: &str, own: &NodeId) -> Vec<RelayMessage> {
    let parts: Vec<&str> = text.split(' ').collect();
    let mut messages = Vec::new();
    let &[VERSION, node, batch] = parts.as_slice() else { return messages };
    if node == hex(own) {
        return messages;
    }
    let batch = BASE64_STANDARD_NO_PAD.decode(batch).unwrap_or_default();
    let mut decoder = minicbor::Decoder::new(&batch);
    while decoder.position() < batch.len()
        && let Ok(message) = decoder.decode()
    {
        messages.push(message);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::relay_message::{Lacking, Locate, Located, Presence, Wanted};

    #[test]
    fn messages_are_read_as_they_were_sent() {
        let messages = [
            RelayMessage::Presence(Presence {
                document: [1; 16],
                author: "alice".to_owned(),
                author_session: "s".to_owned(),
                count: 7,
                principal: "token alice".to_owned(),
                data: vec![1, 2, 3],
            }),
            RelayMessage::Wanted(Wanted { document: [2; 16], common: vec![3; 32], question: 4 }),
            RelayMessage::Lacking(Lacking { document: [4; 16], question: 5 }),
            RelayMessage::Locate(Locate { question: 6, documents: vec![7; 32] }),
            RelayMessage::Located(Located {
                question: 6,
                relay: "relay-a".to_owned(),
                found: vec![(1, 2)],
            }),
        ];
        let batch: Vec<u8> = messages
            .iter()
            .flat_map(|message| minicbor::to_vec(message).expect("encodes"))
            .collect();
        let text =
            |batch: &[u8]| format!("1 {} {}", hex(&[9; 16]), BASE64_STANDARD_NO_PAD.encode(batch));
        assert_eq!(read(&text(&batch), &[8; 16]), messages);
        assert_eq!(read(&text(&batch), &[9; 16]), [], "its own");
        let newer = [batch.as_slice(), &[0x82, 9, 0]].concat();
        assert_eq!(read(&text(&newer), &[8; 16]), messages);
        for text in ["", "2 a b", "1 a", "1 a !"] {
            assert_eq!(read(text, &[8; 16]), [], "{text}");
        }
        assert!(text(&vec![0; MAX_MESSAGE]).len() < 7_999);
    }
}
