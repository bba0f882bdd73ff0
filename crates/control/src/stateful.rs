//! The pods of a StatefulSet, each with a name of its own: observe, decide, write.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Error, Result, is};
use crate::owned::{REVISION, forget_revisions, pod_of, revise};
use crate::pods;
use crate::queue::Done;
use crate::recorder::Severity;
use crate::replicaset::decide::is_available;
use crate::wake::controller;

const SOURCE: &str = "statefulset-controller";
/// The label of a revision with its hash.
const HASH: &str = "controller.kubernetes.io/hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// What to do.
#[derive(Debug, Default)]
struct Decision {
    /// Ordinals, and whether each is made of the new revision.
    create: Vec<(i32, bool)>,
    delete: Vec<Arc<Pod>>,
}

/// The ordinal in a pod's name.
fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    pod.name_any().strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

fn healthy(pod: &Pod) -> bool {
    pods::is_ready(pod) && !pods::is_terminating(pod)
}

/// Decides. `own` are the set's pods; `new` is the name of the present revision, which its pods have in their label.
fn decide(set: &StatefulSet, own: &[Arc<Pod>], new: &str, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(spec) = &set.spec else { return decision };
    let name = set.name_any();
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    let end = start + spec.replicas.unwrap_or(1);
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let rolling = spec.update_strategy.as_ref().filter(|s| s.type_.as_deref() != Some("OnDelete"));
    let bounds = rolling.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let partition = start + bounds.partition.unwrap_or(0);
    let by_ordinal: BTreeMap<i32, &Arc<Pod>> =
        own.iter().filter_map(|pod| Some((ordinal(&name, pod)?, pod))).collect();
    let updated = |pod: &Pod| pod.labels().get(REVISION).is_some_and(|hash| hash == new);
    // What is below the partition stays at the old revision, also when it is made anew.
    let fresh = |at: i32| {
        at >= partition || set.status.as_ref().is_none_or(|s| s.current_revision == s.update_revision)
    };

    // From the first to the last: each waits for those before it.
    for at in start..end {
        match by_ordinal.get(&at) {
            None => {
                decision.create.push((at, fresh(at)));
                if !parallel {
                    return decision;
                }
            }
            Some(pod) if pods::is_terminal(pod) && !pods::is_terminating(pod) => {
                decision.delete.push(Arc::clone(pod));
                if !parallel {
                    return decision;
                }
            }
            Some(pod) if !(parallel || (healthy(pod) && is_available(pod, min_ready, now))) => {
                // One of the old revision that can never become ready is let go, so that a repair gets through.
                if !pods::is_terminating(pod)
                    && !healthy(pod)
                    && rolling.is_some()
                    && at >= partition
                    && !updated(pod)
                {
                    decision.delete.push(Arc::clone(pod));
                }
                return decision;
            }
            Some(_) => {}
        }
    }
    // What is too many goes from the last to the first.
    let surplus = by_ordinal.iter().rev().filter(|(at, _)| !(start..end).contains(*at)).map(|(_, pod)| *pod);
    for pod in surplus {
        if !pods::is_terminating(pod) {
            decision.delete.push(Arc::clone(pod));
        }
        if !parallel {
            return decision;
        }
    }
    if !decision.create.is_empty() || !decision.delete.is_empty() || rolling.is_none() {
        return decision;
    }
    // The exchange goes from the last to the partition, no more at once than may be missing.
    let most =
        bounds.max_unavailable.as_ref().map_or(1, |v| crate::deployment::share(v, end - start, true)).max(1);
    let mut missing = 0;
    for at in (partition.max(start)..end).rev() {
        let Some(pod) = by_ordinal.get(&at) else { continue };
        if !updated(pod) && !pods::is_terminating(pod) {
            decision.delete.push(Arc::clone(pod));
            missing += 1;
        } else if !(healthy(pod) && is_available(pod, min_ready, now)) {
            missing += 1;
        }
        if missing >= most {
            break;
        }
    }
    decision
}

/// What the set says of its pods.
fn status(
    set: &StatefulSet,
    own: &[Arc<Pod>],
    update: &ControllerRevision,
    now: Timestamp,
) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let update_name = update.name_any();
    let current_name = old.current_revision.clone().unwrap_or_else(|| update_name.clone());
    let of = |name: &str| {
        let all = own.iter().filter(|p| !pods::is_terminating(p));
        i32::try_from(all.filter(|p| p.labels().get(REVISION).is_some_and(|n| n == name)).count())
            .unwrap_or(0)
    };
    let count =
        |wanted: &dyn Fn(&Pod) -> bool| i32::try_from(own.iter().filter(|p| wanted(p)).count()).unwrap_or(0);
    let nonzero = |n: i32| Some(n).filter(|n| *n > 0);
    let mut status = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: nonzero(count(&healthy)),
        available_replicas: Some(count(&|pod| healthy(pod) && is_available(pod, min_ready, now))),
        current_replicas: nonzero(of(&current_name)),
        updated_replicas: nonzero(of(&update_name)),
        current_revision: Some(current_name),
        update_revision: Some(update_name.clone()),
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count.or(Some(0)),
        conditions: old.conditions,
    };
    // All are of the new one and ready: it is the current one now.
    let wanted = spec.replicas.unwrap_or(1);
    if status.updated_replicas.unwrap_or(0) == wanted
        && status.ready_replicas.unwrap_or(0) == wanted
        && status.replicas == wanted
    {
        status.current_revision = Some(update_name);
        status.current_replicas = status.updated_replicas;
    }
    status
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(set) = cluster.find::<StatefulSet>(key) else { return Ok(Done::Settled) };
    let Some(spec) = set.spec.as_ref().filter(|_| set.metadata.deletion_timestamp.is_none()) else {
        return Ok(Done::Settled);
    };
    let uid = set.uid().unwrap_or_default();
    let own =
        cluster.select::<Pod>(&key.namespace, |pod| controller(pod).is_some_and(|owner| owner.uid == uid));
    let (update, revisions) = revise(cluster, set.as_ref(), &spec.template, HASH).await?;
    let now = Timestamp::now();
    let decision = decide(&set, &own, &update.name_any(), now);
    for pod in &decision.delete {
        cluster.delete(pod.as_ref(), DeleteParams::default()).await?;
        let message = format!("Delete Pod {} in StatefulSet {} successful", pod.name_any(), key.name);
        cluster.recorder.note(set.as_ref(), SOURCE, Severity::Normal, "SuccessfulDelete", message);
    }
    let current = set.status.as_ref().and_then(|status| status.current_revision.clone());
    let current = revisions.iter().find(|revision| Some(revision.name_any()) == current);
    for (at, fresh) in &decision.create {
        let revision = if *fresh { &update } else { current.unwrap_or(&update) };
        let pod = new_pod(&set, *at, revision);
        claim(cluster, &set, &pod).await?;
        let what = format!("Create Pod {} in StatefulSet {}", pod.name_any(), key.name);
        match cluster.create(&pod).await {
            // A pod of this name that is somebody else's, or on its way out: its end wakes us.
            Err(Error::Api(error)) if is(&error, 409) => {
                return Ok(Done::Again(std::time::Duration::from_secs(1)));
            }
            Ok(_) => {
                let message = format!("{what} successful");
                cluster.recorder.note(set.as_ref(), SOURCE, Severity::Normal, "SuccessfulCreate", message);
            }
            Err(error) => {
                let message = format!("{what} failed error: {error}");
                cluster.recorder.note(set.as_ref(), SOURCE, Severity::Warning, "FailedCreate", message);
                return Err(error);
            }
        }
    }
    let status = status(&set, &own, &update, now);
    if Some(&status) != set.status.as_ref() {
        let mut changed = StatefulSet::clone(&set);
        changed.status = Some(status.clone());
        cluster.replace_status(&changed).await?;
    }
    let pods_of = own.iter().filter_map(|pod| pod.labels().get(REVISION).cloned());
    let named = [status.current_revision, status.update_revision].into_iter().flatten();
    let in_use: Vec<String> = pods_of.chain(named).collect();
    let in_use: Vec<&str> = in_use.iter().map(String::as_str).collect();
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    forget_revisions(cluster, &revisions, &in_use, limit).await?;
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let waits = own.iter().any(|pod| healthy(pod) && !is_available(pod, min_ready, now));
    Ok(if waits { Done::Again(std::time::Duration::from_secs(1)) } else { Done::Settled })
}

fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

fn new_pod(set: &StatefulSet, at: i32, revision: &ControllerRevision) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let data = revision.data.as_ref().and_then(|data| data.0.get("spec")?.get("template").cloned());
    let template = data.map(|mut template| {
        template.as_object_mut().map(|map| map.remove("$patch"));
        serde_json::from_value::<PodTemplateSpec>(template).unwrap_or_default()
    });
    let mut pod = pod_of(&template.unwrap_or(spec.template), set);
    let name = format!("{}-{at}", set.name_any());
    pod.metadata.name = Some(name.clone());
    // It says of whom the pod is, as in Kubernetes; nothing is drawn.
    pod.metadata.generate_name = Some(format!("{}-", set.name_any()));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION.to_owned(), revision.name_any());
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), at.to_string());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(name.clone());
        pod_spec.subdomain = spec.service_name.clone().filter(|service| !service.is_empty());
        let volumes = pod_spec.volumes.get_or_insert_default();
        for template in spec.volume_claim_templates.iter().flatten() {
            volumes.retain(|volume| volume.name != template.name_any());
            volumes.push(Volume {
                name: template.name_any(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim_name(template, &name),
                    read_only: None,
                }),
                ..Volume::default()
            });
        }
    }
    pod
}

/// The claims that a pod names are there before it; they outlive it.
async fn claim(cluster: &Cluster, set: &StatefulSet, pod: &Pod) -> Result<()> {
    let spec = set.spec.clone().unwrap_or_default();
    let namespace = set.namespace().unwrap_or_default();
    for template in spec.volume_claim_templates.iter().flatten() {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(template, &pod.name_any())),
                namespace: Some(namespace.clone()),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), &namespace);
        match api.create(&PostParams::default(), &claim).await {
            Err(error) if !is(&error, 409) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut object = json!({"metadata": {"name": "s", "uid": "s", "namespace": "n"},
            "spec": {"serviceName": "s", "replicas": 3, "selector": {}, "template": {},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
        crate::pods::overlay(&mut object["spec"], spec);
        serde_json::from_value(object).expect("a set")
    }

    fn pod(at: i32, hash: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let object = json!({"metadata": {"name": format!("s-{at}"), "labels": {REVISION: hash}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}});
        Arc::new(serde_json::from_value(object).expect("a pod"))
    }

    fn decided(spec: Value, own: &[Arc<Pod>]) -> (Vec<i32>, Vec<String>) {
        let decision = decide(&set(spec), own, "new", "2026-01-01T00:00:00Z".parse().expect("a time"));
        let made = decision.create.iter().map(|(at, _)| *at).collect();
        (made, decision.delete.iter().map(|pod| pod.name_any()).collect())
    }

    fn gone(names: &[&str]) -> (Vec<i32>, Vec<String>) {
        (Vec::new(), names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn pods_come_one_after_another_and_go_the_other_way_round() {
        assert_eq!(decided(json!({}), &[]), (vec![0], vec![]));
        assert_eq!(decided(json!({}), &[pod(0, "new", false)]), (vec![], vec![]), "the first isn't ready");
        assert_eq!(decided(json!({}), &[pod(0, "new", true)]), (vec![1], vec![]));
        let all = [pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)];
        assert_eq!(decided(json!({"replicas": 1}), &all), gone(&["s-2"]));
        let parallel = json!({"podManagementPolicy": "Parallel"});
        assert_eq!(decided(parallel, &[]), (vec![0, 1, 2], vec![]));
    }

    #[test]
    fn an_exchange_goes_from_the_last_to_the_partition() {
        let old = [pod(0, "old", true), pod(1, "old", true), pod(2, "old", true)];
        assert_eq!(decided(json!({}), &old), gone(&["s-2"]));
        let half = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", true)];
        assert_eq!(decided(json!({}), &half), gone(&["s-1"]));
        let partition = json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}});
        assert_eq!(decided(partition, &half), gone(&[]));
        let on_delete = json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}});
        assert_eq!(decided(on_delete, &old), gone(&[]));
    }
}
