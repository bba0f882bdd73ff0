//! As many pods as a ReplicationController asks for: the decisions of a ReplicaSet, for its older form.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::owned::{make_all, owner_of, owners_with, remove_all};
use crate::queue::Done;
use crate::replicaset::decide;
use crate::wake::controller;

const SOURCE: &str = "replication-controller";

/// The same, written as a ReplicaSet: a selector of equalities is all that the older form knows.
fn as_set(controller: &ReplicationController) -> ReplicaSet {
    let spec = controller.spec.clone().unwrap_or_default();
    let status = controller.status.clone();
    ReplicaSet {
        metadata: controller.metadata.clone(),
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector { match_labels: spec.selector, match_expressions: None },
            template: spec.template,
        }),
        status: status.map(|status| ReplicaSetStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|all| {
                all.into_iter()
                    .map(|c| ReplicaSetCondition {
                        last_transition_time: c.last_transition_time,
                        message: c.message,
                        reason: c.reason,
                        status: c.status,
                        type_: c.type_,
                    })
                    .collect()
            }),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
            terminating_replicas: None,
        }),
    }
}

fn as_status(status: ReplicaSetStatus) -> ReplicationControllerStatus {
    ReplicationControllerStatus {
        available_replicas: status.available_replicas,
        conditions: status.conditions.map(|all| {
            all.into_iter()
                .map(|c| ReplicationControllerCondition {
                    last_transition_time: c.last_transition_time,
                    message: c.message,
                    reason: c.reason,
                    status: c.status,
                    type_: c.type_,
                })
                .collect()
        }),
        fully_labeled_replicas: status.fully_labeled_replicas,
        observed_generation: status.observed_generation,
        ready_replicas: status.ready_replicas,
        replicas: status.replicas,
    }
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(rc) = cluster.find::<ReplicationController>(key) else { return Ok(Done::Settled) };
    let set = as_set(&rc);
    let uid = rc.uid().unwrap_or_default();
    let pods = cluster.select::<Pod>(&key.namespace, |pod| match controller(pod) {
        Some(owner) => owner.uid == uid,
        None => selects(&rc, pod),
    });
    let own: Vec<Arc<Pod>> = pods.iter().filter(|pod| controller(pod.as_ref()).is_some()).cloned().collect();
    let decision = decide::decide(&set, &pods, &own, Timestamp::now());
    if !decision.adopt.is_empty() && !cluster.stays(rc.as_ref()).await? {
        return Ok(Done::Failed);
    }
    for pod in &decision.adopt {
        let owners = owners_with(pod.as_ref(), rc.as_ref());
        cluster.patch(pod.as_ref(), json!({"metadata": {"ownerReferences": owners}})).await?;
    }
    for pod in &decision.release {
        let owners: Vec<_> = pod.owner_references().iter().filter(|owner| owner.uid != uid).collect();
        cluster.patch(pod.as_ref(), json!({"metadata": {"ownerReferences": owners}})).await?;
    }
    let mut pod = decide::new_pod(&set);
    pod.metadata.owner_references = Some(vec![owner_of(rc.as_ref())]);
    let made = make_all(cluster, rc.as_ref(), SOURCE, &vec![pod; decision.create]).await;
    let removed = remove_all(cluster, rc.as_ref(), SOURCE, &decision.delete).await;
    let failure = made.as_ref().err().or(removed.as_ref().err()).map(ToString::to_string);
    let status = decide::status(&set, &decision.observed, None, failure.as_deref(), Timestamp::now());
    if let Some(status) = status {
        let mut changed = ReplicationController::clone(&rc);
        changed.status = Some(as_status(status));
        cluster.replace_status(&changed).await?;
    }
    made?;
    removed?;
    Ok(decision.again.map_or(Done::Settled, Done::Again))
}

/// Whether a controller would take this pod.
pub(crate) fn selects(rc: &ReplicationController, pod: &Pod) -> bool {
    let selector = rc.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
    })
}
