//! How the costs grow with readers, connections and documents: `cargo bench --bench relay --
//! growth`.
//!
//! Prints lines of three fields with tabs between them: what is measured, for how many, and the
//! figure. `tests/js/growth.mjs` draws charts of them.

use std::time::Instant;

use crate::{
    CONNECTION, Crowd, EDIT,
    client::Client,
    edits,
    quiet::idle,
    server::{Kind, Server},
    share_small,
};

const READERS: [usize; 5] = [1, 10, 100, 400, 1000];
/// The last is near `limits.connections`, which is 15,000 if the config does not say otherwise.
const CONNECTIONS: [usize; 3] = [1_000, 5_000, 14_000];
const DOCUMENTS: [usize; 3] = [10, 100, 1_000];
/// How many users join, one after the other.
const JOINS: u32 = 5;

pub(crate) async fn run() {
    for readers in READERS {
        let (rate, edit_count) = (2.0, 20);
        let crowd =
            Crowd { documents: 1, users: readers, all: true, rate, edits: edit_count, history: 0 };
        let figures = edits(&Server::start(Kind::Relay), &crowd).await;
        print("us of CPU a delivered edit, by readers", readers, figures.get(EDIT));
    }
    for connections in CONNECTIONS {
        let figures = idle(&Server::start(Kind::Relay), connections).await;
        let name = "KiB a connection with a document, by connections";
        print(name, connections, figures.get(CONNECTION));
    }
    for documents in DOCUMENTS {
        let millis = join(&Server::start(Kind::Relay), documents).await;
        print("ms until a user has all documents, by documents", documents, Some(&millis));
    }
}

fn print(name: &str, of: usize, figure: Option<&f64>) {
    println!("{name}\t{of}\t{:.1}", figure.copied().unwrap_or(f64::NAN));
}

/// Returns how many milliseconds a new user needs to fetch this many documents.
async fn join(server: &Server, documents: usize) -> f64 {
    let mut writer = Client::connect(&server.url).await;
    let mut ids = Vec::new();
    for _ in 0..documents {
        ids.push(share_small(&mut writer).await);
    }
    let start = Instant::now();
    for _ in 0..JOINS {
        let mut user = Client::connect(&server.url).await;
        user.fetch(&ids).await;
    }
    (start.elapsed() / JOINS).as_secs_f64() * 1000.0
}
