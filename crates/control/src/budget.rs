//! How many pods of a PodDisruptionBudget may be taken away: observe, decide, write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::deployment::share;
use crate::pods;
use crate::queue::Done;
use crate::recorder::Severity;
use crate::wake::controller;

/// The disruption controller's events have no other name in Kubernetes.
const SOURCE: &str = "controllermanager";
/// A pod that was evicted and is still there after so long was not evicted (`DeletionTimeout`).
const EVICTED_S: i64 = 120;

/// Whether a budget covers a pod. An empty selector covers all pods of the namespace, none covers none.
pub(crate) fn covers(budget: &PodDisruptionBudget, labels: &BTreeMap<String, String>) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    selector.is_some_and(|s| Selector::try_from(s).is_ok_and(|s| s.matches(labels)))
}

/// Decides. `expected` is how many pods their owners want together; none: it can't be said, and the text tells why.
fn decide(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    expected: std::result::Result<i32, String>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let spec = budget.spec.clone().unwrap_or_default();
    let count = i32::try_from(covered.len()).unwrap_or(i32::MAX);
    let by_number = matches!(spec.min_available, Some(IntOrString::Int(_)));
    let (expected, failure) = match expected {
        _ if by_number => (count, None),
        Ok(expected) => (expected, None),
        Err(why) => (0, Some(why)),
    };
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (expected - share(most, expected, true)).max(0),
        (None, Some(least)) => share(least, expected, true),
        (None, None) => 0,
    };
    let mut evicted = old.disrupted_pods.clone().unwrap_or_default();
    evicted.retain(|name, at| {
        let there = covered.iter().any(|p| p.name_any() == *name && !pods::is_terminating(p));
        there && now.as_second() - at.0.as_second() < EVICTED_S
    });
    let healthy = covered.iter().filter(|pod| {
        pods::is_ready(pod) && !pods::is_terminating(pod) && !evicted.contains_key(&pod.name_any())
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 || failure.is_some() { 0 } else { (healthy - desired).max(0) };
    let (yes, reason, message) = match (&failure, allowed > 0) {
        (Some(why), _) => ("False", "SyncFailed", why.clone()),
        (None, true) => ("True", "SufficientPods", String::new()),
        (None, false) => ("False", "InsufficientPods", String::new()),
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let known = conditions.iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = known.filter(|c| c.status == yes).map_or(Time(now), |c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != "DisruptionAllowed");
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: yes.into(),
        reason: reason.into(),
        message,
        last_transition_time: since,
        observed_generation: budget.metadata.generation,
    });
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: (!evicted.is_empty()).then_some(evicted),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    }
}

/// How many pods the owners of these want together.
fn scale(cluster: &Cluster, covered: &[Arc<Pod>]) -> std::result::Result<i32, String> {
    let mut seen = BTreeSet::new();
    let mut total = 0;
    for pod in covered {
        // A pod without a controller counts as the one that it is.
        let Some(owner) = controller(pod.as_ref()) else { continue };
        if !seen.insert(owner.uid.clone()) {
            continue;
        }
        let namespace = pod.namespace().unwrap_or_default();
        let wanted = match owner.kind.as_str() {
            "ReplicaSet" => cluster.get::<ReplicaSet>(&namespace, &owner.name).map(|set| {
                let above = controller(set.as_ref()).filter(|above| above.kind == "Deployment");
                match above {
                    Some(above) if !seen.insert(above.uid.clone()) => 0,
                    Some(above) => cluster
                        .get::<Deployment>(&namespace, &above.name)
                        .and_then(|d| d.spec.as_ref()?.replicas)
                        .unwrap_or(0),
                    None => set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0),
                }
            }),
            "ReplicationController" => cluster
                .get::<ReplicationController>(&namespace, &owner.name)
                .map(|rc| rc.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)),
            "StatefulSet" => cluster
                .get::<StatefulSet>(&namespace, &owner.name)
                .map(|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)),
            other => {
                let text = format!("{other}.{} does not implement the scale subresource", owner.api_version);
                return Err(text);
            }
        };
        let none = || format!("found no controllers for pod {:?}", pod.name_any());
        total += wanted.ok_or_else(none)?;
    }
    Ok(total)
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(budget) = cluster.find::<PodDisruptionBudget>(key) else { return Ok(Done::Settled) };
    let covered =
        cluster.select::<Pod>(&key.namespace, |pod| !pods::is_terminal(pod) && covers(&budget, pod.labels()));
    if covered.is_empty() {
        cluster.recorder.note(budget.as_ref(), SOURCE, Severity::Normal, "NoPods", "No matching pods found");
    }
    let status = decide(&budget, &covered, scale(cluster, &covered), Timestamp::now());
    let again = status.disrupted_pods.is_some().then(|| Duration::from_secs(EVICTED_S.unsigned_abs()));
    if Some(&status) != budget.status.as_ref() {
        let mut changed = PodDisruptionBudget::clone(&budget);
        changed.status = Some(status);
        cluster.replace_status(&changed).await?;
    }
    Ok(again.map_or(Done::Settled, Done::Again))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn decided(spec: Value, ready: usize, expected: i32) -> (i32, i32, i32) {
        let budget = json!({"metadata": {"name": "b", "generation": 1}, "spec": spec});
        let budget: PodDisruptionBudget = serde_json::from_value(budget).expect("a budget");
        let pod = |at: usize| {
            let status = if at < ready { "True" } else { "False" };
            let object = json!({"metadata": {"name": format!("p{at}")},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}});
            Arc::new(serde_json::from_value::<Pod>(object).expect("a pod"))
        };
        let pods: Vec<_> = (0..4).map(pod).collect();
        let status = decide(&budget, &pods, Ok(expected), "2026-01-01T00:00:00Z".parse().expect("a time"));
        {
            let of = |n: Option<i32>| n.unwrap_or(-1);
            (of(status.disruptions_allowed), of(status.desired_healthy), of(status.current_healthy))
        }
    }

    #[test]
    fn so_many_pods_may_go_as_are_more_than_must_stay() {
        assert_eq!(decided(json!({"minAvailable": 3}), 4, 0), (1, 3, 4));
        assert_eq!(decided(json!({"minAvailable": 3}), 2, 0), (0, 3, 2));
        assert_eq!(decided(json!({"minAvailable": "50%"}), 4, 5), (1, 3, 4), "shares are rounded up");
        assert_eq!(decided(json!({"maxUnavailable": 1}), 4, 4), (1, 3, 4));
        assert_eq!(decided(json!({"maxUnavailable": "100%"}), 4, 4), (4, 0, 4));
    }
}
