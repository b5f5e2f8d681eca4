//! The documents: every link and path in them leads somewhere, in the source tree and in the
//! packages, commands that are marked as runnable run and print what the document shows, and the
//! example configs have no fault.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
    process::Command,
};

use common::Relay;
use tonk_relay::config::{
    check,
    load::{self, Fault},
    warnings::warnings,
};

/// Where the documents are.
const FOLDER: &str = "packaging/doc";
/// Example programs that they show.
const EXAMPLES: &str = "packaging/examples";
/// Where the packages put the documents.
const INSTALLED: &str = "/usr/share/doc/tonk-relay";
const README: &str = "README.md";
/// The longest README that people read.
const README_LINES: usize = 130;
/// The longest line of prose, in characters.
const COLUMNS: usize = 120;
const PACKAGERS: [&str; 2] = ["deb", "rpm"];
/// What paths of the source tree begin with.
const SOURCES: [&str; 6] = ["packaging/", "tests/", "etc/", "man/", "src/", ".ci/"];
/// How packaging/build changes the links of the README, which is installed among the other
/// documents.
const LINKS_OF_README: (&str, &str) = ("](packaging/doc/", "](");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

/// A Markdown file, by its path in the source tree.
struct Document {
    path: String,
    text: String,
}

/// A fenced block: what follows the fence, and its lines.
struct Block {
    info: String,
    text: String,
}

impl Document {
    fn new(path: &str) -> Self {
        Self { path: path.to_owned(), text: read(path) }
    }

    fn all() -> Vec<Self> {
        let entries = fs::read_dir(root().join(FOLDER)).expect("the folder of documents");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .filter(|name| name.ends_with(".md"))
            .collect();
        names.sort();
        let paths = names.into_iter().map(|name| format!("{FOLDER}/{name}"));
        paths.chain([README.to_owned()]).map(|path| Self::new(&path)).collect()
    }

    /// The lines outside of fenced blocks, and those blocks.
    fn split(&self) -> (Vec<&str>, Vec<Block>) {
        let (mut prose, mut blocks) = (Vec::new(), Vec::new());
        let mut open: Option<Block> = None;
        for line in self.text.lines() {
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (None, Some(info)) => {
                    open = Some(Block { info: info.trim().to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => prose.push(line),
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", self.path);
        (prose, blocks)
    }

    /// The targets of all links and pictures.
    fn links(&self) -> Vec<String> {
        let prose = self.split().0.join("\n");
        let targets = prose.split("](").skip(1);
        targets.map(|rest| rest.split(')').next().unwrap_or_default().to_owned()).collect()
    }

    /// What a link to this document may name after `#`.
    fn anchors(&self) -> BTreeSet<String> {
        let (prose, _) = self.split();
        let headings = prose.iter().filter(|line| line.starts_with('#')).map(|line| slug(line));
        let named = prose.iter().flat_map(|line| line.split("<a id=\"").skip(1));
        let named = named.map(|rest| rest.split('"').next().unwrap_or_default().to_owned());
        headings.chain(named).collect()
    }

    /// All words that stand in code.
    fn words_in_code(&self) -> Vec<String> {
        let (prose, blocks) = self.split();
        let prose = prose.join("\n");
        let spans = prose.split('`').skip(1).step_by(2);
        let code = spans.chain(blocks.iter().map(|block| block.text.as_str()));
        code.flat_map(str::split_whitespace).map(str::to_owned).collect()
    }
}

/// A heading as GitHub and others make an anchor of it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Whether a link leads to another site.
fn is_elsewhere(link: &str) -> bool {
    link.starts_with("https://") || link.starts_with("http://")
}

/// `path` relative to the folder of the file `from`, without `..`.
fn resolved(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => _ = parts.pop(),
            Component::Normal(part) => parts.push(part.to_str().expect("text")),
            _ => {}
        }
    }
    parts.join("/")
}

/// Fails unless a link of the document at `from` leads to a file that `is_there`, and to an anchor
/// of it.
fn follow(from: &str, link: &str, anchors: &Anchors, is_there: impl Fn(&str) -> bool) {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { from.to_owned() } else { resolved(from, path) };
    assert!(is_there(&target), "{from}: the link {link} leads to {target}, which is not there");
    if !anchor.is_empty() {
        let known = anchors.get(&target).is_some_and(|anchors| anchors.contains(anchor));
        assert!(known, "{from}: the link {link} leads to a heading that is not there");
    }
}

/// The anchors of each document, by its path.
type Anchors = BTreeMap<String, BTreeSet<String>>;

#[test]
fn links_lead_somewhere_in_the_source_tree() {
    let documents = Document::all();
    let anchors: Anchors =
        documents.iter().map(|document| (document.path.clone(), document.anchors())).collect();
    for document in &documents {
        for link in document.links().iter().filter(|link| !is_elsewhere(link)) {
            follow(&document.path, link, &anchors, |path| root().join(path).exists());
        }
    }
}

/// What packaging/nfpm.yaml puts into a package: the source and the place of each file.
fn package(packager: &str) -> Vec<(String, String)> {
    let text = read("packaging/nfpm.yaml");
    let mut files = Vec::new();
    for entry in text.split("  - src: ").skip(1) {
        let value = |key: &str| {
            let line = entry.lines().find_map(|line| line.trim().strip_prefix(key));
            line.map(|value| value.trim().to_owned())
        };
        let src = entry.lines().next().expect("a source").trim().to_owned();
        if value("packager:").is_none_or(|only| only == packager) {
            files.push((src, value("dst:").expect("a destination")));
        }
    }
    assert!(files.len() > 20, "the file is understood");
    files
}

#[test]
fn links_lead_somewhere_in_the_packages() {
    let (from, to) = LINKS_OF_README;
    let build = read("packaging/build");
    assert!(
        build.contains(&format!("s|{from}|{to}|g")),
        "packaging/build changes the README's links"
    );
    for packager in PACKAGERS {
        let files = package(packager);
        for (src, _) in &files {
            // packaging/build makes these.
            let is_staged = src == "tonk-relay" || src.ends_with(".gz");
            assert!(is_staged || root().join(src).exists(), "nfpm.yaml: there is no {src}");
        }
        let places: BTreeSet<&str> = files.iter().map(|(_, dst)| dst.as_str()).collect();
        for entry in fs::read_dir(root().join(FOLDER)).expect("the folder of documents") {
            let name = entry.expect("an entry").file_name().into_string().expect("a name");
            let place = format!("{INSTALLED}/{name}");
            assert!(places.contains(place.as_str()), "nfpm.yaml: {packager}: {name} is missing");
        }
        let documents = Document::all().into_iter().map(|mut document| {
            if document.path == README {
                document.text = document.text.replace(from, to);
            }
            let name = document.path.rsplit('/').next().unwrap_or_default();
            document.path = format!("{INSTALLED}/{name}");
            document
        });
        let documents: Vec<Document> = documents.collect();
        let anchors: Anchors =
            documents.iter().map(|document| (document.path.clone(), document.anchors())).collect();
        for document in &documents {
            for link in document.links().iter().filter(|link| !is_elsewhere(link)) {
                follow(&document.path, link, &anchors, |path| places.contains(path));
            }
        }
    }
}

#[test]
fn paths_in_code_are_there() {
    let installed: BTreeSet<String> =
        PACKAGERS.iter().flat_map(|packager| package(packager)).map(|(_, dst)| dst).collect();
    let is_installed = |path: &str| {
        installed.iter().any(|dst| dst == path || dst.starts_with(&format!("{path}/")))
    };
    let manuals = ["man/tonk-relay.8", "man/tonk-relay.toml.5", "packaging/certbot/deploy-hook"];
    let others = manuals.into_iter().map(|path| {
        let text = read(path).replace("\\-", "-").replace("\\fB", "").replace("\\fR", "");
        (path.to_owned(), text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    });
    let documents = Document::all();
    let words = documents.iter().map(|document| (document.path.clone(), document.words_in_code()));
    for (document, words) in words.chain(others) {
        for word in words {
            let path = word.split('#').next().unwrap_or_default();
            let path = path.trim_end_matches([',', ';', ':', '.', ')', '\'', '"', '/']);
            let path = path.trim_start_matches(['(', '\'', '"']);
            if SOURCES.iter().any(|folder| path.starts_with(folder)) {
                assert!(root().join(path).exists(), "{document}: there is no {path}");
            }
            if path.starts_with("/usr/share/") || path.starts_with("/usr/lib/systemd/") {
                assert!(is_installed(path), "{document}: no package has {path}");
            }
        }
    }
}

#[test]
fn alerts_lead_to_their_runbooks() {
    let runbooks = Document::new("packaging/doc/runbooks.md").anchors();
    let rules = read("packaging/prometheus/tonk-relay.rules.yml");
    let links = rules.lines().filter_map(|line| line.trim().strip_prefix("runbook: "));
    let mut count = 0;
    for link in links {
        let anchor = link.strip_prefix(&format!("{INSTALLED}/runbooks.md#")).unwrap_or_default();
        assert!(runbooks.contains(anchor), "the rules: {link} leads nowhere");
        count += 1;
    }
    assert!(count > 20, "the rules are understood");
}

#[test]
fn documents_have_their_size() {
    let lines = read(README).lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines; more belongs into {FOLDER}");
    for document in Document::all() {
        let (prose, _) = document.split();
        // Rows of tables and pictures cannot be broken.
        for line in prose.iter().filter(|line| !line.starts_with(['|', '!'])) {
            let columns = line.chars().count();
            assert!(columns <= COLUMNS, "{}: {columns} columns: {line}", document.path);
        }
    }
}

/// A block that shows a whole file has the file's path, below `packaging`, behind its language.
#[test]
fn examples_are_shown_word_for_word() {
    let mut shown = BTreeSet::new();
    for document in Document::all() {
        for block in document.split().1 {
            let Some((_, path)) = block.info.split_once(" examples/") else { continue };
            let path = format!("{EXAMPLES}/{path}");
            assert_eq!(block.text, read(&path), "{}: {path} is another one now", document.path);
            shown.insert(path);
        }
    }
    let lines = |name: &str| read(&format!("{EXAMPLES}/{name}")).lines().count();
    assert!(lines("todo/index.html") + lines("todo/todo.js") <= 80, "the page is short");
    assert!(lines("todo/backend.mjs") <= 60, "the backend is short");
    assert_eq!(shown.len(), 4, "app.md shows every example: {shown:?}");
}

/// What two runs of a command have in common: numbers and the name of the machine differ.
fn comparable(output: &str) -> String {
    let mut text = String::new();
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        for word in line.split_whitespace() {
            let word = if word.starts_with("tonk-relay-") { "HOST" } else { word };
            let mut was_digit = false;
            for c in word.chars() {
                let is_digit = c.is_ascii_digit() || (was_digit && c == '.');
                if is_digit && !was_digit {
                    text.push('N');
                } else if !is_digit {
                    text.push(c);
                }
                was_digit = is_digit;
            }
            text.push(' ');
        }
        text.push('\n');
    }
    text
}

/// Runs the blocks of a document that are marked as runnable, one after the other in a folder with
/// a demo.
fn run_blocks(document: &Document) -> usize {
    let (_, blocks) = document.split();
    if !blocks.iter().any(|block| block.info == "sh runnable") {
        return 0;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().to_owned();
    let bin = at.join("bin");
    fs::create_dir(&bin).expect("is made");
    let program = env!("CARGO_BIN_EXE_tonk-relay");
    symlink(program, bin.join("tonk-relay")).expect("is linked");
    let mut paths = vec![bin];
    paths.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let path = env::join_paths(paths).expect("paths");
    let mut demo = Command::new(program);
    demo.args(["demo", "--listen", "127.0.0.1:0"]).current_dir(&at);
    let relay = Relay::spawn(demo, Some(folder));
    let address = format!("127.0.0.1:{}", relay.port);
    let mut count = 0;
    for (index, block) in blocks.iter().enumerate().filter(|(_, b)| b.info == "sh runnable") {
        let mut script = block.text.replace("127.0.0.1:8081", &address);
        // The demo of this test is not where clients look for one.
        for command in ["client new", "client open"] {
            script = script.replace(command, &format!("{command} --url ws://{address}"));
        }
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &script]).current_dir(&at).env("PATH", &path);
        let output = bash.output().expect("bash");
        let said = String::from_utf8_lossy(&output.stdout);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {script}fails:\n{said}{problem}", document.path);
        if let Some(shown) = blocks.get(index + 1).filter(|block| block.info == "text output") {
            assert_eq!(
                comparable(&said),
                comparable(&shown.text),
                "{}: {script}prints something else",
                document.path
            );
        }
        count += 1;
    }
    count
}

#[test]
fn runnable_blocks_run_and_print_what_is_shown() {
    let count: usize = Document::all().iter().map(run_blocks).sum();
    assert!(count >= 2, "blocks are found: {count}");
}

/// The faults and warnings of a config by its values alone.
fn faults(path: &Path) -> Vec<Fault> {
    let loaded = load::read_file(path).expect("a config");
    let mut faults = check::check(&loaded);
    faults.extend(warnings(&loaded));
    faults
}

#[test]
fn the_example_configs_have_no_fault() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("etc/examples")).expect("examples") {
        let path: PathBuf = entry.expect("an entry").path();
        assert_eq!(faults(&path), [], "{}", path.display());
        count += 1;
    }
    assert_eq!(count, 2);
}

/// The small example names nothing that a fresh machine lacks, so the program itself can check it.
#[test]
fn the_program_accepts_the_small_example() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display().to_string();
    let text = read("etc/examples/small.toml");
    let text = text.replace("\"/etc/", &format!("\"{at}/")).replace("\"/srv/", &format!("\"{at}/"));
    let extra = format!(
        "\n[admin]\nlisten = [\"unix:{at}/admin.sock\"]\n[storage]\npath = \"{at}/documents\"\n\
         [bundles]\npath = \"{at}/bundles\"\n"
    );
    let config = folder.path().join("tonk-relay.toml");
    fs::write(&config, text + &extra).expect("is written");
    fs::write(folder.path().join("app.tonk"), include_bytes!("../etc/demo.tonk")).expect("written");
    let relay = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
        let output = command.arg("--config").arg(&config).args(arguments).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    let mut add = Command::new(env!("CARGO_BIN_EXE_tonk-relay"));
    add.args(["token", "add", "phone", "--scope", "sync:write", "--config"]).arg(&config);
    assert!(add.output().expect("runs").status.success(), "a token is made");
    assert_eq!(relay(&["--check-config"]), "", "there is no warning");
}
