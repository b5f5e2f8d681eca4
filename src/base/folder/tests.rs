use std::{fs, os::unix::fs::symlink, path::PathBuf};

use super::*;

#[test]
fn commands_and_storage_open_files_only_through_this_module() {
    // Calls that follow links, wait for a FIFO or read without an end, and calls by which root
    // would change files by path.
    let reads = ["fs::read(", "fs::read_to_string(", "File::open(", "fs::read_link("];
    let writes = [
        "fs::write(",
        "File::create",
        "fs::rename(",
        "fs::remove_",
        "fs::create_dir",
        "fs::copy(",
        "set_permissions(",
        "chown(",
        "tempfile",
    ];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![source.join("cli"), source.join("storage")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("lists") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true if path.ends_with("tests") => {}
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    let is_code = |file: &&PathBuf| file.extension().is_some_and(|end| end == "rs");
    for file in files.iter().filter(is_code).filter(|file| !file.ends_with("tests.rs")) {
        let text = fs::read_to_string(file).expect("reads");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_command = !file.starts_with(source.join("storage"));
        let banned = reads.iter().chain(writes.iter().filter(|_| is_command));
        for call in banned {
            // Match whole words: nodefs::read( is not fs::read(.
            let found = code.match_indices(call).any(|(at, _)| {
                !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
            });
            assert!(!found, "{}: {call} belongs to crate::base::folder", file.display());
        }
    }
}

#[test]
fn an_open_folder_is_changed_even_after_it_is_moved() {
    let outer = tempfile::tempdir().expect("a folder");
    let path = outer.path().join("a/b");
    assert_eq!(Folder::open(&path).expect_err("none").kind(), io::ErrorKind::NotFound);
    let folder = Folder::create(&path).expect("made");
    let elsewhere = outer.path().join("elsewhere");
    fs::rename(&path, outer.path().join("moved")).expect("moved");
    fs::create_dir(&elsewhere).expect("made");
    symlink(&elsewhere, &path).expect("linked");
    folder.write("file", b"text", 0o600, None).expect("written");
    assert_eq!(fs::read(outer.path().join("moved/file")).expect("there"), b"text");
    assert_eq!(folder.read("file", 4).expect("read"), b"text");
    assert_eq!(fs::read_dir(&elsewhere).expect("lists").count(), 0);
    symlink("file", outer.path().join("moved/link")).expect("linked");
    folder.read("link", 4).expect_err("a link");
    folder.remove("file").expect("removed");
    folder.remove("file").expect("it is gone already");
}

#[test]
fn open_parent_follows_a_link_to_a_file() {
    let outer = tempfile::tempdir().expect("a folder");
    let folder = outer.path().canonicalize().expect("there");
    fs::create_dir(folder.join("to")).expect("made");
    symlink("to/../to/file", folder.join("link")).expect("linked");
    let (found, name) = Folder::open_parent(&folder.join("link")).expect("found");
    assert_eq!((found.path(), name), (&*folder.join("to"), OsString::from("file")));
    symlink("circle", folder.join("circle")).expect("linked");
    Folder::open_parent(&folder.join("circle")).expect_err("never ends");
    Folder::open_parent(&folder).expect_err("a folder");
}

#[test]
fn a_case_insensitive_file_system_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    check_case_sensitive(folder.path()).expect("case-sensitive");
    // On a case-insensitive file system, this name exists as soon as the other one does.
    fs::write(folder.path().join("CASE-PROBE"), "").expect("written");
    let refused = check_case_sensitive(folder.path()).expect_err("refused").to_string();
    assert!(refused.contains("upper and lower case"), "{refused}");
}
