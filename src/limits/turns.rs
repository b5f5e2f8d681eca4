//! Places for work that takes long. Principals take turns at them, and none of them ever holds all,
//! even while nobody else waits: work that has begun is not interrupted and may last for seconds,
//! which the next principal would have to wait.

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

/// Who takes places for what takes a processor long.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A principal that has signed in, or an address.
    Account(Account),
    /// One of whom neither is known.
    Session(SessionId),
    /// A document, for work that is nobody's.
    Document(DocumentId),
}

/// Some places.
#[derive(Debug)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// How many one of them may hold.
    most: usize,
    held: HashMap<Payer, usize>,
    /// Whose turn is next, with those of its pieces of work that wait.
    waiting: VecDeque<(Payer, VecDeque<oneshot::Sender<Turn>>)>,
}

/// A place, for as long as this lives.
#[derive(Debug)]
pub struct Turn {
    /// None where the place was given on.
    state: Option<Arc<Mutex<State>>>,
    key: Payer,
}

impl Turns {
    /// This many places, but at least two.
    pub fn new(places: usize) -> Self {
        let free = places.max(2);
        let state = State { free, most: free - 1, held: HashMap::new(), waiting: VecDeque::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Wait for a place.
    pub async fn take(&self, key: Payer) -> Turn {
        let (sender, turn) = oneshot::channel();
        {
            let mut state = lock(&self.0);
            match state.waiting.iter_mut().find(|(waiting, _)| *waiting == key) {
                Some((_, works)) => works.push_back(sender),
                None => state.waiting.push_back((key.clone(), VecDeque::from([sender]))),
            }
            state.give(&self.0);
        }
        // The sender is dropped with its turn given, or with the places themselves, which whoever waits here keeps.
        turn.await.unwrap_or(Turn { state: None, key })
    }

    /// Waits for a place and [uses](Turn::run) it.
    ///
    /// # Errors
    /// A panic in `work`, or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(
        &self,
        key: Payer,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), JoinError> {
        self.take(key).await.run(work).await
    }

    /// How much work waits for a place.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        lock(&self.0).waiting.iter().map(|(_, works)| works.len()).sum()
    }
}

impl Turn {
    /// Runs `work` on a thread that may block. Returns its result and the processor time that it
    /// took. Even when the caller is cancelled, `work` keeps the place until it ends.
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
    /// Give free places to those whose turn it is.
    fn give(&mut self, shared: &Arc<Mutex<Self>>) {
        while self.free > 0 {
            let held = &self.held;
            let may = |key: &Payer| held.get(key).is_none_or(|held| *held < self.most);
            let Some(next) = self.waiting.iter().position(|(key, _)| may(key)) else { return };
            let Some((key, mut works)) = self.waiting.remove(next) else { return };
            if let Some(work) = works.pop_front() {
                let turn = Turn { state: Some(shared.clone()), key: key.clone() };
                match work.send(turn) {
                    Ok(()) => {
                        self.free -= 1;
                        *self.held.entry(key.clone()).or_default() += 1;
                    }
                    // Nobody waits for it any more. It is taken apart here, for dropping it locks what is locked.
                    Err(mut turn) => turn.state = None,
                }
            }
            if !works.is_empty() {
                self.waiting.push_back((key, works));
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(shared) = self.state.take() else { return };
        let mut state = lock(&shared);
        state.free += 1;
        if let Some(held) = state.held.get_mut(&self.key) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.key);
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
    fn nobody_holds_all_and_all_take_turns() {
        let turns = Turns::new(2);
        let [ann, bob] = [1, 2].map(|id| Payer::Session(SessionId(id)));
        let (take_ann, take_bob) = (|| turns.take(ann.clone()), || turns.take(bob.clone()));
        let first = take_ann().now_or_never().expect("a place");
        let mut anns: Vec<_> = (0..3).map(|_| Box::pin(take_ann())).collect();
        assert!(
            anns.iter_mut().all(|ann| ann.now_or_never().is_none()),
            "one place is left to others"
        );
        let bob = take_bob().now_or_never().expect("the other place");
        let mut bobs = Box::pin(take_bob());
        assert!((&mut bobs).now_or_never().is_none());
        drop(first);
        let second = (&mut anns[0]).now_or_never().expect("ann is first");
        drop(second);
        assert!((&mut anns[1]).now_or_never().is_some(), "bob has one, and ann may have the other");
        drop(bob);
        assert!((&mut bobs).now_or_never().is_some());
        // What is not waited for any more takes no place.
        drop(anns);
        let left = lock(&turns.0);
        assert_eq!((left.free, left.held.len()), (2, 0));
    }

    #[tokio::test]
    async fn work_keeps_its_place_when_nobody_waits_for_it_any_more() {
        let (turns, ann) = (Turns::new(2), Payer::Session(SessionId(1)));
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let mut work = Box::pin(turns.run(ann.clone(), move || ended.recv()));
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        assert!(turns.take(ann.clone()).now_or_never().is_none(), "it goes on");
        drop(end);
        turns.take(ann).await;
    }
}
