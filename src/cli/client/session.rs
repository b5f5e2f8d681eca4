//! A document that is open in a terminal: what happens with it, and what is printed.

use std::{
    io::{self, IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use automerge::{AutoSerde, ChangeHash};
use futures::{Stream, StreamExt};
use samod::{ConnectionId, PeerDocState};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{
    edit::{GRAMMAR, Line},
    error::ClientError,
    input,
    open::{Event, Opened, Options, open, refused},
    presence::{self, HEARTBEAT_EVERY, News, Others},
    transport::Notice,
};
use crate::{
    cli::{connect::error::hint, error::CliError},
    observe::signals,
};

/// How long to wait at the end until everything that was typed is saved.
const SAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for saying goodbye, and for closing the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A change that is not saved within this time is reported.
const LATE_AFTER: Duration = Duration::from_secs(1);
/// How often to look for late changes and silent clients.
const TICK: Duration = Duration::from_millis(500);

/// An open document.
struct Session {
    opened: Opened,
    /// The name that others see.
    name: String,
    others: Others,
    /// The heads that the server's storage has, if the server reports them.
    durable: Option<Vec<ChangeHash>>,
    /// The connection over which the others were told that we are here.
    greeted: Option<ConnectionId>,
    last_presence: Instant,
    /// The document as it was printed last.
    shown: String,
    unsaved: Option<Unsaved>,
    /// Whether something must be saved before the end.
    has_edited: bool,
    is_connected: bool,
    was_told_read_only: bool,
    /// An `error` message of the server. If the server closes the connection next, the close frame
    /// says the same.
    problem: Option<String>,
    /// Whether somebody reads standard output.
    is_read: bool,
    /// Lines that changed nothing.
    failed_lines: usize,
}

/// A state of the document that is not saved yet.
struct Unsaved {
    since: Instant,
    /// Whether to say when it is saved.
    is_awaited: bool,
    is_late: bool,
}

fn say(text: &str) {
    eprintln!("* {text}");
}

/// Opens a document, and goes on until the end of input or a signal.
pub(super) async fn run(options: Options) -> Result<(), CliError> {
    let signals = signals::requests().map_err(|error| CliError::Problem(error.to_string()))?;
    let mut signals = pin!(signals);
    let (is_new, name) = (options.document.is_none(), options.name.clone());
    let server_arguments = options.server_arguments.clone();
    let mut opened = tokio::select! {
        opened = open(options) => opened?,
        _ = signals.next() => return Err(ClientError::NotOpened.into()),
    };
    let early = std::mem::take(&mut opened.early);
    let mut session = Session::new(opened, name, is_new);
    session.introduce(is_new, &server_arguments);
    for notice in early {
        session.handle_notice(notice)?;
    }
    let result = session.follow(&mut signals).await;
    session.close().await;
    Ok(result?)
}

impl Session {
    fn new(opened: Opened, name: String, is_new: bool) -> Self {
        let now = Instant::now();
        Self {
            opened,
            name,
            others: Others::default(),
            durable: None,
            greeted: None,
            last_presence: now,
            shown: String::new(),
            unsaved: Some(Unsaved { since: now, is_awaited: true, is_late: false }),
            has_edited: is_new,
            is_connected: true,
            was_told_read_only: false,
            problem: None,
            is_read: true,
            failed_lines: 0,
        }
    }

    /// Says where the document is, and prints it.
    fn introduce(&mut self, is_new: bool, server_arguments: &str) {
        let Opened { document, url, server, .. } = &self.opened;
        say(&format!("connected to {server} at {url}"));
        if is_new {
            let how = format!("elsewhere: tonk-relay client open {document}{server_arguments}");
            let id = format!("{document}\n");
            self.print(&id);
            say(&how);
        }
        if io::stdin().is_terminal() {
            say("type KEY = VALUE to change it, or help; Ctrl-C ends");
        }
        self.show();
    }

    /// Goes on until the end of input or a signal, and then until everything is saved.
    async fn follow(&mut self, signals: &mut (impl Stream + Unpin)) -> Result<(), ClientError> {
        let mut lines = input::lines();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.is_read {
            self.report_status();
            tokio::select! {
                _ = signals.next() => break,
                event = self.opened.events.next() => self.handle(event)?,
                line = lines.recv() => match line {
                    Some(line) => self.line(&line),
                    None => break,
                },
                _ = ticks.tick() => self.tick(),
            }
        }
        let mut deadline = pin!(sleep(SAVE_TIMEOUT));
        while self.has_edited && !self.is_saved() {
            tokio::select! {
                _ = signals.next() => return Err(ClientError::Interrupted),
                event = self.opened.events.next() => self.handle(event)?,
                () = &mut deadline => return Err(ClientError::NotSaved(SAVE_TIMEOUT)),
            }
        }
        self.report_status();
        if self.failed_lines > 0 && !io::stdin().is_terminal() {
            return Err(ClientError::Lines(self.failed_lines));
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), ClientError> {
        match event {
            Event::Notice(notice) => self.handle_notice(notice)?,
            Event::Changed => self.show(),
            Event::Peers(peers) => self.opened.peers.extend(peers),
        }
        Ok(())
    }

    fn handle_notice(&mut self, notice: Notice) -> Result<(), ClientError> {
        match notice {
            Notice::Opened => {}
            Notice::Joined { server, has_storage } => {
                self.is_connected = true;
                self.opened.has_storage = has_storage;
                self.unsaved().since = Instant::now();
                say(&format!("connected again, to {server}"));
            }
            Notice::Error(text) => self.problem = Some(text),
            Notice::Closed { code, reason }
                if !self.is_connected && !hint(code, &reason).is_empty() =>
            {
                return Err(refused(&self.opened.url, code, reason, self.problem.take()));
            }
            Notice::Closed { code, reason } => {
                self.problem = None;
                self.disconnected(&format!("closed with {code}: {reason}"));
            }
            Notice::Lost(reason) => self.disconnected(&reason),
            Notice::Ephemeral { sender, data } => self.presence(&sender, &data),
            Notice::DurableHeads(heads) => self.durable = Some(heads),
        }
        Ok(())
    }

    fn disconnected(&mut self, why: &str) {
        if std::mem::take(&mut self.is_connected) {
            say(&format!("disconnected, {why}; connecting again. What you type is sent then"));
        }
        self.durable = None;
    }

    fn presence(&mut self, sender: &str, data: &[u8]) {
        match self.others.receive(sender, data) {
            News::None => {}
            News::Stranger => self.greet(),
            News::Arrived(name) => {
                say(&format!("{name} is here"));
                self.greet();
            }
            News::Renamed { from, to } => say(&format!("{from} is now {to}")),
            News::Left(name) => say(&format!("{name} left")),
            News::Says { name, text } => say(&format!("{name} says {text}")),
        }
    }

    fn greet(&mut self) {
        self.broadcast(presence::snapshot(&self.name));
    }

    fn broadcast(&mut self, message: Vec<u8>) {
        self.last_presence = Instant::now();
        self.opened.handle.broadcast(message);
    }

    /// Applies a typed line.
    fn line(&mut self, line: &str) {
        let problem = match Line::parse(line) {
            Ok(Line::Empty) => None,
            Ok(Line::Help) => {
                eprint!("{GRAMMAR}");
                None
            }
            Ok(Line::Edit(_)) if self.is_read_only() => {
                Some("you may only read this document".to_owned())
            }
            Ok(Line::Edit(edit)) => {
                let applied = self.opened.handle.with_document(|doc| edit.apply(doc));
                if applied.is_ok() {
                    self.has_edited = true;
                    self.unsaved().is_awaited = true;
                    self.show();
                }
                applied.err().map(|error| error.to_string())
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            say(&format!("not changed: {problem}"));
            self.failed_lines += 1;
        }
    }

    fn unsaved(&mut self) -> &mut Unsaved {
        let new = || Unsaved { since: Instant::now(), is_awaited: false, is_late: false };
        self.unsaved.get_or_insert_with(new)
    }

    fn tick(&mut self) {
        self.report_problem();
        if self.is_connected && self.last_presence.elapsed() > HEARTBEAT_EVERY {
            self.broadcast(presence::heartbeat());
        }
        for name in self.others.forget_silent(std::time::Instant::now()) {
            say(&format!("{name} is gone"));
        }
    }

    fn report_problem(&mut self) {
        if let Some(text) = self.problem.take() {
            say(&format!("the server says: {text}"));
        }
    }

    /// Reports what the last event has changed: who is there, what is allowed, whether all is
    /// saved.
    fn report_status(&mut self) {
        let server = self.opened.dialer.connection_id();
        let has_answered = self.peer().is_some_and(|peer| peer.their_heads.is_some());
        if has_answered && self.greeted != server {
            self.greeted = server;
            self.greet();
        }
        if self.is_read_only() && !std::mem::replace(&mut self.was_told_read_only, true) {
            say("you may only read this document");
        }
        if self.is_saved() {
            let was = self.unsaved.take();
            if was.is_some_and(|unsaved| unsaved.is_awaited || unsaved.is_late) {
                say(match self.opened.has_storage {
                    true => "saved",
                    false => "received by the server, which has no storage",
                });
            }
        } else {
            let is_connected = self.is_connected;
            let unsaved = self.unsaved();
            if is_connected && !unsaved.is_late && unsaved.since.elapsed() > LATE_AFTER {
                unsaved.is_late = true;
                say("not saved yet");
            }
        }
    }

    /// What the server has told about the document.
    fn peer(&self) -> Option<&PeerDocState> {
        self.opened.peers.get(&self.opened.dialer.connection_id()?)
    }

    fn is_read_only(&self) -> bool {
        self.peer().is_some_and(|peer| peer.peer_read_only)
    }

    /// Whether the server has the document as it is here: in its storage if it tells that apart, as
    /// this relay does, or else at all.
    fn is_saved(&self) -> bool {
        let told = self.durable.as_ref().or_else(|| self.peer()?.their_heads.as_ref());
        let Some(told) = told.filter(|_| self.is_connected) else { return false };
        let mut told = told.clone();
        told.sort_unstable();
        told == self.opened.handle.with_document(|doc| doc.get_heads())
    }

    /// Prints the document if it has changed.
    fn show(&mut self) {
        let json = self.opened.handle.with_document(|doc| {
            serde_json::to_string(&AutoSerde::from(&*doc)).unwrap_or_default()
        });
        if json != self.shown {
            self.print(&format!("{json}\n"));
            self.shown = json;
        }
    }

    fn print(&mut self, text: &str) {
        let mut out = io::stdout();
        self.is_read &= out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
    }

    /// Says goodbye, and closes the connection.
    async fn close(&mut self) {
        self.report_problem();
        if self.is_connected && self.greeted.is_some() {
            self.broadcast(presence::goodbye());
            let said = self.opened.said_goodbye.wait_for(|said| *said);
            let _ = timeout(CLOSE_TIMEOUT, said).await;
        }
        let _ = timeout(CLOSE_TIMEOUT, self.opened.repo.stop()).await;
    }
}
