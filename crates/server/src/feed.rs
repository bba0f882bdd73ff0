//! One watch of the store for the caches of all kinds of the table: history is read once at the start, and a change wakes one
//! task, not one of each kind.

use std::collections::HashMap;
use std::sync::Arc;

use portolan_store::{Change, Error, Revision, Store, WatchBatch};

use crate::cache::{Cache, Seen, prefix};
use crate::follow::Follower;

/// What is fed.
pub(crate) struct Feed {
    caches: Vec<Arc<Cache>>,
    /// What all of them have seen.
    seen: Arc<Seen>,
    /// Which caches hold the objects below a prefix: two, where a kind has two shapes.
    below: HashMap<String, Vec<usize>>,
}

impl Feed {
    /// Feeds these, which share `seen`.
    pub(crate) fn new(caches: Vec<Arc<Cache>>, seen: Arc<Seen>) -> Feed {
        let mut below: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, cache) in caches.iter().enumerate() {
            below.entry(prefix(&cache.kind)).or_default().push(at);
        }
        Feed { caches, seen, below }
    }

    /// The caches that hold the object of this key.
    fn holders(&self, key: &str) -> &[usize] {
        // `/registry/GROUP/PLURAL/`
        let end = key.match_indices('/').nth(3).map_or(key.len(), |(at, _)| at + 1);
        self.below.get(&key[..end]).map_or(&[], Vec::as_slice)
    }
}

fn key(change: &Change) -> &str {
    match change {
        Change::Put { entry, .. } => &entry.key,
        Change::Delete { key, .. } => key,
    }
}

#[async_trait::async_trait]
impl Follower for Feed {
    fn prefix(&self) -> &str {
        "/registry/"
    }

    fn seen(&self) -> Revision {
        Revision(self.caches.iter().map(|cache| cache.revision()).min().unwrap_or_default())
    }

    fn apply(&self, batch: WatchBatch) {
        let mut parts: HashMap<usize, Vec<Change>> = HashMap::new();
        for change in batch.changes {
            for at in self.holders(key(&change)) {
                parts.entry(*at).or_default().push(change.clone());
            }
        }
        for (at, changes) in parts {
            self.caches[at].take(batch.revision, changes);
        }
        self.seen.pass(batch.revision);
    }

    async fn load(&self, store: &dyn Store) -> Result<(), Error> {
        // All at one revision: the watch goes on from there.
        let revision = store.revision().await?;
        for cache in &self.caches {
            cache.load_at(store, Some(revision)).await?;
        }
        self.seen.begin(revision);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use portolan_store::embedded::Embedded;
    use portolan_store::{Op, Txn, TxnOutcome};
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::follow;

    #[tokio::test]
    async fn each_cache_hears_of_its_own_objects_and_all_of_each_revision() {
        let store: Arc<Embedded> = Embedded::in_memory();
        let close = CancellationToken::new();
        let (mut caches, seen) = (Vec::new(), Arc::<Seen>::default());
        for (group, plural) in
            [("", "configmaps"), ("", "secrets"), ("", "events"), ("events.k8s.io", "events")]
        {
            let kind = portolan_api::find(group, "v1", plural).expect("the kind is served");
            let cache = Cache::read(kind, &*store, None, seen.clone(), close.clone()).await;
            caches.push(cache.expect("it opens"));
        }
        follow::start(Arc::new(Feed::new(caches.clone(), seen)), store.clone(), close.clone());
        let mut last = 0;
        for key in ["core/configmaps/d/a", "core/events/d/a", "core/configmaps/d/b", "else/where/d/a"] {
            let value = json!({"metadata": {"name": "a"}}).to_string();
            let op = Op::Put(format!("/registry/{key}").into(), value.into());
            match store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.expect("the store writes") {
                TxnOutcome::Committed(revision) => last = revision.0,
                refused => panic!("no condition was set: {refused:?}"),
            }
        }
        for (cache, count) in caches.iter().zip([2, 0, 1, 1]) {
            assert!(cache.reach(last, Duration::from_secs(10)).await, "{}", cache.kind.kind());
            assert_eq!(cache.len(), count, "{}", cache.kind.kind());
        }
        close.cancel();
    }
}
