//! Runs the fuzzer's corpus once, so that inputs that failed before keep passing.

use std::{fs, path::Path, time::Instant};

#[path = "fuzz/targets.rs"]
mod targets;

#[test]
fn no_input_of_the_corpus_makes_its_target_panic() {
    for (name, target) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("a corpus") {
            let path = entry.expect("an entry").path();
            let data = fs::read(&path).expect("an input");
            let start = Instant::now();
            target(&data);
            assert!(start.elapsed().as_secs() < 10, "{} takes too long", path.display());
            inputs += 1;
        }
        assert!(inputs > 0, "{}: is empty", folder.display());
    }
}
