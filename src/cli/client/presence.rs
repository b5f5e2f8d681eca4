//! Who else has the document open: the messages of automerge-repo's `Presence`, and who has sent
//! them.
//!
//! Each is an ephemeral message whose content is the CBOR map `{"__presence": {"type": ...}}`:
//!
//! | type | further fields | meaning |
//! |---|---|---|
//! | `snapshot` | `state`: a map; its `name` is shown | I am here; sent first, and to newcomers |
//! | `update` | `channel`, `value` | one field of the state has changed |
//! | `heartbeat` | | I am still here; every 15 s |
//! | `goodbye` | | I leave |
//!
//! Source: automerge-repo 2.5, `packages/automerge-repo/src/presence/`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use minicbor::{Decoder, Encoder};

use super::cbor::{field, text};
use crate::cli::output::printable;

/// How often a client says that it is still here.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// A client that says nothing for this time is gone.
const GONE_AFTER: Duration = Duration::from_secs(45);
/// Clients that are remembered. More are not shown.
const MAX_CLIENTS: usize = 1000;
/// Characters of a name, or of another message, that are shown.
const MAX_NAME: usize = 40;
const MAX_SHOWN: usize = 200;
const MARKER: &str = "__presence";

/// A received message of `Presence`.
#[derive(Debug, PartialEq)]
enum Message {
    /// The name is none if the state has none, or the update is of another field.
    Snapshot {
        name: Option<String>,
    },
    Update {
        name: Option<String>,
    },
    Heartbeat,
    Goodbye,
    /// An ephemeral message of another kind.
    Other,
}

/// What a received message tells.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// The message changes nothing that is shown.
    None,
    /// A client is here whose name is not known yet. Like the next, it wants to hear that we are
    /// here.
    Stranger,
    Arrived(String),
    Renamed {
        from: String,
        to: String,
    },
    Left(String),
    /// A message that is not about presence, in CBOR's diagnostic notation.
    Says {
        name: String,
        text: String,
    },
}

/// The other clients that have the document open.
#[derive(Default)]
pub(super) struct Others {
    by_peer: BTreeMap<String, Other>,
}

struct Other {
    name: Option<String>,
    seen: Instant,
}

/// Encodes `{"__presence": {"type": "snapshot", "state": {"name": name}}}`.
pub(super) fn snapshot(name: &str) -> Vec<u8> {
    encode(|e| {
        e.map(2)?.str("type")?.str("snapshot")?.str("state")?.map(1)?.str("name")?.str(name)?;
        Ok(())
    })
}

pub(super) fn heartbeat() -> Vec<u8> {
    encode(|e| {
        e.map(1)?.str("type")?.str("heartbeat")?;
        Ok(())
    })
}

pub(super) fn goodbye() -> Vec<u8> {
    encode(|e| {
        e.map(1)?.str("type")?.str("goodbye")?;
        Ok(())
    })
}

fn encode(
    build: impl FnOnce(
        &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut e = Encoder::new(&mut out);
    let built = e.map(1).and_then(|e| e.str(MARKER)).map(|_| ()).and_then(|()| build(&mut e));
    match built {
        Ok(()) => out,
        // Writing to a Vec cannot fail.
        Err(error) => unreachable!("{error}"),
    }
}

impl Others {
    /// Records a message of the client with this peer id.
    pub(super) fn receive(&mut self, peer: &str, data: &[u8]) -> News {
        let message = Message::decode(data);
        let is_new = !self.by_peer.contains_key(peer);
        match message {
            Message::Other => {
                let text = minicbor::display(data).to_string();
                return News::Says { name: self.name(peer), text: printable(&text, MAX_SHOWN) };
            }
            Message::Goodbye => {
                let name = self.name(peer);
                return self.by_peer.remove(peer).map_or(News::None, |_| News::Left(name));
            }
            // It sends a snapshot when it hears of us.
            Message::Heartbeat if is_new => return News::Stranger,
            _ if is_new && self.by_peer.len() >= MAX_CLIENTS => return News::None,
            _ => {}
        }
        let before = self.name(peer);
        let other = self.by_peer.entry(peer.to_owned()).or_insert_with(Other::new);
        other.seen = Instant::now();
        if let Message::Snapshot { name: Some(name) } | Message::Update { name: Some(name) } =
            message
        {
            other.name = Some(name);
        }
        let after = self.name(peer);
        match is_new {
            true => News::Arrived(after),
            false if before != after => News::Renamed { from: before, to: after },
            false => News::None,
        }
    }

    /// Forgets the clients that have said nothing for a long time. Returns their names.
    pub(super) fn forget_silent(&mut self, now: Instant) -> Vec<String> {
        let is_gone = |other: &Other| now.saturating_duration_since(other.seen) > GONE_AFTER;
        let gone = self.by_peer.iter().filter(|(_, other)| is_gone(other));
        let gone = gone.map(|(peer, _)| self.name(peer)).collect();
        self.by_peer.retain(|_, other| !is_gone(other));
        gone
    }

    /// The name of a client, or else the beginning of its peer id.
    fn name(&self, peer: &str) -> String {
        let name = self.by_peer.get(peer).and_then(|other| other.name.as_deref());
        printable(name.unwrap_or(peer), MAX_NAME)
    }
}

impl Other {
    fn new() -> Self {
        Self { name: None, seen: Instant::now() }
    }
}

impl Message {
    fn decode(data: &[u8]) -> Self {
        Self::read(&Decoder::new(data)).unwrap_or(Self::Other)
    }

    /// Reads a message. Returns nothing if it is not one of `Presence`.
    fn read(message: &Decoder<'_>) -> Option<Self> {
        let message = field(message, MARKER).ok()??;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(match text(&message, "type")? {
            "snapshot" => {
                let state = field(&message, "state").ok()?;
                Self::Snapshot { name: owned(state.and_then(|state| text(&state, "name"))) }
            }
            "update" if text(&message, "channel") == Some("name") => {
                Self::Update { name: owned(text(&message, "value")) }
            }
            "update" => Self::Update { name: None },
            "heartbeat" => Self::Heartbeat,
            "goodbye" => Self::Goodbye,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(channel: &str, value: &str) -> Vec<u8> {
        encode(|e| {
            e.map(3)?.str("type")?.str("update")?;
            e.str("channel")?.str(channel)?.str("value")?.str(value)?;
            Ok(())
        })
    }

    #[test]
    fn clients_arrive_get_names_and_leave() {
        let mut others = Others::default();
        assert_eq!(others.receive("p1", &snapshot("Anna")), News::Arrived("Anna".to_owned()));
        assert_eq!(others.receive("p1", &heartbeat()), News::None);
        assert_eq!(others.receive("p1", &update("cursor", "7")), News::None);
        let renamed = News::Renamed { from: "Anna".to_owned(), to: "Anne".to_owned() };
        assert_eq!(others.receive("p1", &update("name", "Anne")), renamed);
        assert_eq!(others.receive("p2", &heartbeat()), News::Stranger);
        assert_eq!(others.receive("p2", &update("cursor", "7")), News::Arrived("p2".to_owned()));
        assert_eq!(others.receive("p1", &goodbye()), News::Left("Anne".to_owned()));
        assert_eq!(others.receive("p1", &goodbye()), News::None);
        let later = Instant::now() + GONE_AFTER + Duration::from_secs(1);
        assert_eq!(others.forget_silent(later), ["p2"]);
        assert_eq!(others.forget_silent(later), [""; 0]);
    }

    #[test]
    fn a_snapshot_of_cbor_x_is_understood() {
        // {"__presence": {"type": "snapshot", "state": {"name": "Ben"}}} with 16-bit map lengths.
        let mut data = vec![0xb9, 0, 1, 0x6a];
        data.extend(b"__presence");
        data.extend([0xb9, 0, 2, 0x64]);
        data.extend(b"type");
        data.push(0x68);
        data.extend(b"snapshot");
        data.push(0x65);
        data.extend(b"state");
        data.extend([0xb9, 0, 1, 0x64]);
        data.extend(b"name");
        data.push(0x63);
        data.extend(b"Ben");
        assert_eq!(Message::decode(&data), Message::Snapshot { name: Some("Ben".to_owned()) });
    }

    #[test]
    fn other_messages_are_shown_and_move_no_cursor() {
        let mut others = Others::default();
        let mut data = Vec::new();
        let mut e = Encoder::new(&mut data);
        e.map(1).and_then(|e| e.str("cursor")).and_then(|e| e.u8(7)).expect("encodes");
        let says = News::Says { name: "p?1".to_owned(), text: r#"{"cursor": 7}"#.to_owned() };
        assert_eq!(others.receive("p\x1b1", &data), says);
        assert!(matches!(others.receive("p1", &[0xff, 0, 1]), News::Says { .. }));
    }
}
