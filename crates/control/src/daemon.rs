//! One pod of a DaemonSet on each node that it is meant for: observe, decide, write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::deployment::share;
use crate::owned::{REVISION, forget_revisions, make_all, owners_with, pod_of, remove_all, revise};
use crate::pods;
use crate::queue::Done;
use crate::replicaset::decide::is_available;
use crate::scheduler::{Tolerance, matches_node, tolerance};
use crate::wake::controller;

const SOURCE: &str = "daemonset-controller";
/// The annotation that `apps/v1` has for the number of the template.
const GENERATION: &str = "deprecated.daemonset.template.generation";
const TEMPLATE_GENERATION: &str = "pod-template-generation";
/// What stays away from other pods, and not from these (`AddOrUpdateDaemonPodTolerations`).
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// What to do.
#[derive(Debug, Default)]
struct Decision {
    /// The nodes that get a pod.
    create: Vec<String>,
    delete: Vec<Arc<Pod>>,
    status: DaemonSetStatus,
}

/// The node that a pod is on, or is made for.
fn target(pod: &Pod) -> Option<String> {
    if let Some(node) = pods::node_name(pod) {
        return Some(node.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first().cloned())
}

/// Whether a pod like this may start on a node, and whether one that is there may stay.
fn wants(pod: &Pod, node: &Node) -> (bool, bool) {
    if !matches_node(pod, node) {
        return (false, false);
    }
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let (mut run, mut stay) = (true, true);
    for taint in taints.filter(|taint| matches!(tolerance(pod, taint), Tolerance::No)) {
        run &= taint.effect == "PreferNoSchedule";
        stay &= taint.effect != "NoExecute";
    }
    (run, stay)
}

/// Decides. `own` are the set's pods, `pod` is what a new one looks like, `revision` what it is made of.
fn decide(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    own: &[Arc<Pod>],
    pod: &Pod,
    revision: &str,
    now: Timestamp,
) -> Decision {
    let mut decision = Decision::default();
    let Some(spec) = &set.spec else { return decision };
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut on: BTreeMap<String, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in own {
        if let Some(node) = target(pod) {
            on.entry(node).or_default().push(pod);
        }
    }
    let updated = |pod: &Pod| pod.labels().get(REVISION).is_some_and(|hash| hash == revision);
    let rolling = spec.update_strategy.as_ref().filter(|s| s.type_.as_deref() != Some("OnDelete"));
    let bounds = rolling.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let names: BTreeSet<String> = nodes.iter().map(|node| node.name_any()).collect();
    let mut wanted: Vec<(&Arc<Node>, Vec<&Arc<Pod>>)> = Vec::new();
    let status = &mut decision.status;
    for node in nodes {
        let here = on.remove(&node.name_any()).unwrap_or_default();
        let (run, stay) = wants(pod, node);
        let active: Vec<_> = here.iter().copied().filter(|pod| pods::is_active(pod)).collect();
        if !run {
            status.number_misscheduled += i32::from(!active.is_empty());
            if !stay {
                decision.delete.extend(active.into_iter().cloned());
            }
            continue;
        }
        status.desired_number_scheduled += 1;
        if !active.is_empty() {
            status.current_number_scheduled += 1;
        }
        let best = active.iter().find(|pod| pods::is_ready(pod)).or(active.first());
        if let Some(best) = best {
            status.number_ready += i32::from(pods::is_ready(best));
            let available = active.iter().any(|pod| is_available(pod, min_ready, now));
            *status.number_available.get_or_insert(0) += i32::from(available);
            *status.updated_number_scheduled.get_or_insert(0) +=
                i32::from(active.iter().any(|pod| updated(pod)));
        }
        // A pod that has failed makes room for the next; one that is going is waited for.
        decision.delete.extend(
            here.iter()
                .filter(|p| pods::phase(p) == "Failed" && !pods::is_terminating(p))
                .map(|p| Arc::clone(p)),
        );
        if here.is_empty() {
            decision.create.push(node.name_any());
        } else {
            wanted.push((node, active));
        }
    }
    // Pods on nodes that are gone are the node controller's; pods that wait for one have nowhere to go.
    for (node, left) in on {
        if !names.contains(&node) {
            decision.delete.extend(left.into_iter().filter(|pod| pods::node_name(pod).is_none()).cloned());
        }
    }
    let desired = status.desired_number_scheduled;
    let missing = desired - status.number_available.unwrap_or(0);
    status.number_unavailable = Some(missing).filter(|n| *n > 0);
    if rolling.is_some() {
        let of =
            |value: &Option<IntOrString>, or: i32| value.as_ref().map_or(or, |v| share(v, desired, true));
        roll(
            &mut decision,
            &wanted,
            of(&bounds.max_unavailable, 1),
            of(&bounds.max_surge, 0),
            missing,
            &updated,
            &|pod: &Pod| is_available(pod, min_ready, now),
        );
    }
    decision
}

/// Exchanges old pods for new ones: no more than `most` may be missing; with a surge, the new comes before the old goes.
#[allow(clippy::too_many_arguments)]
fn roll(
    decision: &mut Decision,
    nodes: &[(&Arc<Node>, Vec<&Arc<Pod>>)],
    most: i32,
    surge: i32,
    missing: i32,
    updated: &dyn Fn(&Pod) -> bool,
    available: &dyn Fn(&Pod) -> bool,
) {
    let mut room = most - missing;
    let mut doubled = i32::try_from(nodes.iter().filter(|(_, pods)| pods.len() > 1).count()).unwrap_or(0);
    for (node, here) in nodes {
        let old: Vec<_> = here.iter().filter(|pod| !updated(pod)).collect();
        let new = here.iter().find(|pod| updated(pod));
        for (i, pod) in old.iter().enumerate() {
            if surge > 0 {
                // The old one goes when the new one answers, or when it doesn't answer itself.
                if new.is_some_and(|new| available(new)) || (new.is_some() && !available(pod)) {
                    decision.delete.push(Arc::clone(pod));
                } else if new.is_none() && i == 0 && doubled < surge {
                    doubled += 1;
                    decision.create.push(node.name_any());
                }
            } else if !available(pod) {
                decision.delete.push(Arc::clone(pod));
            } else if room > 0 {
                room -= 1;
                decision.delete.push(Arc::clone(pod));
            }
        }
    }
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(set) = cluster.find::<DaemonSet>(key) else { return Ok(Done::Settled) };
    let Some(spec) = set.spec.as_ref().filter(|_| set.metadata.deletion_timestamp.is_none()) else {
        return Ok(Done::Settled);
    };
    let uid = set.uid().unwrap_or_default();
    let all = cluster.select::<Pod>(&key.namespace, |pod| match controller(pod) {
        Some(owner) => owner.uid == uid,
        None => pods::is_active(pod) && pods::matches(&Some(&spec.selector), pod.labels()),
    });
    let (own, stray): (Vec<_>, Vec<_>) = all.into_iter().partition(|pod| controller(pod.as_ref()).is_some());
    for pod in &stray {
        if !cluster.stays(set.as_ref()).await? {
            return Ok(Done::Failed);
        }
        let owners = owners_with(pod.as_ref(), set.as_ref());
        cluster.patch(pod.as_ref(), json!({"metadata": {"ownerReferences": owners}})).await?;
    }
    let (revision, revisions) = revise(cluster, set.as_ref(), &spec.template, REVISION).await?;
    let hash = revision.labels().get(REVISION).cloned().unwrap_or_default();
    let pattern = pattern(&set, &hash);
    let nodes = cluster.all::<Node>(|node| node.metadata.deletion_timestamp.is_none());
    let now = Timestamp::now();
    let mut decision = decide(&set, &nodes, &own, &pattern, &hash, now);
    let removed = remove_all(cluster, set.as_ref(), SOURCE, &decision.delete).await;
    let wanted: Vec<Pod> = decision.create.iter().map(|node| bound_to(&pattern, node)).collect();
    let made = make_all(cluster, set.as_ref(), SOURCE, &wanted).await;
    let old = set.status.clone().unwrap_or_default();
    decision.status.observed_generation = set.metadata.generation;
    decision.status.collision_count = old.collision_count;
    decision.status.conditions = old.conditions.clone();
    if decision.status != old {
        let mut changed = DaemonSet::clone(&set);
        changed.status = Some(decision.status.clone());
        cluster.replace_status(&changed).await?;
    }
    removed?;
    made?;
    let name = set.name_any();
    let in_use: Vec<String> = own
        .iter()
        .filter_map(|pod| Some(format!("{name}-{}", pod.labels().get(REVISION)?)))
        .chain([revision.name_any()])
        .collect();
    let in_use: Vec<&str> = in_use.iter().map(String::as_str).collect();
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    forget_revisions(cluster, &revisions, &in_use, limit).await?;
    let waits = spec.min_ready_seconds.unwrap_or(0) > 0
        && own
            .iter()
            .any(|pod| pods::is_ready(pod) && !is_available(pod, spec.min_ready_seconds.unwrap_or(0), now));
    Ok(if waits { Done::Again(std::time::Duration::from_secs(1)) } else { Done::Settled })
}

/// A new pod, but for its node.
fn pattern(set: &DaemonSet, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = pod_of(&template, set);
    pod.metadata.generate_name = Some(format!("{}-", set.name_any()));
    let generation = set.annotations().get(GENERATION).cloned().unwrap_or_else(|| "1".into());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION.to_owned(), hash.to_owned());
    labels.insert(TEMPLATE_GENERATION.to_owned(), generation);
    if let Some(spec) = &mut pod.spec {
        let mut tolerated = TOLERATED.to_vec();
        if spec.host_network == Some(true) {
            tolerated.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
        }
        let all = spec.tolerations.get_or_insert_default();
        for (key, effect) in tolerated {
            all.push(Toleration {
                key: Some(key.into()),
                operator: Some("Exists".into()),
                effect: Some(effect.into()),
                ..Toleration::default()
            });
        }
    }
    pod
}

/// The same, for one node: the scheduler binds it there.
fn bound_to(pattern: &Pod, node: &str) -> Pod {
    let mut pod = pattern.clone();
    let field = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    if let Some(spec) = &mut pod.spec {
        let affinity = spec.affinity.get_or_insert_with(Affinity::default);
        let nodes = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
        let required = nodes
            .required_during_scheduling_ignored_during_execution
            .get_or_insert_with(NodeSelector::default);
        if required.node_selector_terms.is_empty() {
            required.node_selector_terms.push(NodeSelectorTerm::default());
        }
        for term in &mut required.node_selector_terms {
            term.match_fields = Some(vec![field.clone()]);
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn set(strategy: Value) -> DaemonSet {
        let object = json!({"metadata": {"name": "d", "uid": "d", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": strategy,
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}});
        serde_json::from_value(object).expect("a set")
    }

    fn node(name: &str, taints: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}}))
                .expect("a node"),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let object = json!({"metadata": {"name": name, "uid": name, "labels": {REVISION: hash}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}});
        Arc::new(serde_json::from_value(object).expect("a pod"))
    }

    fn decided(strategy: Value, nodes: &[Arc<Node>], own: &[Arc<Pod>]) -> Decision {
        let set = set(strategy);
        decide(
            &set,
            nodes,
            own,
            &pattern(&set, "new"),
            "new",
            "2026-01-01T00:00:00Z".parse().expect("a time"),
        )
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn each_node_that_is_meant_has_one_pod() {
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        let nodes = [
            node("a", json!([])),
            node("b", taint("node.kubernetes.io/unschedulable", "NoSchedule")),
            node("c", taint("mine", "NoSchedule")),
            node("d", taint("mine", "NoExecute")),
        ];
        let own = [pod("pa", "a", "new", true), pod("pc", "c", "new", true), pod("pd", "d", "new", true)];
        let decision = decided(json!({"type": "OnDelete"}), &nodes, &own);
        assert_eq!(decision.create, ["b"]);
        assert_eq!(
            names(&decision.delete),
            ["pd"],
            "what may not start may stay, unless the taint drives it out"
        );
        let status = decision.status;
        assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (2, 1));
        assert_eq!(status.number_misscheduled, 2);
    }

    #[test]
    fn no_more_pods_are_exchanged_at_once_than_may_be_missing() {
        let nodes = [node("a", json!([])), node("b", json!([])), node("c", json!([]))];
        let own = [pod("pa", "a", "old", true), pod("pb", "b", "old", true), pod("pc", "c", "old", true)];
        let rolling = |unavailable: i32, surge: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}});
        assert_eq!(names(&decided(rolling(1, 0), &nodes, &own).delete), ["pa"]);
        assert_eq!(names(&decided(rolling(2, 0), &nodes, &own).delete), ["pa", "pb"]);
        let surged = decided(rolling(0, 1), &nodes, &own);
        assert_eq!((surged.create, surged.delete.len()), (vec!["a".to_owned()], 0));
        let both = [own[0].clone(), pod("na", "a", "new", true), own[1].clone(), own[2].clone()];
        assert_eq!(names(&decided(rolling(0, 1), &nodes, &both).delete), ["pa"]);
        let dead = [pod("pa", "a", "old", false), own[1].clone(), own[2].clone()];
        assert_eq!(
            names(&decided(rolling(1, 0), &nodes, &dead).delete),
            ["pa"],
            "what doesn't answer goes first"
        );
    }
}
