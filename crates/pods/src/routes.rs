//! The way to the pods of other nodes: their ranges, by way of their addresses.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use portolan_sys::link::{Links, Route, RouteKind};

/// Marks our routes (`RTPROT_…`): a number that no routing daemon has registered with the kernel (rtnetlink.h).
const PROTOCOL: u8 = 117;

/// Where a range's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the node with this address.
    Via(IpAddr),
    /// Nowhere: this node's own range. A pod's route is narrower; what remains belongs to no pod, and its sender is told
    /// at once.
    Unreachable,
}

/// A node's ranges: `spec.podCIDRs`, or the older `spec.podCIDR`.
pub(crate) fn pod_ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let mut texts: Vec<&String> = spec.pod_cidrs.iter().flatten().collect();
    if texts.is_empty() {
        texts.extend(&spec.pod_cidr);
    }
    texts.into_iter().filter_map(|text| text.parse::<IpNet>().ok()).map(|range| range.trunc()).collect()
}

/// A node's addresses of type InternalIP.
pub(crate) fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let internal = addresses.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
    internal.filter_map(|address| address.address.parse().ok()).collect()
}

/// The routes that a node needs, given all nodes. Of two nodes that claim one range, the one that comes first by name
/// keeps it.
pub(crate) fn wanted<'a>(own: &str, nodes: impl IntoIterator<Item = &'a Node>) -> BTreeMap<IpNet, Way> {
    let mut nodes: Vec<&Node> = nodes.into_iter().collect();
    nodes.sort_by_key(|node| &node.metadata.name);
    let mut ways = BTreeMap::new();
    for node in nodes {
        let is_own = node.metadata.name.as_deref() == Some(own);
        let addresses = internal_addresses(node);
        for range in pod_ranges(node) {
            let via = addresses.iter().find(|address| address.is_ipv4() == range.addr().is_ipv4());
            let way = if is_own { Some(Way::Unreachable) } else { via.map(|address| Way::Via(*address)) };
            if let Some(way) = way {
                ways.entry(range).or_insert(way);
            }
        }
    }
    ways
}

fn route(range: &IpNet, way: &Way) -> Route {
    let route = Route::to(range.addr(), range.prefix_len()).protocol(PROTOCOL);
    match way {
        Way::Via(address) => route.via(*address),
        Way::Unreachable => route.kind(RouteKind::Unreachable),
    }
}

/// Makes the kernel's routes equal to those wanted; touches only those that carry our mark. Returns what could not be
/// done; the others are done all the same.
pub(crate) fn apply(wanted: &BTreeMap<IpNet, Way>) -> io::Result<Vec<String>> {
    let mut links = Links::open()?;
    let existing: Vec<Route> =
        links.routes()?.into_iter().filter(|route| route.protocol == PROTOCOL).collect();
    let mut problems = Vec::new();
    for route in &existing {
        let range = IpNet::new(route.destination, route.prefix).ok();
        if range.is_none_or(|range| !wanted.contains_key(&range))
            && let Err(error) = links.delete_route(route)
        {
            problems.push(format!("remove the route to {}/{}: {error}", route.destination, route.prefix));
        }
    }
    for (range, way) in wanted {
        let wanted = route(range, way);
        let there = existing
            .iter()
            .find(|route| route.destination == wanted.destination && route.prefix == wanted.prefix);
        if there.is_some_and(|there| there.kind == wanted.kind && there.via == wanted.via) {
            continue;
        }
        // In IPv6 a route of another kind or next hop is added beside the old one instead of replacing it.
        if let Some(there) = there {
            let _ = links.delete_route(there);
        }
        if let Err(error) = links.replace_route(&wanted) {
            problems.push(format!("route to {range} ({way:?}): {error}"));
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, cidrs: &[&str], addresses: &[&str]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses}
        }))
        .expect("a Node")
    }

    #[test]
    fn each_range_leads_to_its_node_by_an_address_of_its_family() {
        let nodes = [
            node("a", &["10.1.0.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]),
            node("b", &["10.1.1.0/24", "fd00:1:0:1::/64"], &["192.0.2.2", "2001:db8::2"]),
            node("four-only", &["10.1.2.0/24", "fd00:1:0:2::/64"], &["192.0.2.3"]),
            node("thief", &["10.1.1.0/24"], &["192.0.2.9"]),
            node("new", &[], &["192.0.2.4"]),
        ];
        let range = |text: &str| text.parse::<IpNet>().expect("a range");
        let via = |text: &str| Way::Via(text.parse().expect("an address"));
        assert_eq!(
            wanted("a", &nodes),
            BTreeMap::from([
                (range("10.1.0.0/24"), Way::Unreachable),
                (range("fd00:1::/64"), Way::Unreachable),
                (range("10.1.1.0/24"), via("192.0.2.2")),
                (range("fd00:1:0:1::/64"), via("2001:db8::2")),
                (range("10.1.2.0/24"), via("192.0.2.3")),
            ])
        );
    }
}
