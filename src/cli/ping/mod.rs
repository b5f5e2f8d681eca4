//! `tonk-relay ping URL`: connects to a relay as a client does, one step after the other, and names
//! the step that fails.

mod client;
mod error;
mod report;

use std::time::{Duration, Instant};

use clap::Args;
use tokio::time::timeout;

use self::{client::Client, error::PingError, report::Report};
use super::{
    arguments::duration,
    connect::{
        ConnectArguments,
        step::{STEP_TIMEOUT, Step},
        target::Target,
    },
    error::CliError,
    output::{millis, printable},
    runtime::runtime,
};
use crate::{
    base::{document_id::DocumentId, text::Count},
    config::Size,
};

/// Round trips that are measured.
const ROUND_TRIPS: u64 = 10;

/// `tonk-relay ping`
#[derive(Debug, Args)]
pub(super) struct PingArguments {
    /// The URL that clients connect to, such as wss://sync.example.org
    url: String,
    #[command(flatten)]
    connect: ConnectArguments,
    /// The largest message to send from one client to the other
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = size)]
    largest: Size,
    /// How long to send nothing, to see whether a proxy or firewall cuts idle connections; 0s to
    /// skip this
    #[arg(
        long, value_name = "DURATION", default_value = "15s",
        value_parser = duration
    )]
    silence: Duration,
    /// Print JSON, at the end
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<Size, String> {
    text.parse::<bytesize::ByteSize>().map(|size| Size(size.as_u64()))
}

pub(super) fn run(arguments: &PingArguments) -> Result<(), CliError> {
    let target = arguments.connect.target(&arguments.url)?;
    let report = Report::new(arguments.json);
    let result = runtime()?.block_on(ping(&target, arguments, &report));
    report.end(&arguments.url, &result);
    Ok(result?)
}

async fn ping(
    target: &Target,
    arguments: &PingArguments,
    report: &Report,
) -> Result<(), PingError> {
    let document = DocumentId::random();
    let names = [1, 2].map(|n| format!("ping-{document}-{n}"));
    let first = Client::join(target, &names[0], &|step| report.add(step)).await?;
    let second = Client::join(target, &names[1], &|_| ()).await?;
    let mut pair = Pair { first, second, document, count: 1, report };
    pair.round_trips().await?;
    pair.large_messages(arguments.largest.0).await?;
    if !arguments.silence.is_zero() {
        pair.silence(arguments.silence).await?;
    }
    for client in [&mut pair.first, &mut pair.second] {
        // All steps have succeeded; an error while closing does not matter.
        let _ = timeout(STEP_TIMEOUT, client.socket.close(None)).await;
    }
    Ok(())
}

/// Two clients that exchange ephemeral messages in a document that does not exist: nothing is
/// stored.
struct Pair<'a> {
    first: Client,
    second: Client,
    document: DocumentId,
    /// Count of the next ephemeral message.
    count: u64,
    report: &'a Report,
}

impl Pair<'_> {
    /// Measures how long a small message takes from one client to the other.
    async fn round_trips(&mut self) -> Result<(), PingError> {
        let step = "round trip";
        let (first, second, document) = (&mut self.first, &mut self.second, self.document);
        first.send_ephemeral(step, document, 1, 1).await?;
        second.send_ephemeral(step, document, 1, 1).await?;
        // The client that joined the room first hears the other one. After that, both are in the
        // room.
        tokio::select! {
            received = first.receive_ephemeral(step, 1, 1) => received?,
            received = second.receive_ephemeral(step, 1, 1) => received?,
        }
        let mut times = Vec::new();
        for count in 2..2 + ROUND_TRIPS {
            let start = Instant::now();
            first.send_ephemeral(step, document, count, 1).await?;
            second.receive_ephemeral(step, count, 1).await?;
            times.push(start.elapsed());
        }
        self.count = 2 + ROUND_TRIPS;
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let longest = millis(times.last().copied().unwrap_or_default());
        let text = format!("to another client: median {}, longest {longest}", millis(median));
        self.report.add(Step::new(step, text, Some(median)));
        Ok(())
    }

    /// Sends messages of growing sizes, the last of `largest` bytes.
    async fn large_messages(&mut self, largest: u64) -> Result<(), PingError> {
        let step = "large";
        let relays = [&self.first.relay, &self.second.relay];
        if relays[0] != relays[1] {
            // Between relays presence has to fit into a notification of the database.
            let relays = relays.map(|relay| printable(relay, 40)).join(" and ");
            let text = format!("skipped: the two clients are at different relays, {relays}");
            self.report.add(Step::new(step, text, None));
            return Ok(());
        }
        let sizes = [64 << 10, 1 << 20].into_iter().filter(|size| *size < largest);
        for size in sizes.chain([largest]) {
            let bytes = usize::try_from(size).unwrap_or(usize::MAX);
            let start = Instant::now();
            let sending = async {
                self.first.send_ephemeral(step, self.document, self.count, bytes).await?;
                Err(self.first.next_refusal(step).await)
            };
            let arrived = tokio::select! {
                received = self.second.receive_ephemeral(step, self.count, bytes) => received,
                refused = sending => refused,
            };
            if let Err(error) = arrived {
                let text = format!("a message of {} does not arrive", Size(size));
                self.report.add(Step::new(step, text, None));
                return Err(error);
            }
            let took = start.elapsed();
            let text = format!("a message of {} arrives in {}", Size(size), millis(took));
            self.report.add(Step::new(step, text, Some(took)));
            self.count += 1;
        }
        Ok(())
    }

    /// Sends nothing for some time, and then checks that both connections still work.
    async fn silence(&mut self, silence: Duration) -> Result<(), PingError> {
        let step = "silence";
        self.first.pings = 0;
        // Each by itself, because relays ping at different times.
        let stays_open = async |client: &mut Client| -> Result<(), PingError> {
            loop {
                client.next(step).await?;
            }
        };
        let (first, second) = (&mut self.first, &mut self.second);
        let quiet = async { tokio::try_join!(stays_open(first), stays_open(second)) };
        if let Ok(Err(error)) = timeout(silence, quiet).await {
            return Err(PingError::Cut(Box::new(error)));
        }
        self.first.send_ephemeral(step, self.document, self.count, 1).await?;
        self.second.receive_ephemeral(step, self.count, 1).await?;
        let pings = Count(self.first.pings, "ping");
        let silence = humantime::format_duration(silence);
        let text = format!("{silence}, and the connection is still open; {pings} received");
        self.report.add(Step::new(step, text, None));
        Ok(())
    }
}
