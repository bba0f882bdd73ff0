//! What was promised to anybody, and whether a store still keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use portolan_store::embedded::Embedded;
use portolan_store::{Change, Error, Op, Range, Revision, Store, Txn, TxnOutcome, WatchStream};

/// Before and behind all keys.
pub const ALL: (&str, &str) = ("", "\u{10ffff}");

/// What happened at one revision: each key and its new value, `None` if it was removed.
pub type Happened = BTreeMap<Arc<str>, Option<Vec<u8>>>;

pub fn happened(changes: &[Change]) -> Happened {
    changes
        .iter()
        .map(|change| match change {
            Change::Put { entry, .. } => (entry.key.clone(), Some(entry.value.to_vec())),
            Change::Delete { key, .. } => (key.clone(), None),
        })
        .collect()
}

pub fn asked(ops: &[Op]) -> Happened {
    ops.iter()
        .map(|op| match op {
            Op::Put(key, value) => (key.clone(), Some(value.to_vec())),
            Op::Delete(key) => (key.clone(), None),
        })
        .collect()
}

/// Everything that somebody was told: answers to transactions, and watch events.
#[derive(Clone, Debug, Default)]
pub struct Promised {
    pub revisions: BTreeMap<u64, Happened>,
    /// History below may have been forgotten.
    pub floor: u64,
}

impl Promised {
    /// Somebody was told that this happened at `revision`.
    pub fn told(&mut self, revision: Revision, happened: Happened) {
        if let Some(before) = self.revisions.insert(revision.0, happened.clone()) {
            assert_eq!(before, happened, "revision {} stands for two things", revision.0);
        }
    }

    pub fn newest(&self) -> u64 {
        self.revisions.keys().next_back().copied().unwrap_or(0)
    }

    /// Checks that all that was promised is in the store's history, and that its present follows from that.
    pub async fn check(&self, store: &Embedded) {
        let newest = store.revision().await.unwrap();
        assert!(newest.0 >= self.newest(), "at {newest:?}, but {} was told", self.newest());
        let (mut watch, floor) = match store.watch(ALL.0, ALL.1, Revision(0)).await {
            Ok(watch) => (watch, 0),
            Err(Error::Compacted { oldest, .. }) => {
                (store.watch(ALL.0, ALL.1, Revision(oldest)).await.unwrap(), oldest)
            }
            Err(error) => panic!("{error}"),
        };
        assert!(floor <= self.floor, "more was forgotten than was asked for");
        let history = until(&mut watch, newest).await;
        assert!(history.keys().copied().eq(floor + 1..=newest.0), "every revision is a change");
        for (revision, happened) in self.revisions.range(floor + 1..) {
            assert_eq!(history.get(revision), Some(happened), "at revision {revision}");
        }
        let present = store.range(Range { revision: None, ..Range::prefix("/") }).await.unwrap();
        let present: BTreeMap<_, _> =
            present.entries.into_iter().map(|entry| (entry.key, entry.value.to_vec())).collect();
        let mut latest = Happened::new();
        for happened in history.into_values() {
            latest.extend(happened);
        }
        for (key, value) in latest {
            assert_eq!(present.get(&key), value.as_ref(), "{key}");
        }
    }
}

/// What a watch delivers up to `revision`.
pub async fn until(watch: &mut WatchStream, revision: Revision) -> BTreeMap<u64, Happened> {
    let mut history = BTreeMap::new();
    let mut delivered = Revision(0);
    while delivered < revision {
        let batch = watch.next().await.unwrap().unwrap();
        delivered = batch.revision;
        if !batch.changes.is_empty() {
            assert_eq!(history.insert(batch.revision.0, happened(&batch.changes)), None);
        }
    }
    history
}

/// A transaction without compares whose ops all change something.
pub async fn write(store: &Embedded, ops: Vec<Op>) -> Result<Revision, Error> {
    match store.txn(Txn { compares: vec![], ops }).await? {
        TxnOutcome::Committed(revision) => Ok(revision),
        TxnOutcome::Refused { .. } => panic!("nothing was compared"),
    }
}
