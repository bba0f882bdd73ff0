//! What a Service says that will have no effect, or not for long.

use serde_json::Value;

use super::{is_headless, type_of};
use crate::{ip, meta, walk};

/// The same of a status that a load balancer's controller writes.
pub fn status_warnings(service: &Value) -> Vec<String> {
    let all = walk::list(service, "status.loadBalancer.ingress").iter().enumerate();
    all.flat_map(|(i, ingress)| {
        ip::warnings(&format!("status.loadBalancer.ingress[{i}]"), walk::text(ingress, "ip"))
    })
    .collect()
}

/// The texts of `Warning:` headers.
pub fn warnings(service: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if meta::annotation(service, "service.kubernetes.io/topology-aware-hints").is_some() {
        out.push(
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
             service.kubernetes.io/topology-mode instead"
                .into(),
        );
    }
    let texts = |path: &str| -> Vec<String> {
        walk::list(service, path).iter().filter_map(Value::as_str).map(String::from).collect()
    };
    if is_headless(service) {
        let mut ignored = |set: bool, field: &str| {
            if set {
                out.push(format!("{field} is ignored for headless services"));
            }
        };
        ignored(!walk::text(service, "spec.loadBalancerIP").is_empty(), "spec.loadBalancerIP");
        ignored(!texts("spec.externalIPs").is_empty(), "spec.externalIPs");
        ignored(walk::text(service, "spec.sessionAffinity") == "ClientIP", "spec.SessionAffinity");
    } else {
        for (i, text) in texts("spec.clusterIPs").iter().enumerate() {
            out.extend(ip::warnings(&format!("spec.clusterIPs[{i}]"), text));
        }
    }
    let external = texts("spec.externalIPs");
    for (i, text) in external.iter().enumerate() {
        out.extend(ip::warnings(&format!("spec.externalIPs[{i}]"), text));
    }
    if !external.is_empty() && !is_headless(service) && type_of(service) != "ExternalName" {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    let balancer = walk::text(service, "spec.loadBalancerIP");
    if !balancer.is_empty() {
        out.extend(ip::warnings("spec.loadBalancerIP", balancer));
    }
    if type_of(service) == "ExternalName" {
        if !external.is_empty() {
            out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
        }
    } else if !walk::text(service, "spec.externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if walk::text(service, "spec.trafficDistribution") == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
    out
}
