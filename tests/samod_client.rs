//! A samod client over the network: the other implementation of the protocol with the real relay.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::time::Duration;

use automerge::{Automerge, AutomergeError, ROOT, ReadDoc, transaction::Transactable};
use futures::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use samod::{
    BackoffConfig, ConcurrencyConfig, DialError, Dialer, Repo, Transport, Url,
    runtime::RuntimeHandle,
};
use tokio_tungstenite::tungstenite::Message;

use common::Relay;

#[derive(Clone)]
struct Tokio;

impl RuntimeHandle for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }
}

struct WebSocketDialer(Url);

impl Dialer for WebSocketDialer {
    type Error = std::convert::Infallible;

    fn url(&self) -> Url {
        self.0.clone()
    }

    fn connect(
        &self,
    ) -> BoxFuture<'static, Result<Transport, DialError<std::convert::Infallible>>> {
        let url = self.0.to_string();
        async move {
            let (socket, _) =
                tokio_tungstenite::connect_async(url).await.map_err(DialError::transient)?;
            let (sink, stream) = socket.split();
            let stream = stream.filter_map(async |message| match message {
                Ok(Message::Binary(data)) => Some(Ok(data.to_vec())),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            });
            let sink = sink.with(async |data: Vec<u8>| {
                Ok::<_, tokio_tungstenite::tungstenite::Error>(Message::Binary(data.into()))
            });
            Ok(Transport::new(stream.boxed(), Box::pin(sink)))
        }
        .boxed()
    }
}

async fn client(relay: &Relay) -> Repo {
    let repo = Repo::builder(Tokio).with_concurrency(ConcurrencyConfig::AsyncRuntime).load().await;
    let url = Url::parse(&format!("ws://127.0.0.1:{}", relay.port)).expect("a URL");
    let dialer = std::sync::Arc::new(WebSocketDialer(url));
    let handle = repo.dial(BackoffConfig::default(), dialer).expect("dials");
    handle.established().await.expect("connects");
    repo
}

fn put(doc: &mut Automerge, key: &str) {
    doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, key, 1)).expect("an edit");
}

#[tokio::test(flavor = "multi_thread")]
async fn samod_clients_share_a_document_through_the_relay() {
    let relay = Relay::start(&[]);
    let (alice, bob) = (client(&relay).await, client(&relay).await);
    let mut doc = Automerge::new();
    put(&mut doc, "from alice");
    let hers = alice.create(doc).await.expect("created");
    let (there, _) = hers.peers();
    for connection in there.into_keys() {
        hers.they_have_our_changes(connection).await;
    }
    let finding = bob.find(hers.document_id().clone());
    let his = tokio::time::timeout(Duration::from_secs(20), finding).await;
    let his = his.expect("in time").expect("runs").expect("is there");
    his.with_document(|doc| put(doc, "from bob"));
    let mut changes = hers.changes();
    let arrived = async {
        while hers.with_document(|doc| doc.get(ROOT, "from bob").expect("reads").is_none()) {
            changes.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), arrived).await.expect("bob's edit in time");
    assert!(his.with_document(|doc| doc.get(ROOT, "from alice").expect("reads").is_some()));
}
