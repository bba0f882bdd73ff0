//! One kind's objects in memory, fed by the store's watch, with the recent past for watchers that resume.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use portolan_api::Kind;
use portolan_store::{Change, Error, Range, Revision, Store, WatchBatch};
use tokio_util::sync::CancellationToken;

use crate::follow::{self, Follower};
use crate::object::Object;

/// Events kept for watchers that resume: enough for some minutes of a busy cluster; older ones list anew.
const EVENTS: usize = 8192;
/// The same bound in bytes, for kinds with large objects.
const EVENT_BYTES: usize = 32 << 20;

/// A change of one object.
pub(crate) struct Event {
    /// The store's revision of the change.
    pub revision: u64,
    /// The object after it; for a deletion as it last was, at the revision of the deletion.
    pub object: Arc<Object>,
    /// The object before it.
    pub previous: Option<Arc<Object>>,
    /// Whether the object is gone.
    pub deleted: bool,
    /// The event's line in plain JSON: made by the first watcher that sends it, shared by all others.
    pub line: OnceLock<Bytes>,
}

/// Up to which revision everything was seen, by one cache or by all that are fed together: most changes are of another kind, and
/// must cost a cache nothing.
#[derive(Default)]
pub(crate) struct Seen(tokio::sync::watch::Sender<u64>);

impl Seen {
    fn now(&self) -> u64 {
        *self.0.borrow()
    }

    /// Every cache that this is of has taken everything up to here.
    pub(crate) fn pass(&self, revision: Revision) {
        self.0.send_if_modified(|seen| std::mem::replace(seen, (*seen).max(revision.0)) < revision.0);
    }

    /// Every one of them has begun anew here, which may be earlier.
    pub(crate) fn begin(&self, revision: Revision) {
        self.0.send_replace(revision.0);
    }
}

/// A kind's cache.
pub(crate) struct Cache {
    /// The kind.
    pub kind: Kind,
    prefix: String,
    /// Ends what follows and watches.
    close: CancellationToken,
    state: RwLock<State>,
    seen: Arc<Seen>,
    /// Counts changes of `events`: watchers sleep while only other kinds change.
    news: tokio::sync::watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    /// Of the last change, or of what was read. Changes after it and up to `seen` were of other kinds.
    revision: u64,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// How many events were dropped from the front of `events` since the cache began.
    dropped: u64,
    /// Every event after this revision is in `events`.
    floor: u64,
}

/// A watcher's place in the order of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor(u64);

/// The place is no longer kept: the watcher has to list anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOld {
    pub oldest: u64,
}

/// Objects at one revision.
pub(crate) struct Snapshot {
    pub revision: u64,
    pub objects: Vec<Arc<Object>>,
    pub cursor: Cursor,
}

/// The store's key prefix of a kind.
pub(crate) fn prefix(kind: &Kind) -> String {
    let kind = kind.stored();
    let group = if kind.group().is_empty() { "core" } else { kind.group() };
    format!("/registry/{group}/{}/", kind.plural())
}

impl Cache {
    /// Reads a kind's objects and follows.
    pub(crate) async fn open(
        kind: &Kind,
        store: Arc<dyn Store>,
        base: Option<Revision>,
        close: CancellationToken,
    ) -> Result<Arc<Cache>, Error> {
        let cache = Cache::read(kind, &*store, base, Arc::default(), close.clone()).await?;
        follow::start(cache.clone(), store, close);
        Ok(cache)
    }

    /// Reads a kind's objects at `base` (or the newest revision if history doesn't reach so far back). What comes then is for
    /// somebody else to feed, who says how far that is by `seen`.
    pub(crate) async fn read(
        kind: &Kind,
        store: &dyn Store,
        base: Option<Revision>,
        seen: Arc<Seen>,
        close: CancellationToken,
    ) -> Result<Arc<Cache>, Error> {
        let cache = Arc::new(Cache {
            kind: kind.clone(),
            prefix: prefix(kind),
            close,
            state: RwLock::default(),
            seen,
            news: tokio::sync::watch::Sender::new(0),
        });
        match cache.load_at(store, base).await {
            Err(Error::Compacted { .. } | Error::Future { .. }) if base.is_some() => {
                cache.load_at(store, None).await?
            }
            other => other?,
        };
        Ok(cache)
    }

    /// Replaces everything by the objects at a revision. Watchers find their place gone.
    pub(crate) async fn load_at(&self, store: &dyn Store, at: Option<Revision>) -> Result<Revision, Error> {
        let result = store.range(Range { revision: at, ..Range::prefix(&self.prefix) }).await?;
        let mut objects = BTreeMap::new();
        for entry in &result.entries {
            if let Some(object) = self.object(&entry.key, &entry.value, entry.mod_revision) {
                objects.insert(entry.key.clone(), Arc::new(object));
            }
        }
        let mut state = self.state.write();
        let dropped = state.dropped + state.events.len() as u64 + 1;
        *state = State {
            objects,
            revision: result.revision.0,
            floor: result.revision.0,
            dropped,
            ..State::default()
        };
        drop(state);
        self.news.send_modify(|count| *count += 1);
        Ok(result.revision)
    }

    /// Takes the changes of a revision: all that are of its kind.
    pub(crate) fn take(&self, revision: Revision, changes: Vec<Change>) {
        // Decoding happens before the lock is taken.
        let decoded: Vec<_> = changes
            .into_iter()
            .filter_map(|change| match change {
                Change::Put { entry, .. } => self
                    .object(&entry.key, &entry.value, revision)
                    .map(|object| (entry.key.clone(), Some(object))),
                Change::Delete { key, .. } => Some((key, None)),
            })
            .collect();
        let any = !decoded.is_empty();
        let mut state = self.state.write();
        if revision.0 <= state.revision {
            return; // it is in what was read
        }
        for (key, object) in decoded {
            let event = match object {
                Some(object) => {
                    let object = Arc::new(object);
                    let previous = state.objects.insert(key, object.clone());
                    Event { revision: revision.0, object, previous, deleted: false, line: OnceLock::new() }
                }
                None => {
                    let Some(last) = state.objects.remove(&key) else { continue };
                    let object = Arc::new(last.at(&self.kind, revision.0));
                    Event {
                        revision: revision.0,
                        object,
                        previous: Some(last),
                        deleted: true,
                        line: OnceLock::new(),
                    }
                }
            };
            state.bytes += event.object.bytes.len();
            state.events.push_back(Arc::new(event));
        }
        while state.events.len() > EVENTS || (state.bytes > EVENT_BYTES && state.events.len() > 1) {
            if let Some(event) = state.events.pop_front() {
                state.bytes -= event.object.bytes.len();
                state.dropped += 1;
                state.floor = event.revision;
            }
        }
        state.revision = revision.0;
        drop(state);
        if any {
            self.news.send_modify(|count| *count += 1);
        }
    }

    fn object(&self, key: &Arc<str>, value: &Bytes, revision: Revision) -> Option<Object> {
        let object = Object::decode(&self.kind, key, value, revision.0);
        if object.is_none() {
            // One malformed object never stops the others.
            tracing::error!(%key, "the store holds something that is no object; leaving it out");
        }
        object
    }

    /// The object under a key, as far as the cache knows.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state.read().objects.get(key).cloned()
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Done when the cache follows no longer, because its kind is gone or another.
    pub(crate) async fn closed(&self) {
        self.close.cancelled().await;
    }

    /// Where the cache is.
    pub(crate) fn revision(&self) -> u64 {
        self.at(&self.state.read())
    }

    /// Where the cache is in this state, whose lock is held: what `seen` says by then was taken before.
    fn at(&self, state: &State) -> u64 {
        state.revision.max(self.seen.now())
    }

    /// Waits until the cache has seen a revision; false if it doesn't come in time.
    pub(crate) async fn reach(&self, revision: u64, patience: Duration) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut seen = self.seen.0.subscribe();
        matches!(tokio::time::timeout(patience, seen.wait_for(|seen| *seen >= revision)).await, Ok(Ok(_)))
    }

    /// Tells of new events.
    pub(crate) fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// The objects whose keys begin with `scope`, behind `after` if there is one, as long as `keep` says so.
    pub(crate) fn snapshot(&self, scope: &str, mut keep: impl FnMut(&Arc<Object>) -> bool) -> Snapshot {
        let state = self.state.read();
        let from = (Bound::Included(scope), Bound::Unbounded);
        let objects = state
            .objects
            .range::<str, _>(from)
            .take_while(|(key, _)| key.starts_with(scope))
            .map(|(_, object)| object)
            .filter(|object| keep(object))
            .cloned()
            .collect();
        let cursor = Cursor(state.dropped + state.events.len() as u64);
        Snapshot { revision: self.at(&state), objects, cursor }
    }

    /// The place behind a revision.
    pub(crate) fn after(&self, revision: u64) -> Result<Cursor, TooOld> {
        let state = self.state.read();
        if revision < state.floor {
            return Err(TooOld { oldest: state.floor });
        }
        let passed = state.events.partition_point(|event| event.revision <= revision);
        Ok(Cursor(state.dropped + passed as u64))
    }

    /// The next events, at most `limit`, and the revision up to which the watcher has then seen everything.
    pub(crate) fn next(&self, cursor: &mut Cursor, limit: usize) -> Result<(Vec<Arc<Event>>, u64), TooOld> {
        let state = self.state.read();
        let Some(skip) = cursor.0.checked_sub(state.dropped) else {
            return Err(TooOld { oldest: state.floor });
        };
        let mut events: Vec<_> = state.events.iter().skip(skip as usize).take(limit).cloned().collect();
        let all = skip as usize + events.len() == state.events.len();
        if !all {
            // A bookmark's revision must be a place to resume from: never end between two events of one revision.
            let last = events.last().map_or(0, |event| event.revision);
            let rest = state.events.iter().skip(skip as usize + events.len());
            events.extend(rest.take_while(|event| event.revision == last).cloned());
        }
        cursor.0 += events.len() as u64;
        let all = (cursor.0 - state.dropped) as usize == state.events.len();
        let revision = if all { self.at(&state) } else { events.last().map_or(0, |event| event.revision) };
        Ok((events, revision))
    }
}

#[async_trait::async_trait]
impl Follower for Cache {
    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn seen(&self) -> Revision {
        Revision(self.revision())
    }

    fn apply(&self, batch: WatchBatch) {
        self.take(batch.revision, batch.changes);
        self.seen.pass(batch.revision);
    }

    async fn load(&self, store: &dyn Store) -> Result<(), Error> {
        let revision = self.load_at(store, None).await?;
        self.seen.begin(revision);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use portolan_store::embedded::Embedded;
    use portolan_store::{Op, Txn, TxnOutcome};
    use serde_json::json;

    use super::*;

    async fn put(store: &dyn Store, key: &str, n: usize) -> u64 {
        let object = json!({"metadata": {"name": "a"}, "data": {"n": n.to_string()}});
        let txn = Txn { compares: Vec::new(), ops: vec![Op::Put(key.into(), object.to_string().into())] };
        match store.txn(txn).await.expect("the store writes") {
            TxnOutcome::Committed(revision) => revision.0,
            refused => panic!("no condition was set: {refused:?}"),
        }
    }

    async fn cache(store: &Arc<Embedded>) -> Arc<Cache> {
        let kind = portolan_api::find("", "v1", "configmaps").expect("the kind is served");
        Cache::open(kind, store.clone(), None, CancellationToken::new()).await.expect("the cache opens")
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_cut_and_costs_nothing_meanwhile() {
        let store = Embedded::in_memory();
        let cache = cache(&store).await;
        let mut slow = cache.snapshot("", |_| true).cursor;
        let kind = &cache.kind;
        let key = format!("{}default/a", prefix(kind));
        let entry = |n: u64| portolan_store::Entry {
            key: key.as_str().into(),
            value: json!({"metadata": {"name": "a", "n": n}}).to_string().into(),
            create_revision: Revision(1),
            mod_revision: Revision(n),
        };
        for n in 1..=EVENTS as u64 {
            cache.take(Revision(n), vec![Change::Put { entry: entry(n), previous: None }]);
        }
        let mut quick = cache.after(1).expect("the ring reaches back so far");
        assert_eq!(cache.next(&mut quick, 2).map(|(events, revision)| (events.len(), revision)), Ok((2, 3)));
        for n in 1..=10 {
            let n = EVENTS as u64 + n;
            cache.take(Revision(n), vec![Change::Put { entry: entry(n), previous: None }]);
        }
        assert_eq!(cache.state.read().events.len(), EVENTS, "the ring is bounded");
        assert_eq!(cache.next(&mut slow, 1).err(), Some(TooOld { oldest: 10 }));
        assert_eq!(cache.after(9).err(), Some(TooOld { oldest: 10 }));
        assert!(cache.after(10).is_ok());
    }

    #[tokio::test]
    async fn events_of_one_revision_are_never_parted() {
        let store = Embedded::in_memory();
        let cache = cache(&store).await;
        let change = |name: &str| {
            let key = format!("{}default/{name}", prefix(&cache.kind));
            let value = json!({"metadata": {"name": name}}).to_string();
            let (create_revision, mod_revision) = (Revision(5), Revision(5));
            let entry =
                portolan_store::Entry { key: key.into(), value: value.into(), create_revision, mod_revision };
            Change::Put { entry, previous: None }
        };
        cache.take(Revision(5), vec![change("a"), change("b"), change("c")]);
        let mut cursor = cache.after(0).expect("from the beginning");
        let (events, revision) = cache.next(&mut cursor, 1).expect("in time");
        assert_eq!((events.len(), revision), (3, 5));
    }

    #[tokio::test]
    async fn after_listing_anew_old_places_are_gone_and_new_ones_are_right() {
        let store = Embedded::in_memory();
        let key = "/registry/core/configmaps/default/a";
        put(&*store, key, 0).await;
        let cache = cache(&store).await;
        let mut old = cache.snapshot("", |_| true).cursor;
        let last = put(&*store, key, 1).await;
        assert!(cache.reach(last, Duration::from_secs(5)).await);
        cache.load(&*store).await.expect("listed anew");
        assert!(cache.next(&mut old, 10).is_err());
        let mut new = cache.snapshot("", |_| true).cursor;
        let last = put(&*store, key, 2).await;
        assert!(cache.reach(last, Duration::from_secs(5)).await);
        let (events, revision) = cache.next(&mut new, 10).expect("in time");
        assert_eq!((events.len(), revision), (1, last));
        assert!(events[0].previous.is_some(), "the listed object is what the event replaces");
    }
}
