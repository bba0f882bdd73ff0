//! The engine against a model of a few lines, which keeps every revision of everything.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use portolan_store::embedded::{Embedded, Options};
use portolan_store::{
    Change, Compare, Entry, Error, Op, Range, RangeResult, Revision, Store, Txn, TxnOutcome, WatchStream,
};
use proptest::prelude::*;

use crate::disk::Disk;

/// Keys that are prefixes of one another, and neighbours.
const KEYS: [&str; 7] = ["/a", "/a/b", "/a0", "/b", "/b/c", "/b/d", "/\u{e9}"];

/// One revision: everything that existed then, and what had changed.
type Moment = (BTreeMap<Arc<str>, Entry>, Vec<Change>);

struct Model {
    /// By revision.
    revisions: Vec<Moment>,
    floor: u64,
}

impl Model {
    fn new() -> Model {
        Model { revisions: vec![Moment::default()], floor: 0 }
    }

    fn newest(&self) -> u64 {
        self.revisions.len() as u64 - 1
    }

    fn at(&self, revision: u64) -> &BTreeMap<Arc<str>, Entry> {
        &self.revisions[revision as usize].0
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let mut state = self.at(self.newest()).clone();
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => !state.contains_key(key),
            Compare::ModRevision(key, revision) => {
                state.get(key).is_some_and(|entry| entry.mod_revision == *revision)
            }
        };
        if !txn.compares.iter().all(holds) {
            let current = txn.compares.iter().map(|compare| state.get(compare.key()).cloned()).collect();
            return TxnOutcome::Refused { current, revision: Revision(self.newest()) };
        }
        let at = Revision(self.newest() + 1);
        let mut changes = Vec::new();
        for op in &txn.ops {
            match op {
                Op::Put(key, value) => {
                    let previous = state.get(key).cloned();
                    let create_revision = previous.as_ref().map_or(at, |entry| entry.create_revision);
                    let entry =
                        Entry { key: key.clone(), value: value.clone(), create_revision, mod_revision: at };
                    state.insert(key.clone(), entry.clone());
                    changes.push(Change::Put { entry, previous });
                }
                Op::Delete(key) => {
                    if let Some(previous) = state.remove(key) {
                        changes.push(Change::Delete { key: key.clone(), previous: Some(previous) });
                    }
                }
            }
        }
        if !changes.is_empty() {
            changes.sort_by(|a, b| a.key().cmp(b.key()));
            self.revisions.push((state, changes));
        }
        TxnOutcome::Committed(Revision(self.newest()))
    }

    fn readable(&self, revision: u64) -> Result<(), Error> {
        if revision > self.newest() {
            Err(Error::Future { asked: revision, current: self.newest() })
        } else if revision < self.floor {
            Err(Error::Compacted { asked: revision, oldest: self.floor })
        } else {
            Ok(())
        }
    }

    fn range(&self, range: &Range) -> Result<RangeResult, Error> {
        let at = range.revision.map_or(self.newest(), |revision| revision.0);
        self.readable(at)?;
        let within = |key: &Arc<str>| *key >= range.start && *key < range.end;
        let all: Vec<Entry> =
            self.at(at).iter().filter(|(key, _)| within(key)).map(|(_, e)| e.clone()).collect();
        let limit = if range.limit == 0 { all.len() } else { range.limit.min(all.len()) };
        Ok(RangeResult { more: limit < all.len(), entries: all[..limit].to_vec(), revision: Revision(at) })
    }

    /// What a watch of `[start, end)` delivers of the revisions in `(after, upto]`.
    fn watched(&self, start: &str, end: &str, after: u64, upto: u64) -> Vec<(u64, Vec<Change>)> {
        (after + 1..=upto)
            .map(|revision| {
                let within = |change: &&Change| **change.key() >= *start && **change.key() < *end;
                let changes = self.revisions[revision as usize].1.iter().filter(within).cloned().collect();
                (revision, changes)
            })
            .filter(|(_, changes): &(u64, Vec<Change>)| !changes.is_empty())
            .collect()
    }
}

/// A watch that was begun some time ago, and is read at the end or before the store is closed.
struct Watching {
    stream: WatchStream,
    start: &'static str,
    end: &'static str,
    after: u64,
}

impl Watching {
    async fn check(mut self, model: &Model) {
        let mut seen = Vec::new();
        let mut delivered = self.after;
        while delivered < model.newest() {
            match self.stream.next().await.expect("a watch ends with an error only") {
                Ok(batch) => {
                    assert!(batch.revision.0 >= delivered);
                    delivered = batch.revision.0;
                    if !batch.changes.is_empty() {
                        seen.push((batch.revision.0, batch.changes));
                    }
                }
                Err(Error::Compacted { asked, oldest }) => {
                    // It was left behind, and told where.
                    assert!(asked == delivered && asked < oldest && oldest == model.floor);
                    assert!(self.stream.next().await.is_none());
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(seen, model.watched(self.start, self.end, self.after, delivered));
    }
}

/// A place in the order, chosen once it is known how long it is: a little of the future is included.
#[derive(Clone, Copy, Debug)]
struct Sometime(u32);

impl Sometime {
    fn revision(self, model: &Model) -> u64 {
        u64::from(self.0) % (model.newest() + 3)
    }
}

#[derive(Clone, Debug)]
enum Condition {
    Absent,
    AsItIs,
    AsAt(Sometime),
}

type Ask = (Vec<(usize, Condition)>, BTreeMap<usize, Option<u16>>);

#[derive(Clone, Debug)]
enum Step {
    /// Transactions asked for at once, in this order.
    Txns(Vec<Ask>),
    Get(usize),
    Range(usize, usize, usize, Option<Sometime>),
    Watch(usize, usize, Sometime),
    Compact(Sometime),
    Reopen,
}

fn bound(n: usize) -> &'static str {
    match n {
        0 => "",
        n if n <= KEYS.len() => KEYS[n - 1],
        _ => "\u{10ffff}",
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sometime = || any::<u32>().prop_map(Sometime);
    let condition = prop_oneof![
        Just(Condition::Absent),
        Just(Condition::AsItIs),
        Just(Condition::AsItIs),
        sometime().prop_map(Condition::AsAt),
    ];
    let key = 0..KEYS.len();
    let value =
        prop_oneof![1 => Just(None), 2 => (0u16..500).prop_map(Some), 1 => (0u16..9000).prop_map(Some)];
    let ask = (
        prop::collection::vec((key.clone(), condition), 0..3),
        prop::collection::btree_map(key.clone(), value, 0..4),
    );
    let side = || 0..KEYS.len() + 2;
    let step = prop_oneof![
        8 => prop::collection::vec(ask, 1..6).prop_map(Step::Txns),
        2 => key.prop_map(Step::Get),
        4 => (side(), side(), 0usize..4, prop::option::of(sometime()))
            .prop_map(|(start, end, limit, at)| Step::Range(start, end, limit, at)),
        3 => (side(), side(), sometime()).prop_map(|(start, end, after)| Step::Watch(start, end, after)),
        1 => sometime().prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

fn txn_of((conditions, writes): &Ask, model: &Model) -> Txn {
    let compare = |(key, condition): &(usize, Condition)| {
        let key: Arc<str> = KEYS[*key].into();
        match condition {
            Condition::Absent => Compare::Absent(key),
            Condition::AsItIs => match model.at(model.newest()).get(&key) {
                None => Compare::Absent(key),
                Some(entry) => Compare::ModRevision(key, entry.mod_revision),
            },
            Condition::AsAt(sometime) => Compare::ModRevision(key, Revision(sometime.revision(model))),
        }
    };
    let op = |(key, value): (&usize, &Option<u16>)| match value {
        None => Op::Delete(KEYS[*key].into()),
        Some(len) => Op::Put(KEYS[*key].into(), vec![*len as u8; usize::from(*len)].into()),
    };
    // In the other order than that of the keys, as the engine has to sort them.
    Txn { compares: conditions.iter().map(compare).collect(), ops: writes.iter().rev().map(op).collect() }
}

async fn play(steps: Vec<Step>) {
    let options = Options {
        cache_bytes: 1 << 20,
        watch_buffer: 5,
        watch_buffer_bytes: 20_000,
        group: 3,
        sweep_rows: 2,
        ..Options::default()
    };
    let disk = Disk::new(0);
    let mut store: Arc<Embedded> = disk.open(options.clone()).unwrap();
    let mut model = Model::new();
    let mut watching: Vec<Watching> = Vec::new();
    for step in steps {
        match step {
            Step::Txns(asks) => {
                let txns: Vec<Txn> = asks.iter().map(|ask| txn_of(ask, &model)).collect();
                let answers =
                    futures_util::future::join_all(txns.iter().map(|txn| store.txn(txn.clone()))).await;
                for (txn, answer) in txns.iter().zip(answers) {
                    assert_eq!(answer.unwrap(), model.txn(txn));
                }
            }
            Step::Get(key) => {
                let (entry, revision) = store.get(KEYS[key]).await.unwrap();
                assert_eq!(entry.as_ref(), model.at(model.newest()).get(KEYS[key]));
                assert_eq!(revision.0, model.newest());
            }
            Step::Range(start, end, limit, at) => {
                let revision = at.map(|at| Revision(at.revision(&model)));
                let range = Range { start: bound(start).into(), end: bound(end).into(), limit, revision };
                assert_eq!(store.range(range.clone()).await, model.range(&range));
            }
            Step::Watch(start, end, after) => {
                let after = after.revision(&model);
                match store.watch(bound(start), bound(end), Revision(after)).await {
                    Ok(stream) => {
                        assert_eq!(model.readable(after), Ok(()));
                        watching.push(Watching { stream, start: bound(start), end: bound(end), after });
                    }
                    Err(error) => assert_eq!(model.readable(after), Err(error)),
                }
            }
            Step::Compact(floor) => {
                let floor = floor.revision(&model);
                let future = Error::Future { asked: floor, current: model.newest() };
                let expected = if floor > model.newest() { Err(future) } else { Ok(()) };
                assert_eq!(store.compact(Revision(floor)).await, expected);
                if expected.is_ok() {
                    model.floor = model.floor.max(floor);
                }
            }
            Step::Reopen => {
                for watching in watching.drain(..) {
                    watching.check(&model).await;
                }
                store.close().await;
                store = disk.open(options.clone()).unwrap();
            }
        }
        assert_eq!(store.revision().await.unwrap().0, model.newest());
    }
    for watching in watching {
        watching.check(&model).await;
    }
    for revision in model.floor..=model.newest() {
        let everything =
            Range { start: "".into(), end: bound(99).into(), limit: 0, revision: Some(Revision(revision)) };
        assert_eq!(store.range(everything.clone()).await, model.range(&everything));
    }
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_answers_as_the_model_does(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}
