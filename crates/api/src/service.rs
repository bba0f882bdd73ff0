//! What a Service means before any node forwards for it: defaults, rules, and which addresses and ports it claims.

use serde_json::{Value, json};

use crate::walk;

mod allocate;
mod change;
mod validate;
mod warnings;

pub use allocate::{Allocation, Claim, Refusal, ServiceConfig, allocate, claims, release};
pub use validate::{validate, validate_status_update, validate_update};
pub use warnings::{status_warnings, warnings};

/// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
pub fn type_of(service: &Value) -> &str {
    walk::text(service, "spec.type")
}

/// Whether clients are meant to find the endpoints by themselves.
pub fn is_headless(service: &Value) -> bool {
    // The plural is what counts once it is there; before, only the singular says it.
    match walk::list(service, "spec.clusterIPs") {
        [only] => only == "None",
        [] => walk::text(service, "spec.clusterIP") == "None",
        _ => false,
    }
}

/// Whether the type of Service has addresses of the cluster's own.
pub fn needs_cluster_ip(service: &Value) -> bool {
    matches!(type_of(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether the type of Service may have ports on every node.
pub fn needs_node_port(service: &Value) -> bool {
    matches!(type_of(service), "NodePort" | "LoadBalancer")
}

/// Whether the Service needs a port that tells load balancers which nodes have endpoints.
pub fn needs_health_port(service: &Value) -> bool {
    type_of(service) == "LoadBalancer" && walk::text(service, "spec.externalTrafficPolicy") == "Local"
}

/// Whether traffic from outside the cluster is meant to reach the Service.
pub fn externally_accessible(service: &Value) -> bool {
    needs_node_port(service)
        || (type_of(service) == "ClusterIP" && !walk::list(service, "spec.externalIPs").is_empty())
}

/// Fills in what the client left out (pkg/apis/core/v1/defaults.go), and drops what says nothing: zero ports, empty lists.
pub fn default(service: &mut Value) {
    drop_empty(service);
    walk::default(service, "spec.sessionAffinity", "None");
    let timeout = walk::at(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds");
    match walk::text(service, "spec.sessionAffinity") {
        "None" => {
            walk::remove(service, "spec.sessionAffinityConfig");
        }
        "ClientIP" if timeout.is_none() => {
            walk::set(service, "spec.sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    walk::default(service, "spec.type", "ClusterIP");
    for port in walk::list_mut(service, "spec.ports") {
        walk::default(port, "protocol", "TCP");
        if walk::at(port, "targetPort").is_none_or(|t| t == 0 || t == "")
            && let Some(number) = walk::at(port, "port").cloned()
        {
            walk::set(port, "targetPort", number);
        }
    }
    if externally_accessible(service) {
        walk::default(service, "spec.externalTrafficPolicy", "Cluster");
    }
    // An alias has no policy of the cluster's own; one that can't be is for the rules to refuse.
    if type_of(service) == "ExternalName"
        && matches!(walk::text(service, "spec.internalTrafficPolicy"), "Cluster" | "Local")
    {
        walk::remove(service, "spec.internalTrafficPolicy");
    }
    if needs_cluster_ip(service) {
        // A pointer in Kubernetes: the empty text is something, and refused.
        if walk::at(service, "spec.internalTrafficPolicy").is_none() {
            walk::set(service, "spec.internalTrafficPolicy", "Cluster");
        }
    }
    if type_of(service) == "LoadBalancer" {
        walk::default(service, "spec.allocateLoadBalancerNodePorts", true);
        for ingress in walk::list_mut(service, "status.loadBalancer.ingress") {
            if !walk::text(ingress, "ip").is_empty() {
                walk::default(ingress, "ipMode", "VIP");
            }
        }
    }
    walk::default(service, "status.loadBalancer", json!({}));
}

/// What Kubernetes leaves out on the wire is left out here, so that absent and empty are one thing.
fn drop_empty(service: &mut Value) {
    if let Some(spec) = walk::at_mut(service, "spec").and_then(Value::as_object_mut) {
        spec.retain(|key, value| match key.as_str() {
            "clusterIP"
            | "externalTrafficPolicy"
            | "loadBalancerIP"
            | "externalName"
            | "sessionAffinity"
            | "type" => value != "",
            "healthCheckNodePort" => value != 0,
            "publishNotReadyAddresses" => value != false,
            "clusterIPs" | "ipFamilies" | "externalIPs" | "loadBalancerSourceRanges" | "ports" => {
                value.as_array().is_none_or(|a| !a.is_empty())
            }
            "selector" => value.as_object().is_none_or(|m| !m.is_empty()),
            _ => true,
        });
    }
    for path in ["status.loadBalancer.ingress", "status.conditions"] {
        if walk::at(service, path).and_then(Value::as_array).is_some_and(Vec::is_empty) {
            walk::remove(service, path);
        }
    }
    for ingress in walk::list_mut(service, "status.loadBalancer.ingress") {
        if let Some(ingress) = ingress.as_object_mut() {
            ingress.retain(|key, value| match key.as_str() {
                "ip" | "hostname" => value != "",
                "ports" => value.as_array().is_none_or(|a| !a.is_empty()),
                _ => true,
            });
        }
    }
    for port in walk::list_mut(service, "spec.ports") {
        if let Some(port) = port.as_object_mut() {
            port.retain(|key, value| match key.as_str() {
                "nodePort" => value != 0,
                "name" => value != "",
                _ => true,
            });
        }
    }
}

/// A new Service has no status, and its singular and plural address agree.
pub fn prepare_create(service: &mut Value) {
    walk::set(service, "status", json!({"loadBalancer": {}}));
    change::seed_plural(service);
}

/// A changed Service keeps its status and gets back what was allocated and the client left out. Allocation comes next, and
/// after it goes what the new type doesn't need.
pub fn prepare_update(new: &mut Value, old: &Value) {
    let status = old.get("status").cloned().unwrap_or_else(|| json!({"loadBalancer": {}}));
    walk::set(new, "status", status);
    if type_of(old) == "LoadBalancer" && type_of(new) != "LoadBalancer" {
        walk::set(new, "status.loadBalancer", json!({}));
    }
    change::patch_from_old(new, old);
    change::agree(new, old);
}

#[cfg(test)]
mod tests;
