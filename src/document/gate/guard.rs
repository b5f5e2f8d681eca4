//! Runs automerge where it may panic.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use super::refusal::Refusal;

thread_local! {
    /// A panic is expected, and the answer to it is a refusal: it does not belong in the log.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}
static QUIET: Once = Once::new();

/// Runs what may panic on bytes of strangers.
///
/// # Errors
/// It panicked.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Refusal> {
    QUIET.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                hook(panic);
            }
        }));
    });
    let outside = IS_GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outside);
    done.map_err(|_| Refusal::Unappliable("automerge fails on them".to_owned()))
}
