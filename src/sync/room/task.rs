//! The task of one room: opens the document, serves it, looks for it if nobody has it, and unloads
//! it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use prometheus::IntGauge;
use tracing::error;

use super::{
    directory::RoomHandle,
    state::{End, Room},
};
use crate::{
    observe::metrics::RoomMetrics,
    storage::documents::Opened,
    sync::{close_reason::CloseReason, events::What, report::texts, session::Session},
};

/// Pause before a room starts with what a room left whose task has panicked.
const AFTER_PANIC: Duration = Duration::from_secs(5);
impl Room {
    /// Runs the room until it has left the directory.
    pub(crate) async fn run(mut self) {
        let metrics = self.metrics().clone();
        if !self.handle.pending.is_empty() {
            self.wait("room_failed", AFTER_PANIC).await;
        }
        loop {
            let opening = InState::new(&metrics, "opening");
            // Each state in a box: a room keeps memory for the one it is in.
            let opened = match Box::pin(self.open()).await {
                Ok(opened) => opened,
                Err(End::NoMemory) => return self.close_without_memory(),
                Err(_) => {
                    self.stopped("stop");
                    return;
                }
            };
            self.report(None, || What::Opened { heads: texts(&opened.heads) });
            let end = self.be_in_state(opened, opening).await;
            match end {
                End::Reopen => {}
                End::Stop | End::NoMemory => {
                    self.stopped("stop");
                    return;
                }
                End::Retire(reason) => {
                    if self.retire(reason).await {
                        return;
                    }
                }
            }
        }
    }

    /// Serves, refuses or looks for a document that was opened.
    async fn be_in_state(&mut self, opened: Box<Opened>, opening: InState) -> End {
        let document = self.document();
        if opened.is_deleted {
            self.withhold_document("deleted")
        } else if opened.is_blocked {
            self.withhold_document("blocked")
        } else if let Some(limit) = &opened.too_large {
            error!(%document, "the document is too large to load, and stays on the disk: {limit}");
            self.withhold_document("too_large")
        } else if self.has_no_space(&opened) {
            Box::pin(self.wait_for_space()).await
        } else if !opened.heads.is_empty()
            || !self.handle.pending.is_empty()
            || self.charge_creation()
        {
            drop(opening);
            let _live = InState::new(&self.metrics().clone(), "live");
            self.handle.has_engine.store(true, Ordering::Relaxed);
            let end = Box::pin(self.live(opened)).await;
            self.handle.has_engine.store(false, Ordering::Relaxed);
            end
        } else {
            Box::pin(self.unknown()).await
        }
    }

    /// Leaves the directory. Returns false if somebody is interested in the document again, and the
    /// room goes on.
    async fn retire(&mut self, reason: &'static str) -> bool {
        self.inbox.close();
        while let Some(input) = self.inbox.recv().await {
            self.stash(*input, reason);
        }
        let shared = self.shared.clone();
        let document = self.document();
        let mut directory = shared.directory();
        // Sessions leave through the directory: from here on none does.
        while let Some(input) = self.inbox.try_recv() {
            self.stash(*input, reason);
        }
        let is_wanted = match reason {
            // What others have stored since it was looked for is not there yet.
            "unknown" => !self.stash.is_empty() || self.handle.take_stored().is_some(),
            "deleted" | "blocked" | "too_large" => !self.stash.is_empty(),
            _ => !self.stash.is_empty() || self.members().has_active(),
        } || self.handle.take_outdated();
        if is_wanted {
            let share = self.shared.receive_share();
            let (handle, inbox) = RoomHandle::new(document, self.handle.kept(), share);
            self.members().await_engine();
            directory.add(handle.clone());
            let retired = std::mem::replace(&mut self.handle, handle);
            self.inbox = inbox;
            retired.retired.cancel();
            return false;
        }
        if document != shared.probe {
            self.metrics().unloaded.with_label_values(&[reason]).inc();
        }
        self.report(None, || What::Unloaded { reason: reason.to_owned() });
        let waiting = self.members().without_room();
        self.metrics().waiting.add(i64::from(!waiting.is_empty()));
        directory.retire(&self.handle, waiting);
        self.handle.retired.cancel();
        true
    }

    /// Ends the room of a document for which there is no memory. Its sessions are to come again.
    fn close_without_memory(self) {
        for session in self.stopped("memory") {
            session.close(CloseReason::Memory);
        }
    }

    /// Leaves the directory for good. Returns the sessions that are in the room.
    fn stopped(self, reason: &str) -> Vec<Arc<Session>> {
        self.shared.directory().retire(&self.handle, Vec::new());
        self.metrics().unloaded.with_label_values(&[reason]).inc();
        self.report(None, || What::Unloaded { reason: reason.to_owned() });
        self.handle.retired.cancel();
        self.handle.members.sessions()
    }
}

/// Counts a room in a state for as long as it lives.
struct InState {
    gauge: IntGauge,
}

impl InState {
    fn new(metrics: &RoomMetrics, state: &str) -> Self {
        let gauge = metrics.rooms.with_label_values(&[state]);
        gauge.inc();
        Self { gauge }
    }
}

impl Drop for InState {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
