//! Runs automerge where it may panic.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use super::refusal::Refusal;

thread_local! {
    /// A panic leads to a refusal, so it does not belong in the log.
    static IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}
static QUIET: Once = Once::new();

/// Runs work that may panic on untrusted bytes.
///
/// # Errors
/// The work panicked.
pub(super) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, Refusal> {
    QUIET.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_EXPECTED.get() {
                hook(panic);
            }
        }));
    });
    let was_expected = IS_EXPECTED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_EXPECTED.set(was_expected);
    done.map_err(|_| Refusal::Unappliable("automerge fails on them".to_owned()))
}
