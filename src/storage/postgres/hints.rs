//! Hints: a relay that has written tells the others at once, so that they need not wait until they
//! next look by themselves. A hint that is lost costs that wait, and nothing else.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tracing::debug;

use super::{
    connection::HINTS,
    link::Link,
    nodes::{NodeId, PRESENT},
};
use crate::base::hex::hex;

/// The shortest time between two hints of a relay, and between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// The version of the texts.
const VERSION: &str = "1";

/// A relay has written something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) node: NodeId,
    /// Its hints are counted, so that a lost one is noticed.
    number: u64,
    /// When it was sent, in milliseconds since 1970 by the server's clock.
    pub(super) at: u64,
}

impl Hint {
    fn text(&self) -> String {
        format!("{VERSION} {} {} {}", hex(&self.node), self.number, self.at)
    }

    /// Reads the text of a hint. None if it is of a version that this relay does not know.
    pub(super) fn read(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(' ').collect();
        let &[VERSION, node, number, at] = parts.as_slice() else { return None };
        let node = u128::from_str_radix(node, 16).ok()?.to_be_bytes();
        Some(Self { node, number: number.parse().ok()?, at: at.parse().ok()? })
    }
}

/// Sends a hint whenever this relay has written, while there are others. Never returns.
pub(super) async fn send(link: &Link) {
    let mut number = 0;
    loop {
        // The first one tells the others that this relay is there.
        let group = link.connected().await;
        number += 1;
        let hint = Hint { node: group.node, number, at: link.now() };
        match link.notify(&group, HINTS, &hint.text()).await {
            Ok(()) => link.metrics.hints.with_label_values(&["sent"]).inc(),
            Err(error) => debug!("cannot send a hint: {}", error.problem),
        }
        sleep(PAUSE).await;
        link.written.notified().await;
        while link.others.count() == 0 {
            link.written.notified().await;
        }
    }
}

/// The hints of the other relays.
#[derive(Default)]
pub(super) struct Heard {
    /// The number of the last hint of each relay, and when it was heard.
    last: HashMap<NodeId, (u64, Instant)>,
}

impl Heard {
    /// Records a hint. Returns how many were lost before it.
    pub(super) fn record(&mut self, hint: &Hint) -> u64 {
        self.last.retain(|_, (_, at)| at.elapsed() < PRESENT);
        let earlier = self.last.insert(hint.node, (hint.number, Instant::now()));
        earlier.map_or(0, |(last, _)| hint.number.saturating_sub(last + 1))
    }

    /// How many relays had sent a hint within a minute before the last one.
    pub(super) fn count(&self) -> usize {
        self.last.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_read_as_they_were_sent() {
        let hint = Hint { node: [171; 16], number: 7, at: 1_700_000_000_000 };
        assert_eq!(Hint::read(&hint.text()), Some(hint));
        for text in ["", "2 ab 1 2", "1 xy 1 2", "1 ab 1", "1 ab 1 2 3"] {
            assert_eq!(Hint::read(text), None, "{text}");
        }
    }

    #[test]
    fn lost_hints_are_counted() {
        let mut heard = Heard::default();
        let hint = |number| Hint { node: [1; 16], number, at: 0 };
        assert_eq!(heard.count(), 0);
        assert_eq!(heard.record(&hint(4)), 0, "it may have begun before this relay");
        assert_eq!(heard.record(&hint(5)), 0);
        assert_eq!(heard.record(&hint(8)), 2);
        assert_eq!(heard.count(), 1);
    }
}
