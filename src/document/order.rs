//! The order in which changes can be applied.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

use automerge::{Change, ChangeHash};

/// Sorts changes so that each follows its dependencies, and its actor's previous change if that is
/// among them, which automerge relies on. Lower operation numbers are first.
///
/// Also returns the orphans: changes that wait for others which are neither among them nor known
/// (`is_known`).
pub(super) fn dependencies_first(
    changes: Vec<Change>,
    is_known: impl Fn(&ChangeHash) -> bool,
) -> (Vec<Change>, Vec<Change>) {
    let mut waiting: HashMap<ChangeHash, Vec<usize>> = HashMap::new();
    let mut missing = vec![0usize; changes.len()];
    let mut ready = BinaryHeap::new();
    let number = |n: usize| Some(Reverse((changes.get(n)?.start_op(), n)));
    let made: HashMap<_, ChangeHash> =
        changes.iter().map(|change| ((change.actor_id(), change.seq()), change.hash())).collect();
    for (n, (change, missing)) in changes.iter().zip(&mut missing).enumerate() {
        let previous = made.get(&(change.actor_id(), change.seq().saturating_sub(1)));
        let deps = change.deps().iter().filter(|dep| !is_known(dep));
        let deps: HashSet<ChangeHash> = deps.chain(previous).copied().collect();
        *missing = deps.len();
        deps.into_iter().for_each(|dep| waiting.entry(dep).or_default().push(n));
        if *missing == 0 {
            ready.extend(number(n));
        }
    }
    let mut ordered = Vec::with_capacity(changes.len());
    while let Some(change) = ready.pop().and_then(|Reverse((_, n))| changes.get(n)) {
        for n in waiting.remove(&change.hash()).unwrap_or_default() {
            if let Some(missing) = missing.get_mut(n) {
                *missing -= 1;
                if *missing == 0 {
                    ready.extend(number(n));
                }
            }
        }
        ordered.push(change.clone());
    }
    let orphans = changes.into_iter().zip(missing).filter(|(_, missing)| *missing > 0);
    (ordered, orphans.map(|(change, _)| change).collect())
}
