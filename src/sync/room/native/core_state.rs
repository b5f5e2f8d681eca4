//! Where the core is while the engine works.

use std::time::Duration;

use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    base::session_id::SessionId,
    document::{
        core::{event::Effect, state::Core},
        merge::Ancestry,
    },
};

/// Where the core is.
pub(super) enum CoreState {
    /// Between two steps.
    Idle(Box<Core>),
    /// In a step that runs on a thread of its own.
    Stepping(AbortOnDropHandle<Result<Stepped, JoinError>>),
    /// Nowhere: a step panicked, or left a document that cannot be restored.
    Failed,
}

/// A core after a step.
pub(super) struct Stepped {
    pub(super) core: Box<Core>,
    pub(super) effects: Vec<Effect>,
    /// How the snapshot of a merge relates to the document.
    pub(super) ancestry: Option<Ancestry>,
    /// What each sender has to pay for the step.
    pub(super) shares: Vec<(SessionId, Duration)>,
    /// The document refused changes and could not be restored.
    pub(super) is_lost: bool,
}
