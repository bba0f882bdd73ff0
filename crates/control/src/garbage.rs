//! Dependents whose owners are gone: the graph of owner references, and what it asks for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Change};
use crate::cluster::{Cluster, Error, Kind, Result, is};
use crate::kinds::KnownKind;
use crate::queue::Done;
use crate::wake::Wake;

mod graph; // who owns whom, and the decision: pure

pub(crate) use graph::Graph;
use graph::{Decision, Entry, Owner};

/// The kinds that are watched anyway, as `kind` and group.
const WATCHED: [(&str, &str); 22] = [
    ("Pod", ""),
    ("Service", ""),
    ("EndpointSlice", "discovery.k8s.io"),
    ("Endpoints", ""),
    ("Node", ""),
    ("Lease", "coordination.k8s.io"),
    ("Namespace", ""),
    ("ReplicaSet", "apps"),
    ("Deployment", "apps"),
    ("ServiceAccount", ""),
    ("ConfigMap", ""),
    ("ReplicationController", ""),
    ("StatefulSet", "apps"),
    ("DaemonSet", "apps"),
    ("ControllerRevision", "apps"),
    ("Job", "batch"),
    ("CronJob", "batch"),
    ("PodDisruptionBudget", "policy"),
    ("ResourceQuota", ""),
    ("IPAddress", "networking.k8s.io"),
    ("ServiceCIDR", "networking.k8s.io"),
    ("ClusterRole", "rbac.authorization.k8s.io"),
];
/// The pause before discovery is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes a change of a watched kind into the graph.
pub(crate) fn wakes<K: Kind>(cluster: &Cluster, change: &Change<K>) -> Vec<Wake> {
    let entry = |object: &Arc<K>| Entry::of(object.meta(), &K::api_version(&()), &K::kind(&()));
    cluster
        .garbage
        .observe(change.old.as_ref().and_then(entry), change.new.as_ref().and_then(entry))
        .into_iter()
        .map(Wake::Garbage)
        .collect()
}

/// Follows the metadata of every kind that no controller watches, for ever: also of those that clients define.
pub(crate) async fn follow_other_kinds(cluster: Arc<Cluster>) {
    let definitions = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions = ApiResource::from_gvk(&definitions);
    let api = kube::Api::<PartialObjectMeta<DynamicObject>>::all_with(cluster.client.clone(), &definitions);
    let mut changes = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut followed: HashMap<(String, String), CancellationToken> = HashMap::new();
    let mut watches = JoinSet::new();
    loop {
        match cluster.kinds.fresh(&cluster.client).await {
            Ok(kinds) => {
                let wanted = |kind: &&KnownKind| {
                    let name = (kind.resource.kind.as_str(), kind.resource.group.as_str());
                    // Events own nothing, and nothing owns them; they are the most frequent writes.
                    kind.can_be_followed() && !WATCHED.contains(&name) && name.0 != "Event"
                };
                let wanted: HashMap<(String, String), &KnownKind> = kinds
                    .iter()
                    .filter(wanted)
                    .map(|kind| ((kind.resource.api_version.clone(), kind.resource.kind.clone()), kind))
                    .collect();
                followed.retain(|name, gone| {
                    let stays = wanted.contains_key(name);
                    if !stays {
                        gone.cancel();
                    }
                    stays
                });
                for (name, kind) in wanted {
                    followed.entry(name).or_insert_with(|| {
                        let gone = CancellationToken::new();
                        watches.spawn(follow(cluster.clone(), kind.clone(), gone.clone()));
                        gone
                    });
                }
            }
            Err(error) => {
                tracing::debug!(%error, "discovery failed; it will be tried again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        // Those that have ended were told to.
        while watches.try_join_next().is_some() {}
        match changes.next().await {
            Some(Ok(_)) => while changes.next().now_or_never().is_some_and(|change| change.is_some()) {},
            Some(Err(error)) => {
                tracing::debug!(%error, "the watch of definitions broke; it begins again");
                tokio::time::sleep(PAUSE).await;
            }
            None => std::future::pending().await,
        }
    }
}

async fn follow(cluster: Arc<Cluster>, kind: KnownKind, gone: CancellationToken) {
    let api = kube::Api::<PartialObjectMeta<DynamicObject>>::all_with(cluster.client.clone(), &kind.resource);
    let mut cache: Cache<PartialObjectMeta<DynamicObject>> = Cache::default();
    let entry = |object: &Arc<PartialObjectMeta<DynamicObject>>| {
        Entry::of(&object.metadata, &kind.resource.api_version, &kind.resource.kind)
    };
    let observe = |old: Option<Entry>, new: Option<Entry>| {
        for uid in cluster.garbage.observe(old, new) {
            cluster.queue.push(Wake::Garbage(uid));
        }
    };
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = gone.cancelled() => None,
        };
        match event {
            Some(Ok(event)) => {
                for change in cache.observe(event) {
                    let left = change.old.as_ref().filter(|_| change.new.is_none());
                    let place = left.and_then(|object| object.namespace());
                    for quota in place.iter().flat_map(|place| crate::quota::wakes(&cluster, place)) {
                        cluster.queue.push(Wake::Quota(quota));
                    }
                    observe(change.old.as_ref().and_then(entry), change.new.as_ref().and_then(entry));
                }
            }
            Some(Err(error)) => {
                tracing::debug!(kind = kind.resource.kind, %error, "the watch broke; it begins again");
                tokio::time::sleep(PAUSE).await;
            }
            None => break,
        }
    }
    // With the kind its objects are gone.
    cache.all().for_each(|object| observe(entry(object), None));
}

pub(crate) async fn reconcile(cluster: &Cluster, uid: &str) -> Result<Done> {
    let Some(entry) = cluster.garbage.get(uid) else { return Ok(Done::Settled) };
    let mut owners = Vec::new();
    for owner in &entry.owners {
        let state = match cluster.garbage.get(&owner.uid) {
            Some(known) if known.waits_for_dependents() => Owner::Waiting,
            Some(_) => Owner::Present,
            None => ask(cluster, &entry, &owner.api_version, &owner.kind, &owner.name, &owner.uid).await?,
        };
        owners.push(state);
    }
    let dependents = cluster.garbage.dependents(uid);
    act(cluster, &entry, graph::decide(&entry, &owners, &dependents)).await
}

/// Asks the API itself for an owner that no watch has told of: only what is certainly gone counts as gone.
async fn ask(
    cluster: &Cluster,
    entry: &Entry,
    version: &str,
    kind: &str,
    name: &str,
    uid: &str,
) -> Result<Owner> {
    let Some(known) = cluster.kinds.find(&cluster.client, version, kind).await? else {
        return Ok(Owner::Present);
    };
    // An owner in a namespace cannot own what is in none; nothing is decided about what makes no sense.
    if known.namespaced && entry.namespace.is_empty() {
        return Ok(Owner::Present);
    }
    let found = known.api(&cluster.client, &entry.namespace).get_metadata_opt(name).await?;
    Ok(match found {
        Some(object) if object.metadata.uid.as_deref() == Some(uid) => Owner::Present,
        _ => Owner::Absent,
    })
}

async fn act(cluster: &Cluster, entry: &Entry, decision: Decision) -> Result<Done> {
    match decision {
        Decision::Nothing => {}
        Decision::Delete(policy) => delete(cluster, entry, policy).await?,
        Decision::DropOwners(uids) => drop_owners(cluster, entry, &uids).await?,
        Decision::ReleaseForeground => drop_finalizer(cluster, entry, graph::FOREGROUND).await?,
        Decision::Orphan(dependents) => {
            for dependent in &dependents {
                drop_owners(cluster, dependent, std::slice::from_ref(&entry.uid)).await?;
            }
            drop_finalizer(cluster, entry, graph::ORPHAN).await?;
        }
        Decision::Wake(uids) => uids.into_iter().for_each(|uid| cluster.queue.push(Wake::Garbage(uid))),
    }
    Ok(Done::Settled)
}

async fn api(cluster: &Cluster, entry: &Entry) -> Result<kube::Api<DynamicObject>> {
    let kind = cluster.kinds.find(&cluster.client, &entry.api_version, &entry.kind).await?;
    let unknown = || Error::Invalid(format!("the API has no kind {} in {}", entry.kind, entry.api_version));
    Ok(kind.ok_or_else(unknown)?.api(&cluster.client, &entry.namespace))
}

async fn delete(cluster: &Cluster, entry: &Entry, policy: PropagationPolicy) -> Result<()> {
    // In the version that was judged: one watch may be behind another, and the object may have been orphaned meanwhile.
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(Preconditions {
            uid: Some(entry.uid.clone()),
            resource_version: Some(entry.version.clone()),
        }),
        ..DeleteParams::default()
    };
    match api(cluster, entry).await?.delete(&entry.name, &params).await {
        Ok(_) => Ok(()),
        // Gone, or succeeded by another of the same name.
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn drop_owners(cluster: &Cluster, entry: &Entry, uids: &[String]) -> Result<()> {
    let left: Vec<_> = entry.owners.iter().filter(|owner| !uids.contains(&owner.uid)).collect();
    patch(cluster, entry, json!({ "ownerReferences": left })).await
}

async fn drop_finalizer(cluster: &Cluster, entry: &Entry, finalizer: &str) -> Result<()> {
    let left: Vec<_> = entry.finalizers.iter().filter(|name| *name != finalizer).collect();
    patch(cluster, entry, json!({ "finalizers": left })).await
}

async fn patch(cluster: &Cluster, entry: &Entry, mut metadata: serde_json::Value) -> Result<()> {
    metadata["uid"] = entry.uid.clone().into();
    metadata["resourceVersion"] = entry.version.clone().into();
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    match api(cluster, entry).await?.patch(&entry.name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
