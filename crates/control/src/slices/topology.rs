//! Topology hints that a Service asks for by `service.kubernetes.io/topology-mode: Auto`: each zone is to have as large a part of
//! the endpoints as it has of the processors, and nearly all of its own. Pure.
//!
//! The bounds are those of Kubernetes (endpointslice's topologycache); which endpoints are given away depends here on nothing but
//! the endpoints there are, so that nothing has to be remembered.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use kube::ResourceExt;
use portolan_api::quantity::Quantity;

use super::ZONE;

/// Annotations that ask for topology hints by themselves and silence `trafficDistribution`; the older one last.
pub(super) const ANNOTATIONS: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
/// The part of the cluster's processors that each zone has. Empty if they can't be told, or if there is but one zone.
pub type Shares = BTreeMap<String, f64>;

/// A zone may have so many times the load that its processors stand for (`overloadThreshold`).
const OVERLOAD: f64 = 1.2;

/// Whether a Service wants hints by its zones' sizes.
pub(crate) fn wanted(service: &Service) -> bool {
    let auto =
        |name: &&str| service.annotations().get(*name).is_some_and(|mode| mode.eq_ignore_ascii_case("auto"));
    ANNOTATIONS.iter().any(auto)
}

/// What of a node counts: its zone and its processors, if it takes pods.
pub(crate) fn size(node: &Node) -> Option<(Option<&str>, Quantity)> {
    let labels = node.labels();
    let control = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
    if control.iter().any(|label| labels.contains_key(*label)) {
        return None;
    }
    let status = node.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    if !ready {
        return None;
    }
    let processors = status.allocatable.as_ref().and_then(|all| all.get("cpu"));
    let processors =
        processors.and_then(|amount| Quantity::parse(&amount.0)).unwrap_or_else(|| Quantity::whole(0));
    Some((labels.get(ZONE).map(String::as_str), processors))
}

/// The zones' parts. One node that doesn't say where it is, or what it has, and nothing is known of any.
pub fn shares(nodes: &[Arc<Node>]) -> Shares {
    let mut sizes: BTreeMap<String, f64> = BTreeMap::new();
    for (zone, processors) in nodes.iter().filter_map(|node| size(node)) {
        match zone {
            Some(zone) if !processors.is_zero() => {
                *sizes.entry(zone.to_owned()).or_default() += processors.ratio(Quantity::whole(1));
            }
            _ => return Shares::new(),
        }
    }
    if sizes.len() < 2 {
        return Shares::new();
    }
    let all: f64 = sizes.values().sum();
    sizes.values_mut().for_each(|size| *size /= all);
    sizes
}

/// Which zone each endpoint is for, given the zones that they are in; none where they are too few to be told apart fairly.
pub(super) fn assign(own: &[&str], shares: &Shares) -> Option<Vec<String>> {
    if shares.len() < 2 || shares.len() > own.len() {
        return None;
    }
    let total = own.len() as f64;
    let least: BTreeMap<&str, f64> =
        shares.iter().map(|(zone, share)| (zone.as_str(), (share * total / OVERLOAD).ceil())).collect();
    if least.values().sum::<f64>() > total {
        return None;
    }
    let due = |zone: &str| (shares[zone] * total).max(least[zone]);
    let mut zones: Vec<&str> = own.to_vec();
    let have = |zones: &[&str], zone: &str| zones.iter().filter(|one| **one == zone).count() as f64;
    loop {
        let lack = |zones: &[&str], zone: &str| due(zone) - have(zones, zone);
        let poor = |zone: &&str| lack(&zones, zone) >= 1.0 || have(&zones, zone) < least[*zone];
        let rich = |zone: &&str| lack(&zones, zone) < 0.0 && have(&zones, zone) > least[*zone];
        let by_lack = |one: &&str, other: &&str| lack(&zones, one).total_cmp(&lack(&zones, other));
        let names = || shares.keys().map(String::as_str);
        let taker = names().filter(poor).max_by(by_lack);
        let giver = names().filter(rich).min_by(by_lack);
        let (Some(taker), Some(giver)) = (taker, giver) else { break };
        let at = zones.iter().rposition(|zone| *zone == giver)?;
        zones[at] = taker;
    }
    Some(zones.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, zone: Option<&str>, cpu: &str, ready: &str) -> Arc<Node> {
        let mut node = json!({
            "metadata": {"name": name, "labels": {}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]}
        });
        if let Some(zone) = zone {
            node["metadata"]["labels"][ZONE] = json!(zone);
        }
        Arc::new(serde_json::from_value(node).expect("a Node"))
    }

    fn parts(list: &[(&str, f64)]) -> Shares {
        list.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect()
    }

    #[test]
    fn a_zones_part_is_that_of_its_ready_nodes_processors() {
        let nodes = [
            node("a", Some("z1"), "2", "True"),
            node("b", Some("z1"), "1", "True"),
            node("c", Some("z2"), "1000m", "True"),
            node("down", Some("z3"), "64", "False"),
        ];
        assert_eq!(shares(&nodes), parts(&[("z1", 0.75), ("z2", 0.25)]));
        assert!(shares(&nodes[..2]).is_empty(), "one zone is none");
        let mut lost = nodes.to_vec();
        lost.push(node("nowhere", None, "1", "True"));
        assert!(shares(&lost).is_empty(), "who knows where that one is");
        lost[4] = node("empty", Some("z2"), "0", "True");
        assert!(shares(&lost).is_empty());
    }

    #[test]
    fn each_zone_gets_its_part_and_keeps_its_own_endpoints() {
        let three = parts(&[("a", 1.0 / 3.0), ("b", 1.0 / 3.0), ("c", 1.0 / 3.0)]);
        assert_eq!(assign(&["a", "b", "c"], &three).expect("enough"), ["a", "b", "c"]);
        assert_eq!(assign(&["a", "a", "a"], &three).expect("enough"), ["a", "b", "c"]);
        assert_eq!(assign(&["a", "b"], &three), None, "fewer endpoints than zones");
        assert_eq!(assign(&["a", "b", "c", "c"], &three), None, "somebody would have twice the load");
        let uneven = parts(&[("a", 0.75), ("b", 0.25)]);
        let zones = assign(&["a", "b", "b", "b", "a", "b", "b", "b"], &uneven).expect("enough");
        assert_eq!(zones.iter().filter(|zone| *zone == "a").count(), 6);
        assert_eq!(zones[..5], ["a", "b", "b", "a", "a"]);
    }
}
