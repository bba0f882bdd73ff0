//! As many pods as a ReplicaSet asks for: observe, decide, write.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::queue::Done;
use crate::recorder::Severity;
use crate::wake::controller;

pub(crate) mod decide; // adopt, release, create, delete, status: pure
pub(crate) mod rank; // which pod goes first: pure

pub(crate) use decide::owner_reference;

/// The component in events.
const SOURCE: &str = "replicaset-controller";
/// At most so many pods are made or removed at once for one ReplicaSet.
const AT_ONCE: usize = 32;

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(set) = cluster.find::<ReplicaSet>(key) else { return Ok(Done::Settled) };
    let uid = set.uid().unwrap_or_default();
    let pods = cluster.select::<Pod>(&key.namespace, |pod| match controller(pod) {
        Some(owner) => owner.uid == uid,
        None => {
            set.spec.as_ref().is_some_and(|spec| crate::pods::matches(&Some(&spec.selector), pod.labels()))
        }
    });
    let related = related(cluster, &set);
    let decision = decide::decide(&set, &pods, &related, Timestamp::now());
    if !decision.adopt.is_empty() && !cluster.stays(set.as_ref()).await? {
        return Ok(Done::Failed);
    }
    for pod in &decision.adopt {
        cluster
            .patch(pod.as_ref(), json!({ "metadata": { "ownerReferences": owners_with(pod, &set) } }))
            .await?;
    }
    for pod in &decision.release {
        let owners: Vec<_> = pod.owner_references().iter().filter(|owner| owner.uid != uid).collect();
        cluster.patch(pod.as_ref(), json!({ "metadata": { "ownerReferences": owners } })).await?;
    }
    let made: Result<()> = stream::iter(0..decision.create)
        .map(|_| create(cluster, &set))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await;
    let removed: Result<()> = stream::iter(decision.delete.iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |pod| remove(cluster, &set, pod))
        .await;
    // The status tells what is, even when not all could be done; its own change wakes us again.
    let failure = made.as_ref().err().or(removed.as_ref().err()).map(ToString::to_string);
    let terminating = Some(decision.terminating);
    let status = decide::status(&set, &decision.observed, terminating, failure.as_deref(), Timestamp::now());
    if let Some(status) = status {
        let mut changed = ReplicaSet::clone(&set);
        changed.status = Some(status);
        cluster.replace_status(&changed).await?;
    }
    made?;
    removed?;
    Ok(decision.again.map_or(Done::Settled, Done::Again))
}

/// The active pods of all ReplicaSets with the same controller: where they are decides which pod is doubled up.
fn related(cluster: &Cluster, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let namespace = set.namespace().unwrap_or_default();
    let owner = controller(set).map(|owner| owner.uid.clone());
    let sets: Vec<String> = match &owner {
        Some(owner) => cluster
            .select::<ReplicaSet>(&namespace, |other| controller(other).is_some_and(|o| o.uid == *owner))
            .iter()
            .filter_map(|set| set.uid())
            .collect(),
        None => set.uid().into_iter().collect(),
    };
    cluster.select::<Pod>(&namespace, |pod| {
        crate::pods::is_active(pod) && controller(pod).is_some_and(|owner| sets.contains(&owner.uid))
    })
}

fn owners_with(
    pod: &Pod,
    set: &ReplicaSet,
) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
    let mut owners = pod.owner_references().to_vec();
    owners.push(owner_reference(set));
    owners
}

async fn create(cluster: &Cluster, set: &ReplicaSet) -> Result<()> {
    match cluster.create(&decide::new_pod(set)).await {
        Ok(pod) => {
            let message = format!("Created pod: {}", pod.name_any());
            cluster.recorder.note(set, SOURCE, Severity::Normal, "SuccessfulCreate", message);
            Ok(())
        }
        Err(error) => {
            // A namespace on its way out refuses; that is not worth an event.
            if !error.is_conflict() {
                let message = format!("Error creating: {error}");
                cluster.recorder.note(set, SOURCE, Severity::Warning, "FailedCreate", message);
            }
            Err(error)
        }
    }
}

async fn remove(cluster: &Cluster, set: &ReplicaSet, pod: &Pod) -> Result<()> {
    cluster.delete(pod, DeleteParams::default()).await?;
    let message = format!("Deleted pod: {}", pod.name_any());
    cluster.recorder.note(set, SOURCE, Severity::Normal, "SuccessfulDelete", message);
    Ok(())
}
