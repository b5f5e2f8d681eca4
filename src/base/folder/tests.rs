use std::{fs, os::unix::fs::symlink};

use super::*;

#[test]
fn commands_and_storage_read_and_write_files_by_this_alone() {
    // What follows links, waits for a FIFO, or reads without an end; and what root would do by a path.
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
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = fs::read_to_string(file).expect("reads");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_command = !file.starts_with(source.join("storage"));
        let banned = reads.iter().chain(writes.iter().filter(|_| is_command));
        for call in banned {
            // As a whole word: nodefs::read( is not fs::read(.
            let found = code.match_indices(call).any(|(at, _)| {
                !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
            });
            assert!(!found, "{}: {call} belongs to crate::base::folder", file.display());
        }
    }
}

#[test]
fn a_folder_is_changed_where_it_was_opened() {
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
fn a_link_in_the_place_of_a_file_leads_to_its_folder() {
    let outer = tempfile::tempdir().expect("a folder");
    let folder = outer.path().canonicalize().expect("there");
    fs::create_dir(folder.join("to")).expect("made");
    symlink("to/../to/file", folder.join("link")).expect("linked");
    let (found, name) = Folder::holding(&folder.join("link")).expect("found");
    assert_eq!((found.path(), name), (&*folder.join("to"), OsString::from("file")));
    symlink("circle", folder.join("circle")).expect("linked");
    Folder::holding(&folder.join("circle")).expect_err("never ends");
    Folder::holding(&folder).expect_err("a folder");
}

#[test]
fn a_file_system_that_does_not_tell_case_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    check_case(folder.path()).expect("tells");
    // Where it does not, this one is there as soon as the other is.
    fs::write(folder.path().join("CASE-PROBE"), "").expect("written");
    let refused = check_case(folder.path()).expect_err("refused").to_string();
    assert!(refused.contains("differ only in case"), "{refused}");
}
