//! Runs the core's steps: here if they are short, otherwise on a thread that may block.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering,
    time::Duration,
};

use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use super::{
    NativeEngine,
    core_state::{CoreState, Stepped},
};
use crate::{
    base::session_id::SessionId,
    document::{
        core::{
            cost::{
                estimate::Estimate,
                weight::{LONG, MEASURED},
            },
            event::Effect,
            state::Core,
        },
        merge::Ancestry,
    },
    limits::turns::Payer,
    observe::usage::thread_time,
    sync::room::{engine::EngineFailed, port::Port},
};

impl NativeEngine {
    /// Runs a step, on a thread that may block if it is estimated to take long. A step without an
    /// estimate always runs there.
    pub(super) async fn run(
        &mut self,
        estimate: Option<Estimate>,
        work: impl FnOnce(&mut Core) -> (Option<Ancestry>, Vec<Effect>) + Send + 'static,
    ) -> Option<Ancestry> {
        self.wait_for_core().await;
        let CoreState::Idle(core) = mem::replace(&mut self.core, CoreState::Failed) else {
            return None;
        };
        self.is_in_step = true;
        let is_long = estimate.as_ref().is_none_or(|estimate| estimate.total() > LONG);
        let estimate = estimate.unwrap_or_default();
        let payer = is_long.then(|| self.payer(estimate.payer()));
        if is_long {
            // Paid in advance: many long steps may begin before the first one ends.
            self.prepaid = estimate.shares(estimate.total().into()).collect();
            self.charge(self.prepaid.iter().copied(), 1);
        }
        let step = move |mut core: Box<Core>| {
            let total = estimate.total();
            let began = (is_long || total > MEASURED).then(thread_time);
            let (ancestry, effects) = work(&mut core);
            let took = began.map_or(total.into(), |began| thread_time().saturating_sub(began));
            let shares = estimate.shares(took).collect();
            Stepped { core, effects, ancestry, shares, is_lost: false }
        };
        if let Some(payer) = payer {
            self.core = self.spawn_step(core, payer, step);
            return self.wait_for_core().await;
        }
        match catch_unwind(AssertUnwindSafe(move || step(core))) {
            Ok(stepped) => {
                let ancestry = self.end_step(stepped);
                // Its document may have to be restored.
                self.wait_for_core().await.or(ancestry)
            }
            Err(_) => {
                self.panicked();
                None
            }
        }
    }

    /// Waits until the core is idle and its document undamaged, or until it has failed. Cancel
    /// safe.
    pub(super) async fn wait_for_core(&mut self) -> Option<Ancestry> {
        let mut ancestry = None;
        loop {
            match &mut self.core {
                CoreState::Stepping(step) => match step.await {
                    Ok(Ok(stepped)) => ancestry = self.end_step(stepped).or(ancestry),
                    Ok(Err(_)) | Err(_) => {
                        self.core = CoreState::Failed;
                        self.panicked();
                    }
                },
                CoreState::Idle(core) if core.is_damaged() => self.recover(),
                CoreState::Idle(core) => {
                    if mem::take(&mut self.is_in_step) {
                        let (changes, durable) = core.progress();
                        self.pending.end_step(changes, durable);
                    }
                    return ancestry;
                }
                CoreState::Failed => return ancestry,
            }
        }
    }

    /// Begins to restore the document. The session that sent the refused changes pays for it.
    fn recover(&mut self) {
        let CoreState::Idle(core) = mem::replace(&mut self.core, CoreState::Failed) else { return };
        let sender = core.damaged_by();
        self.core = self.spawn_step(core, self.payer(sender), move |mut core| {
            let began = thread_time();
            let effects = core.recover();
            let took = thread_time().saturating_sub(began);
            let shares = sender.map(|sender| (sender, took)).into_iter().collect();
            let is_lost = effects.is_none();
            let effects = effects.unwrap_or_default();
            Stepped { core, effects, ancestry: None, shares, is_lost }
        });
    }

    /// Starts a step on a thread that may block.
    fn spawn_step(
        &self,
        core: Box<Core>,
        payer: Payer,
        step: impl FnOnce(Box<Core>) -> Stepped + Send + 'static,
    ) -> CoreState {
        let (turns, usage) = (self.turns.clone(), self.usage.clone());
        CoreState::Stepping(AbortOnDropHandle::new(tokio::spawn(async move {
            let stepped = turns.run(payer, move || usage.charge(|| step(core))).await;
            stepped.map(|(stepped, _)| stepped)
        })))
    }

    /// Takes a core back after its step, and carries out its effects.
    fn end_step(&mut self, stepped: Stepped) -> Option<Ancestry> {
        let Stepped { core, effects, ancestry, shares, is_lost } = stepped;
        let prepaid = mem::take(&mut self.prepaid);
        self.charge(shares.into_iter(), 1);
        self.charge(prepaid.into_iter(), -1);
        self.core = if is_lost {
            self.drop_failed(core.damaged_by().unwrap_or_default());
            self.failure = EngineFailed { is_panic: false, is_attributed: true };
            CoreState::Failed
        } else {
            CoreState::Idle(core)
        };
        effects.into_iter().for_each(|effect| self.carry_out(effect));
        ancestry
    }

    fn panicked(&mut self) {
        error!(document = %self.document, "the document's engine panicked; restarting it");
        let from = SessionId(self.applying.load(Ordering::Relaxed));
        self.drop_failed(from);
        let reason = format!("the changes to {} make automerge fail", self.document);
        let refused = self.with_port(from, |port| port.refuse(&reason, "unappliable"));
        self.failure.is_attributed |= refused.is_some();
    }

    /// Drops the changes with which a step failed, so that they are not tried again: those of the
    /// session whose changes it was applying (0 if none), and a retried message.
    fn drop_failed(&mut self, from: SessionId) {
        let bytes = self.pending.step_failed((from.0 != 0).then_some(from));
        if bytes > 0 {
            error!(
                document = %self.document, connection = %from, bytes,
                "dropping changes that make the document's engine fail"
            );
        }
    }

    /// Who takes a turn for a step whose largest part is this session's, or nobody's.
    fn payer(&self, session: Option<SessionId>) -> Payer {
        let payer = session.and_then(|session| self.with_port(session, Port::payer));
        payer.unwrap_or(Payer::Document(self.document))
    }

    /// Charges sessions for processor time, or refunds it where `sign` is -1.
    fn charge(&self, shares: impl Iterator<Item = (SessionId, Duration)>, sign: i64) {
        for (session, share) in shares {
            self.with_port(session, |port| port.charge(share, sign));
        }
    }
}
