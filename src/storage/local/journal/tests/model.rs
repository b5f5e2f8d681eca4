//! Random operations against a model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Put(u8, u8, u8),
    Delete(u8, u8),
    Checkpoint,
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..3u8, 0..6u8, any::<u8>()).prop_map(|(d, name, value)| Action::Put(d, name, value)),
        3 => (0..3u8, 0..6u8).prop_map(|(d, name)| Action::Delete(d, name)),
        1 => Just(Action::Checkpoint),
        1 => Just(Action::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every chunk that was stored and not deleted is loaded with its last value.
    #[test]
    fn nothing_is_lost_between_journal_and_folders(
        actions in proptest::collection::vec(action(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut folder = tempfile::tempdir().expect("a folder");
            let mut config = config(folder.path());
            // Replaced files stay in the folders, so that the journal must take precedence over
            // them.
            config.grace = Time(Duration::from_secs(60));
            config.commit_interval = Time(Duration::ZERO);
            let mut journal = Journal::open(&config, metrics()).expect("opens");
            let mut expected: BTreeMap<Key, u8> = BTreeMap::new();
            for action in actions {
                match action {
                    Action::Put(d, name, value) => {
                        let key = increment(d, &name.to_string());
                        journal.put(&key, Bytes::from(vec![value])).await.expect("puts");
                        expected.insert(key, value);
                    }
                    Action::Delete(d, name) => {
                        let key = increment(d, &name.to_string());
                        journal.delete(&key).await.expect("deletes");
                        expected.remove(&key);
                    }
                    Action::Checkpoint => _ = journal.checkpoint().await.expect("moves"),
                    Action::Reopen => {
                        let left = tempfile::tempdir().expect("a folder");
                        copy(folder.path(), left.path());
                        folder = left;
                        config.path = folder.path().to_owned();
                        journal = Journal::open(&config, metrics()).expect("opens");
                    }
                }
            }
            for d in 0..3 {
                let found = journal.load_document(document(d)).await.expect("loads").chunks;
                let found: BTreeMap<Key, Vec<u8>> = found.into_iter().collect();
                let is_of = |key: &Key| match key {
                    Key::Chunk { document: id, .. } => *id == document(d),
                    _ => false,
                };
                for (key, value) in expected.iter().filter(|(key, _)| is_of(key)) {
                    assert_eq!(found.get(key), Some(&vec![*value]), "{key}");
                }
            }
        });
    }
}
