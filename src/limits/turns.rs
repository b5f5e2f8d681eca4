//! Permits for work that takes a processor long. Payers take turns at them. No payer ever holds all
//! permits, even while nobody else waits: work that has begun is not interrupted and may take
//! seconds, for which the next payer would have to wait.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinError};

use super::accounts::Account;
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    observe::usage::thread_time,
};

/// For whom long work is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A principal that has signed in, or an address.
    Account(Account),
    /// A session whose principal and address are unknown.
    Session(SessionId),
    /// A document, for work that no session caused.
    Document(DocumentId),
}

/// Permits for long work.
#[derive(Debug)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// How many one payer may hold.
    most: usize,
    held: HashMap<Payer, usize>,
    /// Payers that wait, the next one first, with their pieces of work.
    waiting: VecDeque<(Payer, VecDeque<oneshot::Sender<Turn>>)>,
}

/// A permit, which is returned when this is dropped.
#[derive(Debug)]
pub struct Turn {
    /// `None` if there is nothing to return.
    state: Option<Arc<Mutex<State>>>,
    payer: Payer,
}

impl Turns {
    /// Returns `permits` permits, but at least two.
    pub fn new(permits: usize) -> Self {
        let free = permits.max(2);
        let state = State { free, most: free - 1, held: HashMap::new(), waiting: VecDeque::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits for a permit.
    pub async fn take(&self, payer: Payer) -> Turn {
        let (sender, turn) = oneshot::channel();
        {
            let mut state = lock(&self.0);
            match state.waiting.iter_mut().find(|(waiting, _)| *waiting == payer) {
                Some((_, works)) => works.push_back(sender),
                None => state.waiting.push_back((payer.clone(), VecDeque::from([sender]))),
            }
            state.give(&self.0);
        }
        // The sender is not dropped unused while `self` is borrowed.
        turn.await.unwrap_or(Turn { state: None, payer })
    }

    /// Waits for a permit and [uses](Turn::run) it.
    ///
    /// # Errors
    /// A panic in `work`, or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(
        &self,
        payer: Payer,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), JoinError> {
        self.take(payer).await.run(work).await
    }

    /// Returns how many pieces of work wait for a permit.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        lock(&self.0).waiting.iter().map(|(_, works)| works.len()).sum()
    }
}

impl Turn {
    /// Runs `work` on a thread that may block. Returns its result and the processor time that it
    /// took. If the caller is cancelled, `work` still runs to its end and keeps the permit until
    /// then.
    ///
    /// # Errors
    /// A panic in `work`, or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), JoinError> {
        let working = tokio::task::spawn_blocking(move || {
            let _turn = self;
            let began = thread_time();
            let done = work();
            (done, thread_time().saturating_sub(began))
        });
        working.await
    }
}

impl State {
    /// Gives free permits to the payers whose turn it is.
    fn give(&mut self, shared: &Arc<Mutex<Self>>) {
        while self.free > 0 {
            let held = &self.held;
            let may = |payer: &Payer| held.get(payer).is_none_or(|held| *held < self.most);
            let Some(next) = self.waiting.iter().position(|(payer, _)| may(payer)) else { return };
            let Some((payer, mut works)) = self.waiting.remove(next) else { return };
            if let Some(work) = works.pop_front() {
                let turn = Turn { state: Some(shared.clone()), payer: payer.clone() };
                match work.send(turn) {
                    Ok(()) => {
                        self.free -= 1;
                        *self.held.entry(payer.clone()).or_default() += 1;
                    }
                    // The caller was cancelled. Dropping the turn with its state would lock `self`
                    // again.
                    Err(mut turn) => turn.state = None,
                }
            }
            if !works.is_empty() {
                self.waiting.push_back((payer, works));
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(shared) = self.state.take() else { return };
        let mut state = lock(&shared);
        state.free += 1;
        if let Some(held) = state.held.get_mut(&self.payer) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.payer);
            }
        }
        state.give(&shared);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn payers_take_turns_and_none_holds_all_permits() {
        let turns = Turns::new(2);
        let [ann, bob] = [1, 2].map(|id| Payer::Session(SessionId(id)));
        let (take_ann, take_bob) = (|| turns.take(ann.clone()), || turns.take(bob.clone()));
        let first = take_ann().now_or_never().expect("a permit");
        let mut anns: Vec<_> = (0..3).map(|_| Box::pin(take_ann())).collect();
        assert!(
            anns.iter_mut().all(|ann| ann.now_or_never().is_none()),
            "one permit is left to others"
        );
        let bob = take_bob().now_or_never().expect("the other permit");
        let mut bobs = Box::pin(take_bob());
        assert!((&mut bobs).now_or_never().is_none());
        drop(first);
        let second = (&mut anns[0]).now_or_never().expect("ann is first");
        drop(second);
        assert!((&mut anns[1]).now_or_never().is_some(), "bob has one, and ann may have the other");
        drop(bob);
        assert!((&mut bobs).now_or_never().is_some());
        // Cancelled waits take no permits.
        drop(anns);
        let left = lock(&turns.0);
        assert_eq!((left.free, left.held.len()), (2, 0));
    }

    #[tokio::test]
    async fn work_keeps_its_permit_when_its_caller_is_cancelled() {
        let (turns, ann) = (Turns::new(2), Payer::Session(SessionId(1)));
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let mut work = Box::pin(turns.run(ann.clone(), move || ended.recv()));
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        assert!(turns.take(ann.clone()).now_or_never().is_none(), "the work goes on");
        drop(end);
        turns.take(ann).await;
    }
}
