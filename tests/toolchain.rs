//! `rust-version` in Cargo.toml is the oldest toolchain that builds the relay: the one that CI
//! builds and tests it with. No locked crate requires a newer one. Tests are built from the same
//! artifacts as the relay.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

use std::{collections::BTreeSet, process::Command};

const FLOOR: &str = env!("CARGO_PKG_RUST_VERSION");
/// Set by `.ci/run`: the toolchain must be exactly [`FLOOR`].
const EXACT: &str = "TONK_RELAY_EXACT_RUST";
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Major and minor.
fn parse(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().expect("a version"));
    (numbers.next().expect("major"), numbers.next().unwrap_or(0))
}

#[test]
fn this_rust_is_not_older_than_the_minimum_which_is_the_one_of_ci() {
    let version = said(option_env!("RUSTC").unwrap_or("rustc"), &["--version"]);
    let version = version.split_whitespace().nth(1).expect("a version");
    let (version, _) = version.split_once('-').unwrap_or((version, ""));
    assert!(parse(version) >= parse(FLOOR), "Rust {version} is older than {FLOOR}: update it");
    if std::env::var_os(EXACT).is_some() {
        assert_eq!(
            parse(version),
            parse(FLOOR),
            "rust-version = \"{FLOOR}\" in Cargo.toml is not the {version} of CI, and nothing \
             shows that the relay builds with it; set it, and what README.md and tests/run say"
        );
    }
}

/// Every crate with its features, as a build has them that follows these edges.
fn crates(edges: &str) -> BTreeSet<String> {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let shown = ["tree", "--locked", "--manifest-path", MANIFEST, "--prefix", "none", "--edges"];
    let listed = said(cargo, &[&shown[..], &[edges, "--format", "{p} {f}"]].concat());
    listed.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

/// A crate to which only tests add a feature is built twice, with all that depends on it.
#[test]
fn no_crate_has_other_features_in_tests() {
    let (built, tested) = (crates("normal,build"), crates("normal,build,dev"));
    let differing: Vec<_> = built.difference(&tested).collect();
    assert!(differing.is_empty(), "[dev-dependencies] add features to these: {differing:#?}");
}

#[test]
fn no_locked_crate_needs_a_newer_rust_and_the_documents_name_it() {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let shown = ["metadata", "--locked", "--format-version", "1", "--manifest-path", MANIFEST];
    let metadata: serde_json::Value = serde_json::from_str(&said(cargo, &shown)).expect("JSON");
    for package in metadata["packages"].as_array().expect("packages") {
        let (name, needs) = (&package["name"], package["rust_version"].as_str());
        let needs = needs.map_or((0, 0), parse);
        assert!(needs <= parse(FLOOR), "{name} needs Rust {needs:?}, and rust-version is {FLOOR}");
    }
    for (file, text) in
        [("README.md", include_str!("../README.md")), ("tests/run", include_str!("run"))]
    {
        assert!(text.contains(&format!("Rust {FLOOR} or later")), "{file} names another Rust");
    }
}
