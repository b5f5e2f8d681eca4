//! `tonk-relay ping URL`: the way to a relay as a client takes it, step by step, so that the one which fails has a name.

mod client;
mod error;
mod target;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::time::timeout;

use self::{client::PATIENCE, error::PingError, target::Target};
use super::{
    error::CliError,
    output::{millis, print},
    runtime::runtime,
};
use crate::{base::document_id::DocumentId, config::Size};

/// Small messages that are sent there and back.
const ROUNDS: u64 = 10;

/// `tonk-relay ping`
#[derive(Debug, Args)]
pub(super) struct PingArguments {
    /// Where clients connect to: ws:// or wss://
    url: String,
    /// A file with the token to sign in with
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A file with certificates (PEM) to trust besides the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The largest message to send there and back
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = size)]
    largest: Size,
    /// How long to say nothing, to see whether something on the way ends silent connections
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    silence: Duration,
}

fn size(text: &str) -> Result<Size, String> {
    text.parse::<bytesize::ByteSize>().map(|size| Size(size.as_u64()))
}

impl From<PingError> for CliError {
    fn from(error: PingError) -> Self {
        Self::Problem(error.to_string())
    }
}

pub(super) fn run(arguments: &PingArguments) -> Result<(), CliError> {
    let target =
        Target::new(&arguments.url, arguments.token_file.as_deref(), arguments.ca_file.as_deref())?;
    Ok(runtime()?.block_on(steps(&target, arguments))?)
}

async fn steps(target: &Target, arguments: &PingArguments) -> Result<(), PingError> {
    let say = |step: &str, text: String| print(&format!("{step:<12} {text}\n"));
    let id = DocumentId::random();
    // Two clients that show each other presence in a document that nobody has: nothing is stored.
    let mut one = target.join(&format!("ping-{id}-1"), say).await?;
    let mut two = target.join(&format!("ping-{id}-2"), |_, _| ()).await?;
    let step = "round trip";
    one.present(step, id, 1, 1).await?;
    two.present(step, id, 1, 1).await?;
    // Who came second is heard by the first: then both are there.
    tokio::select! {
        heard = one.hear(step, 1, 1) => heard?,
        heard = two.hear(step, 1, 1) => heard?,
    }
    let mut times = Vec::new();
    for count in 2..2 + ROUNDS {
        let start = Instant::now();
        one.present(step, id, count, 1).await?;
        two.hear(step, count, 1).await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    say(step, format!("to another client: median {}, longest {}", millis(median), millis(longest)));

    let step = "large";
    let mut count = 2 + ROUNDS;
    let sizes = [64 << 10, 1 << 20].into_iter().filter(|size| *size < arguments.largest.0);
    for size in sizes.chain([arguments.largest.0]) {
        let bytes = usize::try_from(size).unwrap_or(usize::MAX);
        let start = Instant::now();
        let sending = async {
            one.present(step, id, count, bytes).await?;
            // What is too large is answered with a close.
            one.next(step).await.map(drop)
        };
        let arrived = tokio::select! {
            heard = two.hear(step, count, bytes) => heard,
            Err(refused) = sending => Err(refused),
        };
        if let Err(error) = arrived {
            say(step, format!("a message of {} does not arrive", Size(size)));
            return Err(error);
        }
        say(step, format!("a message of {} arrives in {}", Size(size), millis(start.elapsed())));
        count += 1;
    }

    let step = "silence";
    let silence = arguments.silence;
    if !silence.is_zero() {
        one.pings = 0;
        let quiet = async {
            loop {
                tokio::try_join!(one.next(step), two.next(step))?;
            }
        };
        if let Ok(Err::<(), _>(error)) = timeout(silence, quiet).await {
            return Err(PingError::Cut(Box::new(error)));
        }
        one.present(step, id, count, 1).await?;
        two.hear(step, count, 1).await?;
        let pings = one.pings;
        let silence = humantime::format_duration(silence);
        say(step, format!("{silence}, and the connection lives; {pings} pings came"));
    }
    for client in [&mut one, &mut two] {
        // It is over: what goes wrong now is nobody's matter.
        let _ = timeout(PATIENCE, client.socket.close(None)).await;
    }
    Ok(())
}
