//! What Services hold alone: an index of the addresses and ports that are taken, fed by the store's watch.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use portolan_api::service::Claim;
use portolan_store::{Change, Error, Range, Revision, Store, WatchBatch};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::follow::{self, Follower};

const PREFIX: &str = "/claims/";

/// The key whose existence is the claim. A port is one key whatever its protocol: as in Kubernetes' allocator, only ports
/// of one and the same Service may share a number.
pub(crate) fn key(claim: &Claim) -> Arc<str> {
    match claim {
        Claim::ClusterIp(ip) => format!("{PREFIX}clusterip/{ip}").into(),
        Claim::NodePort { port, .. } | Claim::HealthCheckNodePort(port) => {
            format!("{PREFIX}nodeport/{port}").into()
        }
    }
}

/// The keys that a Service holds.
pub(crate) fn held(service: &Value) -> BTreeSet<Arc<str>> {
    portolan_api::service::claims(service).iter().map(key).collect()
}

/// A claim's value: whose it is.
pub(crate) fn value(owner: &str) -> Bytes {
    serde_json::json!({"service": owner}).to_string().into()
}

/// Who holds what. The store decides; this only spares a client's allocation most collisions.
pub(crate) struct Claims {
    owners: RwLock<HashMap<Arc<str>, Arc<str>>>,
    revision: tokio::sync::watch::Sender<u64>,
}

impl Claims {
    /// Reads all claims and follows.
    pub(crate) async fn open(store: Arc<dyn Store>, close: CancellationToken) -> Result<Arc<Claims>, Error> {
        let claims = Claims { owners: RwLock::default(), revision: tokio::sync::watch::Sender::new(0) };
        let claims = Arc::new(claims);
        claims.load(&*store).await?;
        follow::start(claims.clone(), store, close);
        Ok(claims)
    }

    /// Waits until the index has seen a revision; goes on without when it takes too long, for the store decides anyway.
    pub(crate) async fn reach(&self, revision: u64) {
        let mut seen = self.revision.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(3), seen.wait_for(|seen| *seen >= revision)).await;
    }

    /// Whether somebody other than `owner` holds a claim.
    pub(crate) fn taken(&self, claim: &Claim, owner: &str) -> bool {
        self.owners.read().get(&key(claim)).is_some_and(|holder| **holder != *owner)
    }
}

#[async_trait::async_trait]
impl Follower for Claims {
    fn prefix(&self) -> &str {
        PREFIX
    }

    fn seen(&self) -> Revision {
        Revision(*self.revision.borrow())
    }

    fn apply(&self, batch: WatchBatch) {
        let mut owners = self.owners.write();
        for change in batch.changes {
            match change {
                Change::Put { entry, .. } => owners.insert(entry.key, owner(&entry.value)),
                Change::Delete { key, .. } => owners.remove(&key),
            };
        }
        drop(owners);
        self.revision.send_replace(batch.revision.0);
    }

    async fn load(&self, store: &dyn Store) -> Result<(), Error> {
        let result = store.range(Range::prefix(PREFIX)).await?;
        let owners = result.entries.iter().map(|entry| (entry.key.clone(), owner(&entry.value))).collect();
        *self.owners.write() = owners;
        self.revision.send_replace(result.revision.0);
        Ok(())
    }
}

fn owner(value: &Bytes) -> Arc<str> {
    let value: Value = serde_json::from_slice(value).unwrap_or_default();
    value["service"].as_str().unwrap_or_default().into()
}
