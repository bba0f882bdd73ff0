//! Following the store: a watch that feeds something in memory, and is taken up again whenever it breaks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use portolan_store::{Error, Range, Revision, Store, WatchBatch};
use tokio_util::sync::CancellationToken;

/// How long a store that failed is left alone.
const PAUSE: Duration = Duration::from_millis(200);

/// Something in memory that holds what the store holds.
#[async_trait::async_trait]
pub(crate) trait Follower: Send + Sync + 'static {
    /// The prefix of the keys that it holds.
    fn prefix(&self) -> &str;
    /// Up to where it has seen everything.
    fn seen(&self) -> Revision;
    /// Takes what comes next.
    fn apply(&self, batch: WatchBatch);
    /// Begins anew with what the store holds now.
    async fn load(&self, store: &dyn Store) -> Result<(), Error>;
}

/// Follows the store in the background until `close`.
pub(crate) fn start(follower: Arc<impl Follower>, store: Arc<dyn Store>, close: CancellationToken) {
    tokio::spawn(async move {
        tokio::select! {
            () = follow(&*follower, &*store) => {}
            () = close.cancelled() => {}
        }
    });
}

async fn follow(follower: &impl Follower, store: &dyn Store) {
    let prefix = follower.prefix();
    let end = Range::prefix(prefix).end;
    loop {
        match watch(follower, store, &end).await {
            // What was seen is good; only go on from there.
            Error::Lagged => continue,
            Error::Closed => return,
            // History doesn't reach back to where we are; or, after a restore, not yet forward.
            Error::Compacted { .. } | Error::Future { .. } => match follower.load(store).await {
                Ok(()) => continue,
                Err(error) => tracing::error!(prefix, %error, "listing the store anew"),
            },
            error => tracing::error!(prefix, %error, "watching the store"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Feeds the follower; gives what ended the watch.
async fn watch(follower: &impl Follower, store: &dyn Store, end: &str) -> Error {
    let mut batches = match store.watch(follower.prefix(), end, follower.seen()).await {
        Ok(batches) => batches,
        Err(error) => return error,
    };
    loop {
        match batches.next().await {
            Some(Ok(batch)) => follower.apply(batch),
            Some(Err(error)) => return error,
            None => return Error::Engine("the watch ended".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use parking_lot::Mutex;
    use portolan_store::embedded::Embedded;
    use portolan_store::{Entry, Op, RangeResult, Result, Txn, TxnOutcome, WatchStream};
    use serde_json::json;

    use super::*;
    use crate::cache::Cache;

    /// A store whose watches each end with the next of these errors, after one batch, until there are none left.
    struct Breaking {
        store: Arc<Embedded>,
        errors: Mutex<VecDeque<Error>>,
    }

    #[async_trait::async_trait]
    impl Store for Breaking {
        async fn revision(&self) -> Result<Revision> {
            self.store.revision().await
        }
        async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision)> {
            self.store.get(key).await
        }
        async fn range(&self, range: Range) -> Result<RangeResult> {
            self.store.range(range).await
        }
        async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
            self.store.txn(txn).await
        }
        async fn watch(&self, start: &str, end: &str, after: Revision) -> Result<WatchStream> {
            let stream = self.store.watch(start, end, after).await?;
            Ok(match self.errors.lock().pop_front() {
                Some(error) => stream.take(1).chain(futures_util::stream::iter([Err(error)])).boxed(),
                None => stream,
            })
        }
        async fn compact(&self, revision: Revision) -> Result<()> {
            self.store.compact(revision).await
        }
    }

    #[tokio::test]
    async fn a_watch_of_the_store_that_is_lost_is_taken_up_again_and_misses_nothing() {
        let errors = [
            Error::Engine("the connection is lost".into()),
            Error::Lagged,
            Error::Compacted { asked: 1, oldest: 2 },
            Error::Future { asked: 9, current: 1 },
        ];
        let store = Arc::new(Breaking { store: Embedded::in_memory(), errors: Mutex::new(errors.into()) });
        let kind = portolan_api::find("", "v1", "configmaps").expect("the kind is served");
        let cache = Cache::open(kind, store.clone(), None, CancellationToken::new()).await.expect("it opens");
        let mut last = 0;
        for name in ["a", "b", "c", "d", "e", "f"] {
            let key = format!("{}default/{name}", crate::cache::prefix(kind));
            let value = json!({"metadata": {"name": name}}).to_string();
            let txn = Txn { compares: Vec::new(), ops: vec![Op::Put(key.into(), value.into())] };
            match store.txn(txn).await.expect("the store writes") {
                TxnOutcome::Committed(revision) => last = revision.0,
                refused => panic!("no condition was set: {refused:?}"),
            }
            assert!(cache.reach(last, Duration::from_secs(10)).await, "{name} was not seen");
        }
        assert_eq!(store.errors.lock().len(), 0, "all of them happened");
        let snapshot = cache.snapshot("", |_| true);
        assert_eq!((snapshot.revision, snapshot.objects.len()), (last, 6));
    }
}
