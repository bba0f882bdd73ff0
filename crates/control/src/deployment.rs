//! Rolling updates: observe, decide, write.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Error, Result, is};
use crate::queue::Done;
use crate::recorder::Severity;
use crate::wake::controller;

mod revision; // which set is the newest, its name, its revision: pure
mod rollout; // how far each set is scaled: pure
mod status; // what the deployment says of itself: pure
mod step; // the next writes: pure

pub(crate) use revision::hash as template_hash;
pub(crate) use rollout::share;
use step::Action;

/// The component in events.
const SOURCE: &str = "deployment-controller";

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(deployment) = cluster.find::<Deployment>(key) else { return Ok(Done::Settled) };
    let Some(spec) = &deployment.spec else { return Ok(Done::Settled) };
    let uid = deployment.uid().unwrap_or_default();
    let going = deployment.metadata.deletion_timestamp.is_some();
    let mut sets = Vec::new();
    for set in cluster.select::<ReplicaSet>(&key.namespace, |_| true) {
        let matching = crate::pods::matches(&Some(&spec.selector), set.labels());
        match controller(set.as_ref()) {
            Some(owner) if owner.uid == uid && (matching || going) => sets.push(set),
            Some(owner) if owner.uid == uid => {
                let owners: Vec<_> = set.owner_references().iter().filter(|owner| owner.uid != uid).collect();
                cluster.patch(set.as_ref(), json!({ "metadata": { "ownerReferences": owners } })).await?;
            }
            None if matching && !going && set.metadata.deletion_timestamp.is_none() => {
                if !cluster.stays(deployment.as_ref()).await? {
                    return Ok(Done::Failed);
                }
                let mut owners = set.owner_references().to_vec();
                owners.push(owner_reference(&deployment));
                sets.push(
                    cluster.patch(set.as_ref(), json!({ "metadata": { "ownerReferences": owners } })).await?,
                );
            }
            _ => {}
        }
    }
    let pods = cluster.select::<Pod>(&key.namespace, |pod| {
        controller(pod).is_some_and(|owner| sets.iter().any(|set| set.uid().as_ref() == Some(&owner.uid)))
    });
    let step = step::step(&deployment, &sets, &pods, Timestamp::now());
    let mut deployment = deployment;
    for action in step.actions {
        deployment = act(cluster, deployment, action).await?;
    }
    if let Some(status) = step.status {
        let mut changed = Deployment::clone(&deployment);
        changed.status = Some(status);
        cluster.replace_status(&changed).await?;
    }
    Ok(step.again.map_or(Done::Settled, Done::Again))
}

async fn act(cluster: &Cluster, deployment: Arc<Deployment>, action: Action) -> Result<Arc<Deployment>> {
    match action {
        Action::Create(set) => match cluster.create(set.as_ref()).await {
            Ok(set) => {
                let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
                if replicas > 0 {
                    scaled(cluster, &deployment, "up", &set.name_any(), 0, replicas);
                }
            }
            // Another template has this hash, or a set that is not ours has this name: count on and take another.
            Err(Error::Api(error)) if is(&error, 409) => {
                let count = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
                let patch = json!({ "status": { "collisionCount": count + 1 } });
                cluster.patch_status(deployment.as_ref(), patch).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error),
        },
        Action::Scale { set, replicas, annotations } => {
            let old = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let mut patch = json!({ "metadata": { "annotations": annotations } });
            if replicas != old {
                patch["spec"] = json!({ "replicas": replicas });
            }
            cluster.patch(set.as_ref(), patch).await?;
            if replicas != old {
                let direction = if replicas > old { "up" } else { "down" };
                scaled(cluster, &deployment, direction, &set.name_any(), old, replicas);
            }
        }
        Action::Annotate(annotations) => {
            let patch = json!({ "metadata": { "annotations": annotations } });
            // Through the status, as Kubernetes does: otherwise it would count as a wish.
            return cluster.patch_status(deployment.as_ref(), patch).await;
        }
        Action::Delete(set) => cluster.delete(set.as_ref(), DeleteParams::background()).await?,
    }
    Ok(deployment)
}

fn scaled(cluster: &Cluster, deployment: &Deployment, direction: &str, set: &str, from: i32, to: i32) {
    let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
    cluster.recorder.note(deployment, SOURCE, Severity::Normal, "ScalingReplicaSet", message);
}

/// The reference that makes a ReplicaSet belong to the deployment.
fn owner_reference(deployment: &Deployment) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".into(),
        kind: "Deployment".into(),
        name: deployment.name_any(),
        uid: deployment.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
