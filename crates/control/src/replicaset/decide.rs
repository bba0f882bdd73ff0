//! What a ReplicaSet does about the pods it sees.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rank;
use crate::pods;
use crate::wake::controller;

/// What to do.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Decision {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
    /// The set's own active pods, before any of this.
    pub observed: Vec<Arc<Pod>>,
    /// How many of its own are on their way out.
    pub terminating: usize,
    /// When a pod that is ready will count as available.
    pub again: Option<Duration>,
}

/// Decides. `seen` are the pods that the set owns or could adopt, `related` those of its siblings too.
pub(crate) fn decide(set: &ReplicaSet, seen: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(spec) = &set.spec else { return decision };
    let going = set.metadata.deletion_timestamp.is_some();
    for pod in seen {
        let owned = controller(pod.as_ref()).is_some();
        let matching = pods::matches(&Some(&spec.selector), pod.labels());
        match (owned, matching) {
            (true, true) if pods::is_active(pod) => decision.observed.push(pod.clone()),
            (true, true) if !pods::is_terminal(pod) => decision.terminating += 1,
            (true, true) => {}
            (true, false) if !going && !pods::is_terminating(pod) => decision.release.push(pod.clone()),
            (false, true) if !going && pods::is_active(pod) => {
                decision.adopt.push(pod.clone());
                decision.observed.push(pod.clone());
            }
            _ => {}
        }
    }
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    if !going {
        decision.create = wanted.saturating_sub(decision.observed.len());
        let excess = decision.observed.len().saturating_sub(wanted);
        if excess > 0 {
            let mut ranked = decision.observed.clone();
            rank::order(&mut ranked, related, now);
            ranked.truncate(excess);
            decision.delete = ranked;
        }
    }
    decision.again = next_available(&decision.observed, spec.min_ready_seconds.unwrap_or(0), now);
    decision
}

/// Whether the pod has been ready for long enough.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    match pods::ready_since(pod) {
        _ if !pods::is_ready(pod) => false,
        _ if min_ready_seconds <= 0 => true,
        None => false,
        Some(since) => now.as_second() - since.as_second() >= i64::from(min_ready_seconds),
    }
}

fn next_available(pods: &[Arc<Pod>], min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    pods.iter()
        .filter(|pod| !is_available(pod, min_ready_seconds, now))
        .filter_map(|pod| pods::ready_since(pod))
        .map(|since| since.as_second() + i64::from(min_ready_seconds) - now.as_second())
        .min()
        .map(|seconds| Duration::from_secs(seconds.max(1).unsigned_abs()))
}

/// The status that these pods mean, if it is not what the set says already. How many are `terminating` not every kind tells.
pub(crate) fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    terminating: Option<usize>,
    failure: Option<&str>,
    now: Timestamp,
) -> Option<ReplicaSetStatus> {
    let spec = set.spec.as_ref()?;
    let old = set.status.clone().unwrap_or_default();
    let count = |wanted: &dyn Fn(&Pod) -> bool| -> i32 {
        i32::try_from(pods.iter().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX)
    };
    let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref());
    let template = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let failed = conditions.iter().position(|condition| condition.type_ == "ReplicaFailure");
    match (failure, failed) {
        (Some(message), None) => conditions.push(ReplicaSetCondition {
            last_transition_time: Some(Time(now)),
            message: Some(message.to_owned()),
            reason: Some("FailedCreate".to_owned()),
            status: "True".to_owned(),
            type_: "ReplicaFailure".to_owned(),
        }),
        (None, Some(at)) => {
            conditions.remove(at);
        }
        _ => {}
    }
    let status = ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: Some(count(&|pod| {
            template.iter().all(|(name, value)| pod.labels().get(name) == Some(value))
        })),
        ready_replicas: Some(count(&pods::is_ready)),
        available_replicas: Some(count(&|pod| is_available(pod, min_ready, now))),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
        terminating_replicas: terminating.map(|count| i32::try_from(count).unwrap_or(i32::MAX)),
    };
    let numbers = |status: &ReplicaSetStatus| {
        (
            status.replicas,
            status.fully_labeled_replicas.unwrap_or(0),
            status.ready_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
            status.observed_generation.unwrap_or(0),
            status.terminating_replicas,
            status.conditions.clone().unwrap_or_default(),
        )
    };
    (set.status.is_none() || numbers(&status) != numbers(&old)).then_some(status)
}

/// The pod that the set makes.
pub(crate) fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// The reference that makes a pod belong to the set.
pub(crate) fn owner_reference(set: &ReplicaSet) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".into(),
        kind: "ReplicaSet".into(),
        name: set.name_any(),
        uid: set.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
