//! What controllers that own pods share: references, templates, revisions.

use std::sync::Arc;

use futures_util::future::join_all;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::DeleteParams;
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::cluster::{Cluster, Kind, Result};
use crate::recorder::Severity;
use crate::wake::controller;

/// At most so many pods are made or removed at once for one owner.
const AT_ONCE: usize = 32;
/// The label with the name of the revision that a pod was made of.
pub(crate) const REVISION: &str = "controller-revision-hash";

/// The reference that makes an object belong to `owner`.
pub(crate) fn owner_of<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// An object's owners, and one more.
pub(crate) fn owners_with<K: Resource<DynamicType = ()>>(
    object: &impl Resource,
    owner: &K,
) -> Vec<OwnerReference> {
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.push(owner_of(owner));
    owners
}

/// Makes a pod and says so.
pub(crate) async fn create_pod<K: Kind>(
    cluster: &Cluster,
    owner: &K,
    source: &'static str,
    pod: &Pod,
) -> Result<Arc<Pod>> {
    match cluster.create(pod).await {
        Ok(made) => {
            let message = format!("Created pod: {}", made.name_any());
            cluster.recorder.note(owner, source, Severity::Normal, "SuccessfulCreate", message);
            Ok(made)
        }
        Err(error) => {
            // A namespace on its way out refuses; that is not worth an event.
            if !error.is_conflict() {
                let message = format!("Error creating: {error}");
                cluster.recorder.note(owner, source, Severity::Warning, "FailedCreate", message);
            }
            Err(error)
        }
    }
}

/// Makes these pods; all are tried, the first error is told.
pub(crate) async fn make_all<K: Kind>(
    cluster: &Cluster,
    owner: &K,
    source: &'static str,
    pods: &[Pod],
) -> Result<()> {
    for some in pods.chunks(AT_ONCE) {
        // None is given up when another fails: what is made must be known before the next decision.
        for made in join_all(some.iter().map(|pod| create_pod(cluster, owner, source, pod))).await {
            made?;
        }
    }
    Ok(())
}

/// Deletes these pods and says so; all are tried, the first error is told.
pub(crate) async fn remove_all<K: Kind>(
    cluster: &Cluster,
    owner: &K,
    source: &'static str,
    pods: &[Arc<Pod>],
) -> Result<()> {
    for some in pods.chunks(AT_ONCE) {
        for removed in join_all(some.iter().map(|pod| remove(cluster, owner, source, pod))).await {
            removed?;
        }
    }
    Ok(())
}

async fn remove<K: Kind>(cluster: &Cluster, owner: &K, source: &'static str, pod: &Arc<Pod>) -> Result<()> {
    cluster.delete(pod.as_ref(), DeleteParams::default()).await?;
    let message = format!("Deleted pod: {}", pod.name_any());
    cluster.recorder.note(owner, source, Severity::Normal, "SuccessfulDelete", message);
    Ok(())
}

/// A pod of a template, belonging to `owner`; its name is still to be said.
pub(crate) fn pod_of<K: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &K) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_of(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The revision of the present template, made if there is none, with its hash in the label `hashed`; and all revisions of the
/// owner, the oldest first.
pub(crate) async fn revise<K: Kind>(
    cluster: &Cluster,
    owner: &K,
    template: &PodTemplateSpec,
    hashed: &str,
) -> Result<(Arc<ControllerRevision>, Vec<Arc<ControllerRevision>>)> {
    let uid = owner.uid().unwrap_or_default();
    let namespace = owner.meta().namespace.clone().unwrap_or_default();
    let mut all =
        cluster.select::<ControllerRevision>(&namespace, |r| controller(r).is_some_and(|o| o.uid == uid));
    all.sort_by_key(|revision| revision.revision);
    let mut data = json!({"spec": {"template": template}});
    data["spec"]["template"]["$patch"] = "replace".into();
    let newest = all.last().map_or(0, |revision| revision.revision);
    let same = all.iter().rev().find(|r| r.data.as_ref().is_some_and(|d| d.0 == data)).cloned();
    if let Some(same) = same {
        // Rolled back to: it is the newest again.
        if same.revision < newest {
            let moved = cluster.patch(same.as_ref(), json!({"revision": newest + 1})).await?;
            all.retain(|revision| revision.uid() != moved.uid());
            all.push(moved.clone());
            return Ok((moved, all));
        }
        return Ok((same, all));
    }
    let hash = crate::deployment::template_hash(template, 0);
    let meta = template.metadata.as_ref();
    let mut labels = meta.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(hashed.to_owned(), hash.clone());
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name_any())),
            namespace: Some(namespace),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![owner_of(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: newest + 1,
    };
    let made = cluster.create(&revision).await?;
    all.push(made.clone());
    Ok((made, all))
}

/// Removes revisions that are neither among the last `limit` nor in use.
pub(crate) async fn forget_revisions(
    cluster: &Cluster,
    all: &[Arc<ControllerRevision>],
    in_use: &[&str],
    limit: usize,
) -> Result<()> {
    let unused: Vec<_> = all.iter().filter(|r| !in_use.contains(&r.name_any().as_str())).collect();
    for revision in unused.iter().take(unused.len().saturating_sub(limit)) {
        cluster.delete(revision.as_ref(), DeleteParams::default()).await?;
    }
    Ok(())
}
