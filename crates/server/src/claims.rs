//! What Services hold alone: an index of the addresses and ports that are taken, fed by the store's watch.
//!
//! A port is held by a key below `/claims/`. An address is held by its IPAddress object: whoever makes the object has the
//! address, a Service in the transaction that writes it, or a client that makes one by hand.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::RwLock;
use portolan_api::kinds::service_cidr::IP_ADDRESS;
use portolan_api::service::Claim;
use portolan_api::{ip, meta};
use portolan_store::{Change, Error, Range, Revision, Store, WatchBatch};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::follow::{self, Follower};
use crate::random;
use crate::read::object_key;

const PORTS: &str = "/claims/";
/// Where addresses were held before there were IPAddress objects.
const OLD_ADDRESSES: &str = "/claims/clusterip/";

/// The key whose existence is the claim. A port is one key whatever its protocol: as in Kubernetes' allocator, only ports
/// of one and the same Service may share a number.
pub(crate) fn key(claim: &Claim) -> Arc<str> {
    match claim {
        Claim::ClusterIp(ip) => object_key(&IP_ADDRESS, None, &ip.to_string()).into(),
        Claim::NodePort { port, .. } | Claim::HealthCheckNodePort(port) => {
            format!("{PORTS}nodeport/{port}").into()
        }
    }
}

/// The keys that a Service holds.
pub(crate) fn held(service: &Value) -> BTreeSet<Arc<str>> {
    portolan_api::service::claims(service).iter().map(key).collect()
}

/// A claim's value: whose it is. Of an address it is the IPAddress object (registry/core/service/ipallocator).
pub(crate) fn value(key: &str, service: &Value) -> Bytes {
    let (namespace, name) = (meta::namespace(service), meta::name(service));
    match key.strip_prefix(&object_key(&IP_ADDRESS, None, "")).and_then(ip::parse) {
        None => json!({"service": format!("{namespace}/{name}")}).to_string().into(),
        Some(address) => {
            let mut object = json!({
                "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
                "metadata": {
                    "name": address.to_string(),
                    "labels": {
                        "ipaddress.kubernetes.io/ip-family": ip::family(address),
                        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
                    },
                },
                "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}},
            });
            meta::fill_system_fields(&mut object, None, &random::uuid(), Timestamp::now());
            object.to_string().into()
        }
    }
}

/// Addresses that are still held in the old way, and whose they are.
pub(crate) async fn old_addresses(store: &dyn Store) -> Result<Vec<(Arc<str>, Claim, Value)>, Error> {
    let entries = store.range(Range::prefix(OLD_ADDRESSES)).await?.entries;
    let found = entries.into_iter().filter_map(|entry| {
        let address = ip::parse(entry.key.strip_prefix(OLD_ADDRESSES)?)?;
        let owner = owner(&entry.value);
        let (namespace, name) = owner.split_once('/')?;
        let service = json!({"metadata": {"namespace": namespace, "name": name}});
        Some((entry.key, Claim::ClusterIp(address), service))
    });
    Ok(found.collect())
}

/// Who holds what. The store decides; this only spares a client's allocation most collisions.
pub(crate) struct Claims {
    ports: Arc<Index>,
    addresses: Arc<Index>,
}

struct Index {
    prefix: String,
    owners: RwLock<HashMap<Arc<str>, Arc<str>>>,
    revision: tokio::sync::watch::Sender<u64>,
}

impl Claims {
    /// Reads all claims and follows.
    pub(crate) async fn open(store: Arc<dyn Store>, close: CancellationToken) -> Result<Arc<Claims>, Error> {
        let open = async |prefix: String| {
            let revision = tokio::sync::watch::Sender::new(0);
            let index = Arc::new(Index { prefix, owners: RwLock::default(), revision });
            index.load(&*store).await?;
            follow::start(index.clone(), store.clone(), close.clone());
            Ok::<_, Error>(index)
        };
        let ports = open(PORTS.into()).await?;
        let addresses = open(object_key(&IP_ADDRESS, None, "")).await?;
        Ok(Arc::new(Claims { ports, addresses }))
    }

    /// Waits until the index has seen a revision; goes on without when it takes too long, for the store decides anyway.
    pub(crate) async fn reach(&self, revision: u64) {
        for index in [&self.ports, &self.addresses] {
            let mut seen = index.revision.subscribe();
            let wait = seen.wait_for(|seen| *seen >= revision);
            let _ = tokio::time::timeout(Duration::from_secs(3), wait).await;
        }
    }

    /// Whether somebody other than `owner` holds a port, or anybody an address: what the owner itself holds is known from
    /// the Service.
    pub(crate) fn taken(&self, claim: &Claim, owner: &str) -> bool {
        match claim {
            Claim::ClusterIp(_) => self.addresses.owners.read().contains_key(&key(claim)),
            _ => self.ports.owners.read().get(&key(claim)).is_some_and(|holder| **holder != *owner),
        }
    }
}

#[async_trait::async_trait]
impl Follower for Index {
    fn prefix(&self) -> &str {
        &self.prefix
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
        let result = store.range(Range::prefix(&self.prefix)).await?;
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
