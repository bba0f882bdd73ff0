//! Which of a ReplicaSet's pods goes first: the order of Kubernetes (ActivePodsWithRanks).

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::pods;

/// The annotation by which a user says which pod is cheap to lose.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts `pods`, the first to be deleted first. `related` are the active pods of all sets of the same owner.
pub(crate) fn order(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for node in related.iter().filter_map(|pod| pods::node_name(pod)) {
        *on_node.entry(node).or_default() += 1;
    }
    let crowd = |pod: &Pod| pods::node_name(pod).and_then(|node| on_node.get(node).copied()).unwrap_or(0);
    pods.sort_by(|a, b| {
        let key = |pod: &Pod| {
            (
                pods::node_name(pod).is_some(),
                phase(pod),
                pods::is_ready(pod),
                cost(pod),
                // Of two on one node rather than the only one there.
                Reverse(crowd(pod)),
            )
        };
        key(a)
            .cmp(&key(b))
            .then_with(|| age(pods::ready_since(a), now).cmp(&age(pods::ready_since(b), now)))
            .then_with(|| restarts(b).cmp(&restarts(a)))
            .then_with(|| {
                let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
                age(created(a), now).cmp(&age(created(b), now))
            })
            .then_with(|| tie(a, b))
    });
}

fn phase(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    }
}

fn cost(pod: &Pod) -> i32 {
    pod.annotations().get(DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// Ages are compared by their order of magnitude (KEP-2185): among pods of about one age the choice is arbitrary, so that
/// not always the newest of several zones is taken. Unknown counts as just now.
fn age(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let seconds = since.map_or(0, |since| now.as_second() - since.as_second()).max(0).unsigned_abs();
    u64::BITS - seconds.leading_zeros()
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    statuses.unwrap_or_default().iter().map(|status| status.restart_count).max().unwrap_or(0)
}

/// Uids are random: the order is arbitrary, and the same each time.
fn tie(a: &Pod, b: &Pod) -> Ordering {
    a.uid().cmp(&b.uid()).then_with(|| a.name_any().cmp(&b.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, patch: Value) -> Arc<Pod> {
        let mut value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "containers": [], "nodeName": "n1" },
            "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" }] },
        });
        pods::overlay(&mut value, patch);
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let unready = json!([{ "type": "Ready", "status": "False" }]);
        // Each entry must go before all that follow.
        let expected = [
            pod(
                "unscheduled",
                json!({ "spec": { "nodeName": "" }, "status": { "phase": "Pending", "conditions": [] } }),
            ),
            pod("pending", json!({ "status": { "phase": "Pending", "conditions": [] } })),
            pod("unready", json!({ "status": { "conditions": unready } })),
            pod("cheap", json!({ "metadata": { "annotations": { DELETION_COST: "-5" } } })),
            pod("crowded", json!({ "spec": { "nodeName": "n2" } })),
            pod(
                "just-ready",
                json!({ "status": { "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T01:00:00Z" }] } }),
            ),
            pod(
                "restarted",
                json!({ "status": { "containerStatuses": [
                { "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 3 }] } }),
            ),
            pod("newer", json!({ "metadata": { "creationTimestamp": "2026-01-01T00:58:00Z" } })),
            pod("old", json!({})),
        ];
        let mut related: Vec<Arc<Pod>> = expected.to_vec();
        related.extend((0..9).map(|at| pod(&format!("other{at}"), json!({ "spec": { "nodeName": "n2" } }))));
        let now: Timestamp = "2026-01-01T01:00:01Z".parse().expect("a time");
        let mut pods: Vec<Arc<Pod>> = expected.iter().rev().cloned().collect();
        order(&mut pods, &related, now);
        let names = |pods: &[Arc<Pod>]| pods.iter().map(|pod| pod.name_any()).collect::<Vec<_>>();
        assert_eq!(names(&pods), names(&expected));
    }
}
