//! automerge's JavaScript as a judge of documents.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// automerge's JavaScript in a process of its own.
pub(crate) struct Oracle {
    child: Child,
    documents: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Oracle {
    /// Starts Node.js.
    pub(crate) fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js");
        assert!(
            folder.join("node_modules/@automerge/automerge").exists(),
            "automerge's JavaScript is missing: npm install --prefix tests/js --no-save"
        );
        let mut child = Command::new("node")
            .arg(folder.join("oracle.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node.js");
        let documents = child.stdin.take().expect("its input");
        let answers = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, documents, answers }
    }

    /// Returns the heads of a saved document, or the reason why it cannot be read and edited.
    pub(crate) fn check(&mut self, saved: &[u8]) -> Result<Vec<String>, String> {
        let length = u32::try_from(saved.len()).expect("less than 4 GiB").to_le_bytes();
        let sent = self.documents.write_all(&length);
        sent.and_then(|()| self.documents.write_all(saved)).expect("it reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(serde_json::from_value(answer["heads"].clone()).expect("heads")),
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
