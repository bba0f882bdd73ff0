//! Which node a pod goes to: the fewest siblings, then the fewest pods, then the first by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, Taint,
};
use kube::ResourceExt;

use crate::pods;
use crate::wake::controller;

/// How many pods fit on a node that does not say (the kubelet's default).
const CAPACITY: i64 = 110;

/// The nodes and what is on them; each placement is remembered for the next.
pub(super) struct Board {
    nodes: Vec<Place>,
    /// The pods that keep others away, and where they are.
    avoiding: Vec<(usize, Arc<Pod>)>,
}

struct Place {
    node: Arc<Node>,
    name: String,
    capacity: i64,
    pods: Vec<Arc<Pod>>,
    siblings: HashMap<String, usize>,
}

/// Whether the pod tolerates the taint, and for how long if not for ever.
pub(crate) enum Tolerance {
    /// It does not.
    No,
    /// For so many seconds.
    Seconds(i64),
    /// For ever.
    Forever,
}

// === impl ===

impl Board {
    pub fn new(nodes: &[Arc<Node>], bound: &[Arc<Pod>]) -> Board {
        let mut places: Vec<Place> = nodes
            .iter()
            .map(|node| Place {
                name: node.name_any(),
                capacity: capacity(node),
                node: node.clone(),
                pods: Vec::new(),
                siblings: HashMap::new(),
            })
            .collect();
        places.sort_by(|a, b| a.name.cmp(&b.name));
        let mut board = Board { nodes: places, avoiding: Vec::new() };
        for pod in bound {
            if let Some(name) = pods::node_name(pod)
                && let Ok(at) = board.nodes.binary_search_by(|place| place.name.as_str().cmp(name))
            {
                board.put(at, pod);
            }
        }
        board
    }

    fn put(&mut self, at: usize, pod: &Arc<Pod>) {
        if !anti_affinity(pod).is_empty() {
            self.avoiding.push((at, pod.clone()));
        }
        self.nodes[at].put(pod.clone());
    }

    /// The node for the pod; or why there is none, in the words of kube-scheduler.
    pub fn place(&mut self, pod: &Arc<Pod>) -> Result<String, String> {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let group = group(pod);
        let mut best: Option<usize> = None;
        for at in 0..self.nodes.len() {
            if let Some(reason) = self.refusal(at, pod) {
                *reasons.entry(reason).or_default() += 1;
                continue;
            }
            let rank = |at: usize| {
                let place = &self.nodes[at];
                (place.siblings.get(&group).copied().unwrap_or(0), place.pods.len(), &place.name)
            };
            if best.is_none_or(|best| rank(at) < rank(best)) {
                best = Some(at);
            }
        }
        match best {
            Some(at) => {
                self.put(at, pod);
                Ok(self.nodes[at].name.clone())
            }
            None if self.nodes.is_empty() => Err("no nodes available to schedule pods".to_owned()),
            None => {
                let reasons: Vec<String> =
                    reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                Err(format!("0/{} nodes are available: {}.", self.nodes.len(), reasons.join(", ")))
            }
        }
    }

    fn refusal(&self, at: usize, pod: &Pod) -> Option<String> {
        let place = &self.nodes[at];
        if place.node.metadata.deletion_timestamp.is_some() {
            return Some("node(s) were being deleted".to_owned());
        }
        let node_spec = place.node.spec.as_ref();
        let cordoned = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if node_spec.is_some_and(|spec| spec.unschedulable.unwrap_or(false))
            && matches!(tolerance(pod, &cordoned), Tolerance::No)
        {
            return Some("node(s) were unschedulable".to_owned());
        }
        let taints = node_spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        for taint in taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        {
            if matches!(tolerance(pod, taint), Tolerance::No) {
                let value = taint.value.as_deref().unwrap_or_default();
                return Some(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
            }
        }
        let ready = place.node.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(
            |conditions| {
                conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
            },
        );
        if !ready {
            return Some("node(s) were not ready".to_owned());
        }
        if !matches_node(pod, &place.node) {
            return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
        }
        if i64::try_from(place.pods.len()).unwrap_or(i64::MAX) >= place.capacity {
            return Some("Too many pods".to_owned());
        }
        if ports(pod).any(|port| place.pods.iter().any(|other| ports(other).any(|taken| clash(port, taken))))
        {
            return Some("node(s) didn't have free ports for the requested pod ports".to_owned());
        }
        let ours = anti_affinity(pod);
        if ours.iter().any(|term| self.near(at, term).any(|other| avoids(term, pod, other))) {
            return Some("node(s) didn't match pod anti-affinity rules".to_owned());
        }
        let kept_away = self.avoiding.iter().any(|(there, other)| {
            let mut terms = anti_affinity(other).iter();
            terms.any(|term| {
                same_domain(&term.topology_key, &self.nodes[*there].node, &place.node)
                    && avoids(term, other, pod)
            })
        });
        if kept_away {
            return Some("node(s) didn't satisfy existing pods anti-affinity rules".to_owned());
        }
        None
    }

    /// The pods in the same topology domain as node `at`.
    fn near<'a>(&'a self, at: usize, term: &'a PodAffinityTerm) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.nodes
            .iter()
            .filter(move |place| same_domain(&term.topology_key, &place.node, &self.nodes[at].node))
            .flat_map(|place| place.pods.iter())
    }
}

impl Place {
    fn put(&mut self, pod: Arc<Pod>) {
        // Terminating pods still take room, but a replacement need not avoid them.
        if !pods::is_terminating(&pod) {
            *self.siblings.entry(group(&pod)).or_default() += 1;
        }
        self.pods.push(pod);
    }
}

/// Whose pods are spread apart: those of one controller.
fn group(pod: &Pod) -> String {
    controller(pod).map_or_else(|| format!("/{}", pod.uid().unwrap_or_default()), |owner| owner.uid.clone())
}

fn capacity(node: &Node) -> i64 {
    let status = node.status.as_ref();
    let given = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
    given.and_then(|given| given.get("pods")).and_then(|pods| pods.0.parse().ok()).unwrap_or(CAPACITY)
}

fn same_domain(key: &str, one: &Node, other: &Node) -> bool {
    match (one.labels().get(key), other.labels().get(key)) {
        (Some(one), Some(other)) => one == other,
        // A node is its own host even before it is labelled.
        _ => key == "kubernetes.io/hostname" && one.name_any() == other.name_any(),
    }
}

fn anti_affinity(pod: &Pod) -> &[PodAffinityTerm] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref())
        .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

/// Whether `pod`, which has this term, must not be near `other`.
fn avoids(term: &PodAffinityTerm, pod: &Pod, other: &Pod) -> bool {
    let namespaces = term.namespaces.as_deref().unwrap_or_default();
    let namespace = other.namespace().unwrap_or_default();
    let meant = match namespaces {
        // A selector of namespaces is read as "all": keeping apart too much harms less than too little.
        [] if term.namespace_selector.is_some() => true,
        [] => pod.namespace().unwrap_or_default() == namespace,
        listed => listed.contains(&namespace),
    };
    meant && pods::matches(&term.label_selector.as_ref(), other.labels())
}

type HostPort<'a> = (&'a str, &'a str, i32);

fn ports(pod: &Pod) -> impl Iterator<Item = HostPort<'_>> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    // Of the init containers those count that stay.
    let sidecars = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    sidecars
        .chain(spec.into_iter().flat_map(|spec| &spec.containers))
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some((
                port.host_ip.as_deref().unwrap_or("0.0.0.0"),
                port.protocol.as_deref().unwrap_or("TCP"),
                number,
            ))
        })
}

fn clash(one: HostPort<'_>, other: HostPort<'_>) -> bool {
    let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    one.1 == other.1 && one.2 == other.2 && (one.0 == other.0 || any(one.0) || any(other.0))
}

/// Whether the pod's selector and required affinity let it on the node.
pub(crate) fn matches_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut selector = spec.node_selector.iter().flatten();
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selector.all(|(name, value)| node.labels().get(name) == Some(value))
        && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| fits(term, node)))
}

fn fits(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term that asks for nothing matches nothing.
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    labels.iter().all(|wanted| holds(wanted, node.labels().get(&wanted.key).map(String::as_str)))
        && fields
            .iter()
            .all(|wanted| wanted.key == "metadata.name" && holds(wanted, node.metadata.name.as_deref()))
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let compare = || {
        let value: i64 = value?.parse().ok()?;
        let bound: i64 = values.first()?.parse().ok()?;
        Some(value.cmp(&bound))
    };
    match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare() == Some(std::cmp::Ordering::Greater),
        "Lt" => compare() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

/// How the pod takes the taint.
pub(crate) fn tolerance(pod: &Pod, taint: &Taint) -> Tolerance {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut best = Tolerance::No;
    for toleration in tolerations {
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        let value = toleration.value.as_deref().unwrap_or_default();
        let meant = (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || value == taint.value.as_deref().unwrap_or_default());
        if !meant {
            continue;
        }
        match (toleration.toleration_seconds, &best) {
            (None, _) => return Tolerance::Forever,
            // The shortest counts, as in Kubernetes.
            (Some(seconds), Tolerance::Seconds(least)) if seconds >= *least => {}
            (Some(seconds), _) => best = Tolerance::Seconds(seconds.max(0)),
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, spec: Value, labels: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": name, "labels": labels },
                "spec": spec,
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            }))
            .expect("a node"),
        )
    }

    fn pod(name: &str, owner: &str, node: &str, spec: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": { "name": name, "namespace": "n", "uid": name, "labels": { "app": owner }, "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true }] },
            "spec": { "containers": [] },
        });
        value["spec"]["nodeName"] = node.into();
        for (name, field) in spec.as_object().expect("an object") {
            value["spec"][name] = field.clone();
        }
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn three() -> Vec<Arc<Node>> {
        ["a", "b", "c"].map(|name| node(name, json!({}), json!({ "kubernetes.io/hostname": name }))).into()
    }

    #[test]
    fn pods_of_one_owner_are_spread_and_then_all_pods() {
        let bound = [pod("x", "other", "a", json!({})), pod("y", "mine", "b", json!({}))];
        let mut board = Board::new(&three(), &bound);
        let placed: Vec<String> = (0..5)
            .map(|at| board.place(&pod(&format!("p{at}"), "mine", "", json!({}))).expect("a node"))
            .collect();
        assert_eq!(placed, ["c", "a", "b", "c", "a"]);
    }

    #[test]
    fn a_pod_goes_only_where_it_may() {
        let nodes = [
            node("a", json!({ "unschedulable": true }), json!({})),
            node("b", json!({ "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] }), json!({})),
            node("c", json!({}), json!({ "disk": "ssd" })),
            node("d", json!({}), json!({})),
        ];
        let affinity = |expression: Value| {
            json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [expression] } } } })
        };
        for (spec, expected) in [
            (json!({}), Ok("c")),
            (json!({ "nodeSelector": { "disk": "ssd" } }), Ok("c")),
            (json!({ "tolerations": [{ "key": "k", "operator": "Exists" }] }), Ok("b")),
            // Whoever tolerates everything goes also where nothing new should (the scheduler's NodeUnschedulable).
            (json!({ "tolerations": [{ "operator": "Exists" }] }), Ok("a")),
            (
                affinity(json!({ "matchExpressions": [{ "key": "disk", "operator": "DoesNotExist" }] })),
                Ok("d"),
            ),
            (
                affinity(
                    json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["d"] }] }),
                ),
                Ok("d"),
            ),
            (
                json!({ "nodeSelector": { "disk": "tape" } }),
                Err("0/4 nodes are available: 2 node(s) didn't match Pod's node affinity/selector, \
                     1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable."),
            ),
        ] {
            let choice = Board::new(&nodes, &[]).place(&pod("p", "o", "", spec.clone()));
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            match (&choice, &expected) {
                (Err(got), Err(wanted)) => {
                    let parts = |text: &str| {
                        let mut parts: Vec<String> = text
                            .trim_end_matches('.')
                            .split(": ")
                            .flat_map(|part| part.split(", "))
                            .map(str::to_owned)
                            .collect();
                        parts.sort();
                        parts
                    };
                    assert_eq!(parts(got), parts(wanted));
                }
                _ => assert_eq!(choice, expected, "{spec}"),
            }
        }
    }

    #[test]
    fn anti_affinity_keeps_pods_on_different_hosts() {
        let apart = json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
            { "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "o" } } }] } } });
        let mut board = Board::new(&three(), &[]);
        let mut placed: Vec<_> = (0..3)
            .map(|at| board.place(&pod(&format!("p{at}"), "o", "", apart.clone())).expect("a node"))
            .collect();
        placed.sort();
        assert_eq!(placed, ["a", "b", "c"]);
        assert!(board.place(&pod("p3", "o", "", apart)).is_err());
        assert!(board.place(&pod("p4", "o", "", json!({}))).is_err(), "the others' wish counts too");
    }

    #[test]
    fn host_ports_are_not_shared() {
        let spec =
            json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 8080 }] }] });
        let mut board = Board::new(&three()[..1], &[]);
        assert!(board.place(&pod("p", "o", "", spec.clone())).is_ok());
        assert!(board.place(&pod("q", "o", "", spec)).is_err());
    }
}
