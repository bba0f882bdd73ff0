//! A store that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portolan_store::embedded::Embedded;
use portolan_store::{
    Entry, Error, Range, RangeResult, Result, Revision, Store, Txn, TxnOutcome, WatchStream,
};
use serde_json::json;

use crate::support::*;

/// A store on a disk that may be full.
struct OnDisk {
    store: Arc<Embedded>,
    full: AtomicBool,
}

#[async_trait::async_trait]
impl Store for OnDisk {
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
        match self.full.load(Ordering::SeqCst) {
            true => Err(Error::Engine("No space left on device".into())),
            false => self.store.txn(txn).await,
        }
    }
    async fn watch(&self, start: &str, end: &str, after: Revision) -> Result<WatchStream> {
        self.store.watch(start, end, after).await
    }
    async fn compact(&self, revision: Revision) -> Result<()> {
        self.store.compact(revision).await
    }
}

#[tokio::test]
async fn on_a_full_disk_writes_say_why_reads_go_on_and_room_is_all_it_takes_to_recover() {
    let disk = Arc::new(OnDisk { store: Embedded::in_memory(), full: AtomicBool::new(false) });
    let server = over(disk.clone()).await;
    let object = |name| configmap(name, &json!({}), &json!({"k": "1"}));
    assert_eq!(post(&server, &core("configmaps"), &object("a")).await.code, 201);
    let mut watch = Watch::open(&server, &format!("{}?watch=true", core("configmaps"))).await;
    assert_eq!(watch.brief().await, "ADDED a");

    disk.full.store(true, Ordering::SeqCst);
    let refused = [
        post(&server, &core("configmaps"), &object("b")).await,
        patch(&server, &core("configmaps/a"), "merge", &json!({"data": {"k": "2"}})).await,
        delete(&server, &core("configmaps/a"), &json!({})).await,
        post(&server, &core("services"), &service("web", "NodePort")).await,
    ];
    for answer in refused {
        assert_eq!(answer.code, 500, "{}", answer.text);
        assert_eq!(answer.body["reason"], "InternalError");
        assert!(answer.text.contains("No space left on device"), "{}", answer.text);
    }
    assert_eq!(get(&server, &core("configmaps/a")).await.body["data"]["k"], "1");
    let list = get(&server, &core("configmaps")).await;
    assert_eq!((list.code.as_u16(), list.body["items"].as_array().map(Vec::len)), (200, Some(1)));

    disk.full.store(false, Ordering::SeqCst);
    assert_eq!(post(&server, &core("configmaps"), &object("b")).await.code, 201);
    // What was refused was never seen.
    assert_eq!(watch.brief().await, "ADDED b");
    assert_eq!(post(&server, &core("services"), &service("web", "NodePort")).await.code, 201);
}
