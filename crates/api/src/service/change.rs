//! What a changed Service keeps of the stored one, and what it loses with its type.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{externally_accessible, needs_health_port, needs_node_port, type_of};
use crate::walk;

/// Whatever isn't an alias has addresses, also what has a type that isn't known.
fn may_have_address(service: &Value) -> bool {
    type_of(service) != "ExternalName"
}

/// Whether ports on the nodes are drawn for the Service.
pub(super) fn draws_node_ports(service: &Value) -> bool {
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => walk::flag(service, "spec.allocateLoadBalancerNodePorts").unwrap_or(true),
        _ => false,
    }
}

fn same(new: &Value, old: &Value, path: &str) -> bool {
    walk::at(new, path) == walk::at(old, path)
}

/// Re-applying a manifest without allocated values keeps them (registry/core/service/storage, `patchAllocatedValues`).
pub(super) fn patch_from_old(new: &mut Value, old: &Value) {
    if may_have_address(old) && may_have_address(new) {
        if walk::text(new, "spec.clusterIP").is_empty()
            && let Some(ip) = walk::at(old, "spec.clusterIP")
        {
            // With the plural given alone, the client has said what it wants; that it leaves out the singular is a
            // finding of the checks.
            walk::set(new, "spec.clusterIP", ip.clone());
        }
        if walk::list(new, "spec.clusterIPs").is_empty()
            && let Some(ips) = walk::at(old, "spec.clusterIPs")
        {
            walk::set(new, "spec.clusterIPs", ips.clone());
        }
    }
    if draws_node_ports(old) && draws_node_ports(new) {
        let numbers = |service: &Value| -> Vec<i64> {
            walk::list(service, "spec.ports")
                .iter()
                .filter_map(|p| walk::int(p, "nodePort"))
                .filter(|n| *n != 0)
                .collect()
        };
        let wanted = numbers(new);
        let used: Vec<i64> = numbers(old).into_iter().filter(|n| wanted.contains(n)).collect();
        // A port is the same port if it has the same name, whatever else changed.
        for port in walk::list_mut(new, "spec.ports") {
            if walk::int(port, "nodePort").unwrap_or(0) != 0 {
                continue;
            }
            let before = walk::list(old, "spec.ports")
                .iter()
                .rfind(|p| walk::text(p, "name") == walk::text(port, "name"))
                .and_then(|p| walk::int(p, "nodePort"))
                .filter(|n| *n != 0 && !used.contains(n));
            if let Some(number) = before {
                walk::set(port, "nodePort", number);
            }
        }
    }
    if needs_health_port(old)
        && needs_health_port(new)
        && walk::int(new, "spec.healthCheckNodePort").unwrap_or(0) == 0
        && let Some(number) = walk::at(old, "spec.healthCheckNodePort")
    {
        walk::set(new, "spec.healthCheckNodePort", number.clone());
    }
}

/// A client that knows only the singular seeds the plural.
pub(super) fn seed_plural(service: &mut Value) {
    let ip = walk::text(service, "spec.clusterIP").to_owned();
    if !ip.is_empty() && walk::list(service, "spec.clusterIPs").is_empty() {
        walk::set(service, "spec.clusterIPs", json!([ip]));
    }
}

/// A client that knows only the singular changes the plural with it (`normalizeClusterIPs`).
pub(super) fn agree(new: &mut Value, old: &Value) {
    let (now, before) = (walk::text(new, "spec.clusterIP").to_owned(), walk::text(old, "spec.clusterIP"));
    if now == before {
        if walk::list(new, "spec.clusterIPs").is_empty()
            && let Some(ips) = walk::at(old, "spec.clusterIPs")
        {
            walk::set(new, "spec.clusterIPs", ips.clone());
        }
    } else if same(new, old, "spec.clusterIPs") {
        if now.is_empty() {
            walk::remove(new, "spec.clusterIPs");
        } else {
            walk::set(new, "spec.clusterIPs", json!([now]));
        }
    }
}

/// What the new type does not need goes, if the client left it as it was; what the client set stays and is checked
/// (`dropTypeDependentFields`). The selector always stays.
pub(super) fn wipe(new: &mut Value, old: &Value) {
    let wipe_if_same = |new: &mut Value, path: &str| {
        if same(new, old, path) {
            walk::remove(new, path);
        }
    };
    if may_have_address(old) && !may_have_address(new) {
        if same(new, old, "spec.clusterIP") && same(new, old, "spec.clusterIPs") {
            walk::remove(new, "spec.clusterIP");
            walk::remove(new, "spec.clusterIPs");
        }
        wipe_if_same(new, "spec.ipFamilies");
        wipe_if_same(new, "spec.ipFamilyPolicy");
    }
    if needs_node_port(old) && !needs_node_port(new) {
        let ports = |service: &Value| -> BTreeSet<i64> {
            let numbers = walk::list(service, "spec.ports").iter().filter_map(|p| walk::int(p, "nodePort"));
            numbers.filter(|number| *number != 0).collect()
        };
        // Ports may come and go, as long as none has a number that wasn't there (`sameNodePorts`).
        if ports(new).is_subset(&ports(old)) {
            for port in walk::list_mut(new, "spec.ports") {
                walk::remove(port, "nodePort");
            }
        }
    }
    if needs_health_port(old) && !needs_health_port(new) {
        wipe_if_same(new, "spec.healthCheckNodePort");
    }
    if type_of(old) == "LoadBalancer" && type_of(new) != "LoadBalancer" {
        wipe_if_same(new, "spec.allocateLoadBalancerNodePorts");
        wipe_if_same(new, "spec.loadBalancerClass");
    }
    if externally_accessible(old) && !externally_accessible(new) {
        wipe_if_same(new, "spec.externalTrafficPolicy");
    }
}
