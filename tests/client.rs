//! `tonk-relay client`: two terminals share a document through a relay, and what they are told.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use common::Relay;

/// The longest time that anything may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A client with its input and its output.
struct Terminal {
    child: Child,
    input: Option<ChildStdin>,
    /// Lines of standard output.
    document: Receiver<String>,
    /// Lines of standard error.
    messages: Receiver<String>,
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let _ = sender.send(line.expect("text"));
        }
    });
    receiver
}

impl Terminal {
    fn open(relay: &Relay, words: &[&str]) -> Self {
        Self::at(&format!("ws://127.0.0.1:{}", relay.port), words)
    }

    fn at(url: &str, words: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
        command.arg("client").args(words).args(["--url", url]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let document = lines(child.stdout.take().expect("its output"));
        let messages = lines(child.stderr.take().expect("its messages"));
        let input = child.stdin.take();
        Self { child, input, document, messages }
    }

    fn type_in(&mut self, line: &str) {
        let input = self.input.as_mut().expect("is open");
        writeln!(input, "{line}").expect("is read");
    }

    /// The next line of standard output.
    fn shows(&self) -> String {
        self.document.recv_timeout(TIMEOUT).expect("a line in time")
    }

    /// Waits for a message with this text. Returns it.
    fn says(&self, text: &str) -> String {
        loop {
            let line = self.messages.recv_timeout(TIMEOUT).expect(text);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Ends the input. Returns the exit code, and the remaining messages.
    fn end(mut self) -> (Option<i32>, String) {
        self.input = None;
        let status = self.child.wait().expect("ends");
        (status.code(), self.messages.iter().collect::<Vec<_>>().join("\n"))
    }
}

#[test]
fn two_terminals_share_a_document_and_see_each_other() {
    let relay = Relay::start(&[]);
    let mut anna = Terminal::open(&relay, &["new", "--name", "Anna"]);
    let id = anna.shows();
    assert_eq!(anna.shows(), "{}");
    assert!(anna.says("elsewhere").contains(&format!("client open {id} --url ws://")));
    anna.says("* saved");
    anna.type_in("title = Groceries");
    assert_eq!(anna.shows(), r#"{"title":"Groceries"}"#);
    anna.says("* saved");

    let mut ben = Terminal::open(&relay, &["open", &format!("automerge:{id}"), "--name", "Ben"]);
    assert_eq!(ben.shows(), r#"{"title":"Groceries"}"#);
    anna.says("* Ben is here");
    ben.says("* Anna is here");
    ben.type_in("todos += milk");
    let both = r#"{"title":"Groceries","todos":["milk"]}"#;
    assert_eq!((ben.shows(), anna.shows()), (both.to_owned(), both.to_owned()));
    ben.says("* saved");
    anna.type_in("nonsense");
    anna.says("* not changed: expected KEY = VALUE");
    assert_eq!(ben.end().0, Some(0));
    anna.says("* Ben left");
    let (code, messages) = anna.end();
    assert_eq!(code, Some(1), "a script learns that a line was wrong: {messages}");

    // What was typed just before the end of input is saved, too.
    let mut last = Terminal::open(&relay, &["open", &id]);
    last.type_in("delete todos[0]");
    assert_eq!(last.end().0, Some(0));
    let reader = Terminal::open(&relay, &["open", &id]);
    assert_eq!(reader.shows(), r#"{"title":"Groceries","todos":[]}"#);
    assert_eq!(reader.end().0, Some(0));
}

#[test]
fn a_change_that_is_not_saved_shows_in_the_exit_code() {
    let mut relay = Relay::start(&[]);
    let mut client = Terminal::open(&relay, &["new"]);
    client.says("* saved");
    relay.child.kill().expect("is killed");
    client.says("* disconnected");
    client.type_in("a = 1");
    client.input = None;
    while client.shows() != r#"{"a":1}"# {}
    // The client waits now; a signal interrupts it.
    let id = rustix::process::Pid::from_child(&client.child);
    std::thread::sleep(Duration::from_millis(300));
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("is signalled");
    client.says("not saved: interrupted");
    assert_eq!(client.end().0, Some(1));
}

#[test]
fn problems_say_what_to_do() {
    let relay = Relay::start(&[]);
    let unknown = "2XehcERzGALTcjP7C7VxwFJdWoEW";
    let (code, text) = Terminal::open(&relay, &["open", unknown]).end();
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("does not have document {unknown}")), "{text}");

    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display();
    let config = folder.path().join("tonk-relay.toml");
    let text = format!(
        "[http]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = []\n\
         [storage]\npath = \"{at}/documents\"\n[bundles]\npath = \"{at}/bundles\"\n\
         [auth]\nmode = \"token\"\ntokens = \"{at}/tokens\"\n"
    );
    fs::write(&config, text).expect("is written");
    let token = |scope: &str| {
        let mut add = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
        add.args(["token", "add", &scope.replace(':', "-"), "--scope", scope, "--config"]);
        let token = folder.path().join(scope);
        fs::write(&token, add.arg(&config).output().expect("runs").stdout).expect("is written");
        token.display().to_string()
    };
    let (writer, reader) = (token("sync:write"), token("sync:read"));
    let relay = Relay::start_with(&config);
    let (code, text) = Terminal::open(&relay, &["new"]).end();
    assert_eq!(code, Some(1));
    assert!(text.contains("closed with 4401: sign-in is required"), "{text}");
    assert!(text.contains("--token-file"), "{text}");

    let mut client = Terminal::open(&relay, &["new", "--token-file", &writer]);
    let id = client.shows();
    client.type_in("a = 1");
    assert_eq!(client.end().0, Some(0));
    let token = fs::read_to_string(&reader).expect("a token");
    let url = format!("ws://127.0.0.1:{}/?token={}", relay.port, token.trim());
    let client = Terminal::at(&url, &["open", &id]);
    assert_eq!(client.shows(), r#"{"a":1}"#);
    let (code, text) = client.end();
    assert_eq!(code, Some(0));
    assert!(text.contains("connected to") && !text.contains(token.trim()), "{text}");
    let mut client = Terminal::open(&relay, &["open", &id, "--token-file", &reader]);
    assert_eq!(client.shows(), r#"{"a":1}"#);
    client.says("* you may only read this document");
    client.type_in("a = 2");
    client.says("* not changed: you may only read this document");
    assert_eq!(client.end().0, Some(1));
}
