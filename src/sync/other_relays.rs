//! What the rooms hear of other relays that share the store.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    room::{directory::Directory, presence, unknown::ask_for},
    rooms::Rooms,
};
use crate::{
    base::document_id::DocumentId,
    storage::{
        live::{Live, News},
        relay_message::{Lacking, Locate, Located, OtherRelays, Presence, RelayMessage, Wanted},
        relay_report::SeenRelay,
    },
    sync::report::LiveElsewhere,
};

impl Live for Arc<Rooms> {
    fn wants(&self, document: DocumentId) -> bool {
        let directory = self.shared.directory();
        directory.room(document).is_some() || directory.is_awaited(document)
    }

    fn stored(&self, document: DocumentId, news: News) {
        let mut directory = self.shared.directory();
        match directory.room(document) {
            Some(handle) => handle.stored(news),
            None if directory.is_awaited(document) => {
                self.open(&mut directory, document, None);
            }
            None => {}
        }
    }

    fn marked(&self, document: DocumentId) {
        self.reopen(document);
    }

    fn resync(&self) {
        self.tell_all(|rooms, directory, document| match directory.room(document) {
            Some(handle) if rooms.shared.documents.refused(document).is_some() => {
                handle.storage_changed();
            }
            Some(handle) => handle.stored(News::Unread),
            None => _ = rooms.open(directory, document, None),
        });
    }

    fn lost(&self) {
        self.tell_all(|_, directory, document| {
            if let Some(handle) = directory.room(document) {
                handle.news.notify_one();
            }
        });
    }

    fn heard(&self, message: RelayMessage) {
        match message {
            RelayMessage::Presence(presence) => self.heard_presence(&presence),
            RelayMessage::Wanted(wanted) => self.ask_for_others(&wanted),
            RelayMessage::Lacking(Lacking { document, question }) => {
                let document = DocumentId::from_bytes(document);
                if let Some(handle) = self.shared.directory().room(document) {
                    handle.relay_lacks(question);
                }
            }
            RelayMessage::Locate(asked) => self.say_what_is_live(&asked),
            RelayMessage::Located(answer) => {
                if let Some(others) = &self.shared.others {
                    others.located(answer);
                }
            }
        }
    }
}

/// Rooms that are told something at a time, and the pause before the next ones. Each may read its
/// document then.
const PAGE: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(20);

impl Rooms {
    /// Tells something about each document that has a room, or is waited for: some at a time, so
    /// that nobody waits for the directory.
    fn tell_all(
        self: &Arc<Self>,
        tell: impl Fn(&Arc<Self>, &mut Directory, DocumentId) + Send + 'static,
    ) {
        let rooms = self.clone();
        self.spawn(async move {
            let documents = rooms.shared.directory().documents();
            for page in documents.chunks(PAGE) {
                {
                    let mut directory = rooms.shared.directory();
                    page.iter().for_each(|document| tell(&rooms, &mut directory, *document));
                }
                sleep(PAUSE).await;
            }
        });
    }

    /// Tells a relay which documents are live here, of those that it asks for.
    fn say_what_is_live(&self, asked: &Locate) {
        let Some(others) = &self.shared.others else { return };
        let (ids, _) = asked.documents.as_chunks();
        let sessions = |id| {
            let room = self.shared.directory().room(DocumentId::from_bytes(id)).cloned()?;
            let is_live = room.has_engine.load(Ordering::Relaxed);
            is_live.then(|| u32::try_from(room.members.len()).unwrap_or(u32::MAX))
        };
        let found = ids.iter().zip(0..).filter_map(|(id, place)| Some((place, sessions(*id)?)));
        let (question, relay) = (asked.question, others.name().to_owned());
        let found = found.collect();
        others.tell(0, || RelayMessage::Located(Located { question, relay, found }));
    }

    /// All relays that share the store, as they were last seen. Empty if none can.
    pub fn all_relays(&self) -> Vec<SeenRelay> {
        self.shared.others.as_ref().map(OtherRelays::seen).unwrap_or_default()
    }

    /// Returns where else these documents are live, and in how many sessions.
    pub async fn elsewhere(
        &self,
        documents: &[DocumentId],
    ) -> HashMap<DocumentId, Vec<LiveElsewhere>> {
        let mut places: HashMap<DocumentId, Vec<LiveElsewhere>> = HashMap::new();
        let Some(others) = &self.shared.others else { return places };
        let mut answers = others.locate(documents).await;
        answers.sort_by(|one, other| one.relay.cmp(&other.relay));
        for Located { relay, found, .. } in answers {
            for (place, sessions) in found {
                let Some(document) = documents.get(place as usize) else { continue };
                let elsewhere = LiveElsewhere { relay: relay.clone(), sessions };
                places.entry(*document).or_default().push(elsewhere);
            }
        }
        places
    }

    /// Passes presence on to the members of its document's room, by the same rule of who may speak
    /// under which name.
    fn heard_presence(&self, presence: &Presence) {
        let document = DocumentId::from_bytes(presence.document);
        let handle = self.shared.directory().room(document).cloned();
        if let Some(handle) = handle {
            presence::pass_on_of_others(&self.shared, &handle, presence);
        }
    }

    /// Asks clients of this relay for a document that a client of another one requests.
    fn ask_for_others(&self, wanted: &Wanted) {
        let document = DocumentId::from_bytes(wanted.document);
        let room = self.shared.directory().room(document).cloned();
        if room.as_ref().is_some_and(|room| room.has_engine.load(Ordering::Relaxed)) {
            // It is about to be stored.
            return;
        }
        // Those who wait for it here do not have it either.
        let waits = |id| room.as_ref().is_some_and(|room| room.members.lock().is_active(id));
        let config = self.shared.config.borrow().clone();
        let (common, _) = wanted.common.as_chunks();
        let common = common.iter().map(|id| DocumentId::from_bytes(*id)).collect();
        let most = if config.forwards_requests() { config.sync.forward_peers } else { 0 };
        let peers = self.shared.choose_to_ask(document, common, None, most, waits);
        for peer in &peers {
            ask_for(peer, document);
            self.shared.metrics.rooms.requests.with_label_values(&["passed_on"]).inc();
        }
        if peers.is_empty()
            && let Some(others) = &self.shared.others
        {
            let (document, question) = (wanted.document, wanted.question);
            others.tell(0, || RelayMessage::Lacking(Lacking { document, question }));
        }
    }
}
