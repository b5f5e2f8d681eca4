//! What a delivered update costs in servers of Yjs, compared with a delivered edit in this relay:
//! `cargo bench --bench relay -- --yjs`.
//!
//! Yjs is the other widely used family of CRDTs. Its protocol sends one message to each reader and
//! has no acknowledgements. The clients are raw: they count the updates that they receive and do
//! not apply them. The servers store nothing.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Bytes, Message},
};

use crate::{
    Crowd, EDIT, Figures, Latencies, P99,
    client::now,
    edits, micros,
    server::{Kind, Server},
};

/// The name of the document.
const DOCUMENT: &str = "bench";
/// What sync messages begin with, in y-protocols' `sync.js`: a state vector, and an update.
const STEP_1: [u8; 2] = [0, 0];
const UPDATE: [u8; 2] = [0, 2];
/// Writing an empty token, in hocuspocus' `MessageType` and `AuthMessageType`.
const TOKEN: [u8; 3] = [2, 0, 0];
/// The longest time that an update may take.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn run() {
    println!("{:10} {:28} {:>10} {:>12} {:>12}", "", "", "relay", "y-websocket", "hocuspocus");
    for (name, readers, rate, count) in [("fanout", 100, 5.0, 25), ("hot", 400, 2.0, 10)] {
        let crowd =
            Crowd { documents: 1, users: readers, all: true, rate, edits: count, history: 0 };
        let relay = edits(&Server::start(Kind::Relay), &crowd).await;
        let mut others = Vec::new();
        for kind in [Kind::YWebsocket, Kind::Hocuspocus] {
            others.push(updates(kind, readers, rate, count).await);
        }
        for figure in [EDIT, P99] {
            let of = |figures: &Figures| figures.get(figure).copied().unwrap_or(f64::NAN);
            print!("{name:10} {figure:28} {:10.1}", of(&relay));
            others.iter().for_each(|other| print!(" {:12.1}", of(other)));
            println!();
        }
    }
}

/// One writer, whose updates are delivered to many readers.
async fn updates(kind: Kind, readers: usize, rate: f64, count: u64) -> Figures {
    let server = Server::start(kind);
    let mut writer = Raw::connect(kind, &server.url).await;
    // A first update, so that readers do not find an empty document.
    writer.send(&update(0)).await;
    // Afterwards the server has handled it.
    writer.fetch().await;
    let sent_at: Arc<Mutex<Vec<u64>>> = Arc::default();
    let latencies = Latencies::default();
    let mut tasks = Vec::new();
    for _ in 0..readers {
        let mut reader = Raw::connect(kind, &server.url).await;
        let (sent_at, latencies) = (sent_at.clone(), latencies.clone());
        tasks.push(tokio::spawn(async move {
            for nth in 0..count as usize {
                reader.next_update().await;
                let sent = sent_at.lock().expect("no panic").get(nth).copied();
                latencies.note(sent.expect("it was sent before"));
            }
            reader
        }));
    }
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    tick.tick().await;
    let start = server.usage();
    for clock in 1..=count {
        tick.tick().await;
        sent_at.lock().expect("no panic").push(now());
        writer.send(&update(clock)).await;
    }
    // Kept until all have ended, so that disconnecting is not measured.
    let mut clients = Vec::new();
    for task in tasks {
        clients.push(task.await.expect("ends well"));
    }
    let end = server.usage();
    Figures::from([(EDIT, micros(start, end, latencies.count() as f64)), (P99, latencies.p99_ms())])
}

/// An update in Yjs' first encoding (`UpdateEncoderV1`): client 1 appends a letter to the text `t`
/// at this time of its clock.
fn update(clock: u64) -> Vec<u8> {
    const CLIENT: u8 = 1;
    const STRING: u8 = 4;
    const HAS_ORIGIN: u8 = 0x80;
    let clock = u8::try_from(clock).ok().filter(|clock| *clock < 0x80).expect("one byte as varint");
    let mut update = vec![1, 1, CLIENT, clock];
    match clock.checked_sub(1) {
        // The item to the left, which also says in which text it is.
        Some(left) => update.extend([STRING | HAS_ORIGIN, CLIENT, left]),
        None => update.extend([STRING, 1, 1, b't']),
    }
    // A text of one letter, and no deletions.
    update.extend([1, b'x', 0]);
    update
}

/// A client that applies nothing.
struct Raw {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What its messages and those to it begin with.
    prefix: Vec<u8>,
}

impl Raw {
    /// Connects, and waits for the document.
    async fn connect(kind: Kind, url: &str) -> Self {
        let (socket, _) = connect_async(format!("{url}/{DOCUMENT}")).await.expect("connects");
        let mut prefix = Vec::new();
        if kind == Kind::Hocuspocus {
            prefix.push(DOCUMENT.len() as u8);
            prefix.extend(DOCUMENT.as_bytes());
        }
        let mut client = Self { socket, prefix };
        if kind == Kind::Hocuspocus {
            client.send_message(&TOKEN).await;
        }
        client.fetch().await;
        client
    }

    /// Requests the document, and waits for it.
    async fn fetch(&mut self) {
        // An empty state vector, as bytes with their length.
        self.send_message(&[STEP_1[0], STEP_1[1], 1, 0]).await;
        // The answer to it: a sync message, or in hocuspocus a reply to one, of the kind "step 2".
        self.receive(|message| matches!(message, [0 | 4, 1, ..])).await;
    }

    async fn send(&mut self, update: &[u8]) {
        let length = u8::try_from(update.len()).expect("a short update");
        let message = [&UPDATE[..], &[length], update].concat();
        self.send_message(&message).await;
    }

    async fn send_message(&mut self, message: &[u8]) {
        let frame = Bytes::from([&self.prefix[..], message].concat());
        self.socket.send(Message::Binary(frame)).await.expect("is sent");
    }

    async fn next_update(&mut self) {
        self.receive(|message| message.starts_with(&UPDATE)).await;
    }

    /// Reads until a message is of the wanted kind.
    async fn receive(&mut self, is_wanted: impl Fn(&[u8]) -> bool) {
        loop {
            let next = timeout(TIMEOUT, self.socket.next()).await.expect("something in time");
            let message = next.expect("an open connection").expect("a message");
            if let Message::Binary(frame) = message
                && frame.strip_prefix(&self.prefix[..]).is_some_and(&is_wanted)
            {
                return;
            }
        }
    }
}
