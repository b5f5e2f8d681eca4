//! What members of a room with an engine are told besides sync messages: that the document is
//! unavailable after all, and which of its heads are durable.

use tokio::time::Instant as Deadline;

use super::{
    engine::Engine,
    shared::seconds_since,
    state::{Room, unavailable},
};
use crate::{
    base::session_id::SessionId,
    sync::{events::What, report::texts},
};

impl Room {
    /// Tells subscribed members which heads are durable, if these have changed or the member has
    /// not been told.
    pub(super) fn announce_durable(&mut self, engine: &dyn Engine) {
        let Some(heads) = engine.durable_heads() else { return };
        let has_changed = self.durable.0 != heads;
        if has_changed {
            self.durable = (heads.to_vec(), self.shared.announcement_time());
            self.report(None, || What::Saved { heads: texts(&self.durable.0) });
        }
        if !std::mem::take(&mut self.is_durable_wanted) && !has_changed {
            return;
        }
        let (heads, at) = &self.durable;
        let (document, storage_id) = (self.document(), &self.shared.storage_id);
        for member in self.members().active_mut() {
            let wants = std::mem::take(&mut member.wants_durable) || has_changed;
            if wants
                && !heads.is_empty()
                && member.port().is_some()
                && member.session.is_subscribed()
            {
                let kind = || "remote-heads-changed".to_owned();
                self.report(Some(&member.session), || What::Sent { kind: kind(), bytes: 0 });
                member.session.send_durable(document, storage_id, heads, *at);
            }
        }
    }

    /// Records how long a member waited for its first answer, once.
    pub(super) fn measure(&self, id: SessionId) {
        let mut members = self.members();
        if let Some(member) = members.get_mut(id)
            && !member.is_measured
            && member.is_answered()
        {
            member.is_measured = true;
            self.metrics().sync_seconds.observe(seconds_since(member.since));
        }
    }

    /// When the first member is to be answered that has requested the document.
    pub(super) fn first_answer(&self) -> Option<Deadline> {
        self.members().active().filter_map(|member| member.answer_by).min()
    }

    /// Whether all members that synchronize have requested the document and none was answered: the
    /// engine has no document, and nobody brings one.
    pub(super) fn is_unanswered(&self) -> bool {
        let members = self.members();
        let mut synchronizing = members.active().filter(|member| member.port().is_some());
        synchronizing.all(|member| member.answer_by.is_some() && !member.is_answered())
    }

    /// Tells members whose time is over that the document is unavailable, if the engine has sent
    /// them nothing of it.
    pub(super) fn answer_the_unanswered(&self) {
        let (now, document) = (Deadline::now(), self.document());
        let mut late = Vec::new();
        for member in self.members().active_mut() {
            if member.answer_by.is_some_and(|by| by <= now) {
                member.answer_by = None;
                late.push(member.session.id);
                if !member.is_answered() {
                    self.report(Some(&member.session), unavailable);
                    member.session.send_unavailable(document);
                }
            }
        }
        late.into_iter().for_each(|id| self.measure(id));
    }
}
