//! What every engine promises, as a suite: the same checks for the embedded engine, for etcd, for whatever comes.
//!
//! Each check uses keys of its own and needs no empty store. It panics when the promise is broken.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use crate::{
    Change, Compare, Entry, Error, Op, Range, Revision, Store, Txn, TxnOutcome, WatchBatch, WatchStream,
};

/// A promise: its name, and the check of it on a store, among the keys that begin with a prefix.
pub type Promise = (&'static str, fn(Arc<dyn Store>, String) -> BoxFuture<'static, ()>);

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        /// Every promise.
        pub const PROMISES: &[Promise] =
            &[$((stringify!($name), |store, prefix| $name(store, prefix).boxed())),*];
    };
}

promises![
    revisions_grow_with_each_change_and_only_then,
    a_refused_transaction_changes_nothing_and_shows_what_stood_there,
    a_transaction_happens_whole_at_one_revision,
    a_key_is_written_once_in_a_transaction,
    creation_is_remembered_until_removal,
    one_of_many_creators_wins,
    no_increment_is_lost,
    a_range_is_ordered_bounded_and_limited,
    the_past_reads_as_it_was,
    the_future_cannot_be_read_or_watched,
    a_watch_replays_the_past_and_goes_on_without_gap,
    a_watch_sees_its_range_only_and_hears_of_progress,
    watches_begun_while_others_write_agree,
    an_answered_write_can_be_read_and_watched,
    a_slow_watcher_misses_nothing_or_is_told,
    compaction_forgets_the_past_and_keeps_the_present,
    compaction_keeps_out_of_the_future,
];

/// Checks every promise on stores from `open`, each within half a minute.
pub async fn check<F>(open: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn Store>>,
{
    for (name, promise) in PROMISES {
        let check = promise(open().await, format!("/conformance/{name}/"));
        if tokio::time::timeout(Duration::from_secs(30), check).await.is_err() {
            panic!("{name}: the store did not answer in time");
        }
    }
}

fn key(prefix: &str, name: impl std::fmt::Display) -> Arc<str> {
    format!("{prefix}{name}").into()
}

fn put(key: &Arc<str>, value: impl Into<Bytes>) -> Op {
    Op::Put(key.clone(), value.into())
}

fn delete(key: &Arc<str>) -> Op {
    Op::Delete(key.clone())
}

async fn write(store: &Arc<dyn Store>, ops: Vec<Op>) -> Revision {
    committed(store.txn(Txn { compares: vec![], ops }).await.expect("no engine error"))
}

fn committed(outcome: TxnOutcome) -> Revision {
    match outcome {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Refused { current, .. } => panic!("nothing was compared, yet refused: {current:?}"),
    }
}

async fn get(store: &Arc<dyn Store>, key: &str) -> Option<Entry> {
    store.get(key).await.expect("readable").0
}

async fn keys(store: &Arc<dyn Store>, prefix: &str, at: Option<Revision>) -> Vec<(String, Bytes)> {
    let range = Range { revision: at, ..Range::prefix(prefix) };
    let entries = store.range(range).await.expect("readable").entries;
    entries.into_iter().map(|entry| (entry.key[prefix.len()..].to_string(), entry.value)).collect()
}

fn pairs(pairs: &[(&str, &'static str)]) -> Vec<(String, Bytes)> {
    pairs.iter().map(|(key, value)| (key.to_string(), Bytes::from_static(value.as_bytes()))).collect()
}

async fn watch(store: &Arc<dyn Store>, prefix: &str, after: Revision) -> WatchStream {
    let range = Range::prefix(prefix);
    store.watch(&range.start, &range.end, after).await.expect("watchable")
}

/// The batches with changes, until everything up to `revision` has been delivered; checks the order on the way.
async fn until(watch: &mut WatchStream, revision: Revision) -> Vec<WatchBatch> {
    let mut seen: Vec<WatchBatch> = Vec::new();
    let mut delivered = Revision(0);
    while delivered < revision {
        let batch = watch.next().await.expect("a watch goes on").expect("and does not fail");
        assert!(batch.revision >= delivered, "{:?} after {delivered:?}", batch.revision);
        assert!(batch.changes.is_empty() || batch.revision > delivered, "{batch:?} was delivered already");
        assert!(batch.changes.is_sorted_by(|a, b| a.key() < b.key()), "in the order of keys: {batch:?}");
        delivered = batch.revision;
        if !batch.changes.is_empty() {
            seen.push(batch);
        }
    }
    seen
}

async fn revisions_grow_with_each_change_and_only_then(store: Arc<dyn Store>, prefix: String) {
    let a = key(&prefix, "a");
    let first = write(&store, vec![put(&a, "1")]).await;
    assert!(first > Revision(0));
    let second = write(&store, vec![put(&a, "1")]).await;
    assert!(second > first, "the same value again is a change");
    assert!(store.revision().await.unwrap() >= second);
    let gone = write(&store, vec![delete(&key(&prefix, "never"))]).await;
    let third = write(&store, vec![delete(&a)]).await;
    assert!(third > second);
    assert!(gone >= second && gone < third, "removing what is not there is no change");
    let nothing = write(&store, vec![]).await;
    assert!(nothing >= third);
    assert_eq!(get(&store, &a).await, None);
}

async fn a_refused_transaction_changes_nothing_and_shows_what_stood_there(
    store: Arc<dyn Store>,
    prefix: String,
) {
    let (a, b, c) = (key(&prefix, "a"), key(&prefix, "b"), key(&prefix, "c"));
    let at_a = write(&store, vec![put(&a, "a")]).await;
    let at_b = write(&store, vec![put(&b, "b")]).await;
    let refused = store
        .txn(Txn {
            compares: vec![
                Compare::ModRevision(a.clone(), at_a),
                Compare::ModRevision(b.clone(), at_a),
                Compare::Absent(c.clone()),
                Compare::ModRevision(c.clone(), at_a),
            ],
            ops: vec![put(&a, "x"), put(&c, "x")],
        })
        .await
        .unwrap();
    let TxnOutcome::Refused { current, revision } = refused else { panic!("b was not put at {at_a:?}") };
    assert!(revision >= at_b);
    let seen: Vec<_> =
        current.iter().map(|entry| entry.as_ref().map(|e| (&*e.value, e.mod_revision))).collect();
    assert_eq!(seen, [Some((&b"a"[..], at_a)), Some((&b"b"[..], at_b)), None, None]);
    assert_eq!(keys(&store, &prefix, None).await, pairs(&[("a", "a"), ("b", "b")]));

    let absent = Txn { compares: vec![Compare::Absent(a.clone())], ops: vec![put(&a, "x")] };
    assert!(matches!(store.txn(absent).await.unwrap(), TxnOutcome::Refused { .. }));
}

async fn a_transaction_happens_whole_at_one_revision(store: Arc<dyn Store>, prefix: String) {
    let names = ["d", "a", "c", "b"];
    let before = write(&store, vec![put(&key(&prefix, "a"), "old")]).await;
    let ops = names.iter().map(|name| put(&key(&prefix, name), "new")).collect();
    let at = write(&store, ops).await;
    for name in names {
        let entry = get(&store, &key(&prefix, name)).await.unwrap();
        assert_eq!(entry.mod_revision, at);
        assert_eq!(entry.create_revision, if name == "a" { before } else { at });
    }
    let mut watch = watch(&store, &prefix, before).await;
    let seen = until(&mut watch, at).await;
    assert_eq!(seen.len(), 1);
    let in_batch: Vec<_> =
        seen[0].changes.iter().map(|change| change.key()[prefix.len()..].to_string()).collect();
    assert_eq!(in_batch, ["a", "b", "c", "d"]);
}

async fn a_key_is_written_once_in_a_transaction(store: Arc<dyn Store>, prefix: String) {
    let a = key(&prefix, "a");
    let twice = Txn { compares: vec![], ops: vec![put(&a, "1"), delete(&a)] };
    assert!(matches!(store.txn(twice).await, Err(Error::Invalid(_))));
    assert_eq!(get(&store, &a).await, None);
}

async fn creation_is_remembered_until_removal(store: Arc<dyn Store>, prefix: String) {
    let a = key(&prefix, "a");
    let created = write(&store, vec![put(&a, "1")]).await;
    let updated = write(&store, vec![put(&a, "2")]).await;
    let entry = get(&store, &a).await.unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (created, updated));
    let removed = write(&store, vec![delete(&a)]).await;
    let again = write(&store, vec![put(&a, "3")]).await;
    let entry = get(&store, &a).await.unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (again, again));

    let mut watch = watch(&store, &prefix, created).await;
    let seen = until(&mut watch, again).await;
    assert_eq!(seen.iter().map(|batch| batch.revision).collect::<Vec<_>>(), [updated, removed, again]);
    let entry = |value: &'static str, create_revision, mod_revision| Entry {
        key: a.clone(),
        value: value.into(),
        create_revision,
        mod_revision,
    };
    let changes: Vec<_> = seen.into_iter().flat_map(|batch| batch.changes).collect();
    let (one, two, three) =
        (entry("1", created, created), entry("2", created, updated), entry("3", again, again));
    assert_eq!(
        changes,
        [
            Change::Put { entry: two.clone(), previous: Some(one) },
            Change::Delete { key: a.clone(), previous: Some(two) },
            Change::Put { entry: three, previous: None },
        ]
    );
}

async fn one_of_many_creators_wins(store: Arc<dyn Store>, prefix: String) {
    let a = key(&prefix, "a");
    let creators = (0..16).map(|creator| {
        let ops = vec![put(&a, format!("{creator}"))];
        store.txn(Txn { compares: vec![Compare::Absent(a.clone())], ops })
    });
    let outcomes = futures_util::future::join_all(creators).await;
    let winners: Vec<_> = outcomes
        .into_iter()
        .enumerate()
        .filter_map(|(creator, outcome)| match outcome.unwrap() {
            TxnOutcome::Committed(at) => Some((creator, at)),
            TxnOutcome::Refused { current, .. } => {
                assert!(current[0].is_some(), "who is refused is shown why");
                None
            }
        })
        .collect();
    assert_eq!(winners.len(), 1);
    let entry = get(&store, &a).await.unwrap();
    assert_eq!(entry.value, winners[0].0.to_string());
    assert_eq!(entry.mod_revision, winners[0].1);
}

async fn no_increment_is_lost(store: Arc<dyn Store>, prefix: String) {
    const WRITERS: usize = 8;
    const EACH: usize = 10;
    let a = key(&prefix, "a");
    write(&store, vec![put(&a, "0")]).await;
    let writers = (0..WRITERS).map(|_| async {
        for _ in 0..EACH {
            let mut entry = get(&store, &a).await.unwrap();
            loop {
                let count: usize = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                let compares = vec![Compare::ModRevision(a.clone(), entry.mod_revision)];
                let ops = vec![put(&a, (count + 1).to_string())];
                match store.txn(Txn { compares, ops }).await.unwrap() {
                    TxnOutcome::Committed(_) => break,
                    TxnOutcome::Refused { current, .. } => entry = current[0].clone().unwrap(),
                }
            }
        }
    });
    futures_util::future::join_all(writers).await;
    assert_eq!(get(&store, &a).await.unwrap().value, (WRITERS * EACH).to_string());
}

async fn a_range_is_ordered_bounded_and_limited(store: Arc<dyn Store>, prefix: String) {
    let ops = ["b", "a", "d", "c", "a/x", "e"].iter().map(|name| put(&key(&prefix, name), *name)).collect();
    write(&store, ops).await;
    write(&store, vec![delete(&key(&prefix, "d"))]).await;
    assert_eq!(
        keys(&store, &prefix, None).await,
        pairs(&[("a", "a"), ("a/x", "a/x"), ("b", "b"), ("c", "c"), ("e", "e")])
    );

    let range = |start: &str, end: &str, limit| Range {
        start: key(&prefix, start),
        end: key(&prefix, end),
        limit,
        revision: None,
    };
    let names = |result: &crate::RangeResult| -> Vec<String> {
        result.entries.iter().map(|entry| entry.key[prefix.len()..].to_string()).collect()
    };
    let result = store.range(range("a/x", "e", 0)).await.unwrap();
    assert_eq!((names(&result), result.more), (vec!["a/x".into(), "b".into(), "c".into()], false));
    let result = store.range(range("a", "e", 3)).await.unwrap();
    assert_eq!((names(&result), result.more), (vec!["a".into(), "a/x".into(), "b".into()], true));
    let result = store.range(range("a", "e", 4)).await.unwrap();
    assert_eq!((result.entries.len(), result.more), (4, false), "what is removed is not more");
    let result = store.range(range("e", "a", 0)).await.unwrap();
    assert_eq!((result.entries.len(), result.more), (0, false));
    let result = store.range(range("x", "z", 1)).await.unwrap();
    assert_eq!((result.entries.len(), result.more), (0, false));
    assert!(result.revision <= store.revision().await.unwrap());
}

async fn the_past_reads_as_it_was(store: Arc<dyn Store>, prefix: String) {
    let (a, b) = (key(&prefix, "a"), key(&prefix, "b"));
    let r1 = write(&store, vec![put(&a, "1")]).await;
    let r2 = write(&store, vec![put(&a, "2"), put(&b, "2")]).await;
    let r3 = write(&store, vec![delete(&a)]).await;
    let r4 = write(&store, vec![put(&a, "4")]).await;
    for (at, then) in [
        (r1, pairs(&[("a", "1")])),
        (r2, pairs(&[("a", "2"), ("b", "2")])),
        (r3, pairs(&[("b", "2")])),
        (r4, pairs(&[("a", "4"), ("b", "2")])),
    ] {
        assert_eq!(keys(&store, &prefix, Some(at)).await, then, "at {at:?}");
        let range = Range { revision: Some(at), ..Range::prefix(&prefix) };
        assert_eq!(store.range(range).await.unwrap().revision, at);
    }
}

async fn the_future_cannot_be_read_or_watched(store: Arc<dyn Store>, prefix: String) {
    write(&store, vec![put(&key(&prefix, "a"), "1")]).await;
    let far = Revision(store.revision().await.unwrap().0 + 1_000_000);
    let range = Range { revision: Some(far), ..Range::prefix(&prefix) };
    assert!(matches!(store.range(range.clone()).await, Err(Error::Future { asked, .. }) if asked == far.0));
    let watch = store.watch(&range.start, &range.end, far).await;
    assert!(matches!(watch.map(|_| ()), Err(Error::Future { asked, .. }) if asked == far.0));
}

async fn a_watch_replays_the_past_and_goes_on_without_gap(store: Arc<dyn Store>, prefix: String) {
    let a = key(&prefix, "a");
    let mut at = Vec::new();
    for n in 0..20 {
        at.push(write(&store, vec![put(&a, n.to_string())]).await);
    }
    let mut watch = watch(&store, &prefix, at[4]).await;
    for n in 20..40 {
        at.push(write(&store, vec![put(&a, n.to_string())]).await);
    }
    let seen = until(&mut watch, at[39]).await;
    assert_eq!(seen.iter().map(|batch| batch.revision).collect::<Vec<_>>(), at[5..]);
}

async fn a_watch_sees_its_range_only_and_hears_of_progress(store: Arc<dyn Store>, prefix: String) {
    let (inside, outside) = (key(&prefix, "in/a"), key(&prefix, "out/a"));
    let before = write(&store, vec![put(&outside, "1")]).await;
    let mut watch = watch(&store, &format!("{prefix}in/"), before).await;
    let first = watch.next().await.unwrap().unwrap();
    assert!(first.changes.is_empty() && first.revision >= before, "it has caught up: {first:?}");
    let seen = write(&store, vec![put(&inside, "1"), put(&outside, "2")]).await;
    let passed = write(&store, vec![put(&outside, "3")]).await;
    let batches = until(&mut watch, passed).await;
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].revision, seen);
    assert_eq!(batches[0].changes.len(), 1);
    assert_eq!(*batches[0].changes[0].key(), inside);
}

async fn watches_begun_while_others_write_agree(store: Arc<dyn Store>, prefix: String) {
    let start = write(&store, vec![put(&key(&prefix, "start"), "")]).await;
    let writers = futures_util::future::join_all((0..4).map(|writer| {
        let (store, prefix) = (store.clone(), prefix.clone());
        async move {
            for n in 0..25 {
                write(&store, vec![put(&key(&prefix, writer), n.to_string())]).await;
            }
        }
    }));
    let watchers = futures_util::future::join_all((0..8).map(|watcher| {
        let (store, prefix) = (store.clone(), prefix.clone());
        async move {
            // All watch from the same point on, but each begins at another moment of the writing.
            while store.revision().await.unwrap().0 < start.0 + watcher * 12 {
                tokio::task::yield_now().await;
            }
            let mut stream = watch(&store, &prefix, start).await;
            let mut seen = Vec::new();
            while seen.len() < 100 {
                let batch = stream.next().await.unwrap().unwrap();
                if !batch.changes.is_empty() {
                    seen.push(batch);
                }
            }
            seen
        }
    }));
    let (_, seen) = futures_util::future::join(writers, watchers).await;
    assert!(seen[0].is_sorted_by_key(|batch| batch.revision));
    for other in &seen[1..] {
        assert_eq!(*other, seen[0]);
    }
    // From any point on, history is the same as it was live.
    for cut in [0, 37, 98] {
        let mut stream = watch(&store, &prefix, seen[0][cut].revision).await;
        assert_eq!(until(&mut stream, seen[0][99].revision).await, seen[0][cut + 1..]);
    }
}

async fn an_answered_write_can_be_read_and_watched(store: Arc<dyn Store>, prefix: String) {
    let a = key(&prefix, "a");
    for n in 0..10 {
        let at = write(&store, vec![put(&a, n.to_string())]).await;
        assert!(store.revision().await.unwrap() >= at);
        let (entry, revision) = store.get(&a).await.unwrap();
        assert!(revision >= at);
        assert_eq!(entry.unwrap().mod_revision, at);
        let mut stream = watch(&store, &prefix, Revision(at.0 - 1)).await;
        assert_eq!(until(&mut stream, at).await.len(), 1);
    }
}

async fn a_slow_watcher_misses_nothing_or_is_told(store: Arc<dyn Store>, prefix: String) {
    let a = key(&prefix, "a");
    let start = write(&store, vec![put(&a, "start")]).await;
    let mut stream = watch(&store, &prefix, start).await;
    stream.next().await.unwrap().unwrap();
    let mut written = Vec::new();
    for round in 0..50 {
        let value = Bytes::from(vec![round; 10_000]);
        let puts = (0..8).map(|n| write(&store, vec![put(&key(&prefix, n), value.clone())]));
        written.extend(futures_util::future::join_all(puts).await);
    }
    written.sort_unstable();
    let mut seen = Vec::new();
    while seen.last() != written.last() {
        match stream.next().await.expect("a watch ends with an error only") {
            Ok(batch) if batch.changes.is_empty() => {}
            Ok(batch) => seen.push(batch.revision),
            Err(Error::Lagged) => {
                assert!(stream.next().await.is_none(), "after an error it ends");
                stream = watch(&store, &prefix, seen.last().copied().unwrap_or(start)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(seen, written);
}

async fn compaction_forgets_the_past_and_keeps_the_present(store: Arc<dyn Store>, prefix: String) {
    let (a, b, c) = (key(&prefix, "a"), key(&prefix, "b"), key(&prefix, "c"));
    let first = write(&store, vec![put(&a, "1"), put(&b, "1"), put(&c, "1")]).await;
    write(&store, vec![put(&a, "2")]).await;
    write(&store, vec![delete(&c)]).await;
    let floor = write(&store, vec![put(&a, "3")]).await;
    let after = write(&store, vec![put(&a, "4"), delete(&b)]).await;
    let mut begun_before = watch(&store, &prefix, floor).await;
    store.compact(floor).await.unwrap();
    store.compact(first).await.expect("what is forgotten stays so");

    let oldest = floor.0;
    let range = Range { revision: Some(first), ..Range::prefix(&prefix) };
    assert_eq!(store.range(range.clone()).await, Err(Error::Compacted { asked: first.0, oldest }));
    let refused = match store.watch(&range.start, &range.end, first).await {
        Err(error) => error,
        // An engine may say so as the first thing in the stream.
        Ok(mut stream) => stream.next().await.unwrap().unwrap_err(),
    };
    assert!(matches!(refused, Error::Compacted { oldest: told, .. } if told == oldest), "{refused:?}");

    assert_eq!(keys(&store, &prefix, Some(floor)).await, pairs(&[("a", "3"), ("b", "1")]));
    assert_eq!(keys(&store, &prefix, None).await, pairs(&[("a", "4")]));
    let entry = get(&store, &a).await.unwrap();
    assert_eq!(entry.create_revision, first, "creation is not forgotten");
    let mut begun_after = watch(&store, &prefix, floor).await;
    let seen = until(&mut begun_after, after).await;
    assert_eq!(seen, until(&mut begun_before, after).await);
    assert_eq!(seen.len(), 1);
    let previous: Vec<_> = seen[0]
        .changes
        .iter()
        .map(|change| match change {
            Change::Put { previous, .. } | Change::Delete { previous, .. } => {
                previous.as_ref().expect("history has it").value.clone()
            }
        })
        .collect();
    assert_eq!(previous, ["3", "1"]);
    write(&store, vec![put(&a, "5"), put(&c, "5")]).await;
    assert_eq!(keys(&store, &prefix, None).await, pairs(&[("a", "5"), ("c", "5")]));
}

async fn compaction_keeps_out_of_the_future(store: Arc<dyn Store>, prefix: String) {
    let at = write(&store, vec![put(&key(&prefix, "a"), "1")]).await;
    let far = Revision(store.revision().await.unwrap().0 + 1_000_000);
    assert!(matches!(store.compact(far).await, Err(Error::Future { .. })));
    assert_eq!(keys(&store, &prefix, Some(at)).await, pairs(&[("a", "1")]));
}
