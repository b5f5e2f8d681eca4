//! An engine for tests of failures.

use super::*;

/// An engine that panics or fails on request.
pub(super) struct Fragile {
    pub(super) port: Option<Port>,
    pub(super) fails: bool,
    pub(super) failed: CancellationToken,
    /// Where it keeps the messages with changes that it receives.
    pub(super) keeps: Option<(Arc<Pending>, Arc<Documents>)>,
}

impl Engine for Fragile {
    fn join(&mut self, port: Port) -> BoxFuture<'_, ()> {
        self.port = Some(port);
        futures::future::ready(()).boxed()
    }

    fn leave(&mut self, _: SessionId) {}

    fn reads_only(&mut self, _: SessionId) -> BoxFuture<'_, ()> {
        futures::future::ready(()).boxed()
    }

    fn receive(
        &mut self,
        from: SessionId,
        request: bool,
        sent: SyncMessage,
        charge: Option<Charge>,
    ) -> BoxFuture<'_, ()> {
        if let (Some((pending, documents)), Some(charge)) = (&self.keeps, charge) {
            pending.receive(from, &sent, charge, documents);
        }
        if request {
            // Say something that has heads, so that the peer sees the engine at work.
            let mut doc = Automerge::new();
            doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, "a", 1)).expect("an edit");
            let message = doc.generate_sync_message(&mut State::new()).expect("a message");
            if let Some(port) = &self.port {
                port.sync(&message.encode());
            }
        } else if sent.raw.len() > 1000 {
            panic!("killed on purpose");
        } else if self.fails {
            self.failed.cancel();
        }
        futures::future::ready(()).boxed()
    }

    fn settle(&mut self) -> BoxFuture<'_, ()> {
        futures::future::ready(()).boxed()
    }

    fn resume(&mut self) {}

    fn follow(&mut self, _: crate::storage::live::News) -> bool {
        true
    }

    fn rest(&mut self) {}

    fn report(&mut self) -> BoxFuture<'_, EngineReport> {
        futures::future::ready(EngineReport::default()).boxed()
    }

    fn merge(&mut self, _: Bytes) -> BoxFuture<'_, Option<Ancestry>> {
        futures::future::ready(None).boxed()
    }

    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>> {
        self.failed
            .cancelled()
            .map(|()| Err(EngineFailed { is_panic: true, is_attributed: false }))
            .boxed()
    }

    fn heads(&self) -> Option<&[automerge::ChangeHash]> {
        None
    }

    fn durable_heads(&self) -> Option<&[automerge::ChangeHash]> {
        None
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), EngineFailed>> {
        futures::future::ready(Ok(())).boxed()
    }
}

/// Starts engines. The first `failing` of them fail at their first sync message.
pub(super) fn fragile(starts: Arc<AtomicUsize>, failing: usize) -> EngineStart {
    Arc::new(move |_| {
        let fails = starts.fetch_add(1, Ordering::SeqCst) < failing;
        let failed = CancellationToken::new();
        let engine: Box<dyn Engine> = Box::new(Fragile { port: None, fails, failed, keeps: None });
        futures::future::ready(engine).boxed()
    })
}
