//! Which rules of Services the real server has applied: each row of the table of what is correct is counted when it answers so.

use std::collections::BTreeMap;

use super::step::{Doing, Outcome, Step};

/// How often each row has been hit.
pub type Counts = BTreeMap<&'static str, usize>;

/// A row's name, a part of the field's path and a part of the text. A2.6, A2.10 and A2.14 are not among them: defaults fill what
/// they would miss, so that no request gets there.
const REFUSALS: [(&str, &str, &str); 61] = [
    ("A2.1 annotations disagree", "topology-mode", "must match annotations"),
    ("A2.2 no ports", "spec.ports", "Required value"),
    ("A2.3 headless with a load balancer", "spec.clusterIPs[0]", "for LoadBalancer services"),
    ("A2.3 headless with node ports", "spec.clusterIPs[0]", "for NodePort services"),
    ("A2.4 ExternalName with addresses", "spec.clusterIPs", "may not be set for ExternalName services"),
    ("A2.4 ExternalName with families", "spec.ipFamilies", "may not be set for ExternalName services"),
    ("A2.4 ExternalName with a policy", "spec.ipFamilyPolicy", "may not be set for ExternalName services"),
    ("A2.5 ExternalName without a name", "spec.externalName", "Required value"),
    ("A2.7 affinity's timeout", "timeoutSeconds", "must be greater than 0 and less than 86400"),
    ("A2.8 node port on ClusterIP", "nodePort", "may not be used when `type` is 'ClusterIP'"),
    ("A2.9 source ranges elsewhere", "LoadBalancerSourceRanges", "may only be used when"),
    ("A2.11 external policy elsewhere", "spec.externalTrafficPolicy", "externally-accessible"),
    ("A2.12 health check port elsewhere", "spec.healthCheckNodePort", "may only be set when"),
    ("A2.13 health check port changed", "spec.healthCheckNodePort", "field is immutable"),
    ("A2.15 singular and plural disagree", "spec.clusterIPs", "first value must match `clusterIP`"),
    ("A2.15 plural without singular", "spec.clusterIPs", "must be empty when `clusterIP` is not specified"),
    ("A2.16 None and another", "spec.clusterIPs", "'None' must be the first and only value"),
    ("A2.17 more than two", "spec.clusterIPs", "may only hold up to 2 values"),
    ("A2.17 two of a family", "spec.clusterIPs", "may specify no more than one IP for each IP family"),
    ("A2.18 address against family", "spec.clusterIPs", "value as indicated by `ipFamilies["),
    ("A2.19 address changed", "spec.clusterIPs", "may not change once set"),
    ("A2.20 second address without SingleStack", "spec.ipFamilyPolicy", "release the secondary cluster IP"),
    ("A2.20 second family without SingleStack", "spec.ipFamilyPolicy", "release the secondary IP family"),
    ("A2.21 SingleStack with two addresses", "spec.ipFamilyPolicy", "multiple cluster IPs are specified"),
    ("A2.21 SingleStack with two families", "spec.ipFamilyPolicy", "multiple IP families are specified"),
    ("A2.22 family not configured", "spec.ipFamilies", "not configured on this cluster"),
    ("A2.22 address of such a family", "spec.clusterIPs", "is not configured on this cluster"),
    ("A2.22 not dual-stack", "spec.ipFamilyPolicy", "not configured for dual-stack services"),
    ("A2.23 class changed", "spec.loadBalancerClass", "may not change once set"),
    ("A2.23 class elsewhere", "spec.loadBalancerClass", "may only be used when"),
    ("A2.24 ingress elsewhere", "status.loadBalancer.ingress", "may only be used when `spec.type` is"),
    ("A2.24 ipMode without ip", "ipMode", "may not be specified when `ip` is not set"),
    ("A2.24 hostname is an address", "hostname", "must be a DNS name, not an IP address"),
    ("A2.25 unspecified", "", "may not be unspecified"),
    ("A2.25 loopback", "", "may not be in the loopback range"),
    ("A2.25 link-local", "", "may not be in the link-local range"),
    ("A2.25 link-local multicast", "", "may not be in the link-local multicast range"),
    ("A2.26 address taken", "spec.clusterIPs", "provided IP is already allocated"),
    ("A2.26 address out of range", "spec.clusterIPs", "does not match the current range"),
    ("A2.26 address out of range, dry run", "spec.clusterIPs", "is not in the valid range"),
    ("A2.27 port taken", "nodePort", "provided port is already allocated"),
    ("A2.27 port out of range", "nodePort", "is not in the valid range"),
    ("A1.1 port number", "port", "must be between 1 and 65535"),
    ("A1.2 port name", "spec.ports", "Required value"),
    ("A1.2 port name twice", "name", "Duplicate value"),
    ("A1.3 protocol", "protocol", "Unsupported value"),
    ("A1.4 application protocol", "appProtocol", "Invalid value"),
    ("A1.5 port twice", "spec.ports[1]", "Duplicate value"),
    ("A1.6 target port", "targetPort", "Invalid value"),
    ("A1.8 selector", "spec.selector", "Invalid value"),
    ("A1.10 type", "spec.type", "Unsupported value"),
    ("A1.12 affinity", "spec.sessionAffinity", "Unsupported value"),
    ("A1.14 source range", "LoadBalancerSourceRanges", "Invalid value"),
    ("A1.15 external name", "spec.externalName", "Invalid value"),
    ("A1.16 external policy", "spec.externalTrafficPolicy", "Unsupported value"),
    ("A1.19 family", "spec.ipFamilies", "Unsupported value"),
    ("A1.19 family twice", "spec.ipFamilies", "Duplicate value"),
    ("A1.20 family policy", "spec.ipFamilyPolicy", "Unsupported value"),
    ("A1.22 class", "spec.loadBalancerClass", "Invalid value"),
    ("A1.23 internal policy", "spec.internalTrafficPolicy", "Unsupported value"),
    ("A1.24 distribution", "spec.trafficDistribution", "Unsupported value"),
];

/// What the server says when nothing is left, and what it does of itself.
const OTHERS: [&str; 15] = [
    "A1.32 port's error as it is",
    "A1.33 condition as it is",
    "A2.27 health check port taken",
    "A2.26 no address is left",
    "A2.27 no port is left",
    "A1.12 timeout by default",
    "A1.13 load balancer's address as it is",
    "A1.34 status is left alone",
    "A3.1 PUT makes",
    "A3.4 both families for headless without selector",
    "A3.6 second address given",
    "A3.9 type changed",
    "A3.11 dry run",
    "a warning",
    "A2.24 ipMode by default",
];

/// Every row, none hit yet.
pub fn none() -> Counts {
    REFUSALS.iter().map(|(row, ..)| *row).chain(OTHERS).map(|row| (row, 0)).collect()
}

/// Counts which rows an answer of the real server shows.
pub fn count(step: &Step, outcome: &Outcome, counts: &mut Counts) {
    if step.kind.plural != "services" {
        return;
    }
    let mut hit = |row| *counts.get_mut(row).expect("a row") += 1;
    let body = &outcome.body;
    for cause in body["details"]["causes"].as_array().into_iter().flatten() {
        let (field, message) = (cause["field"].as_str(), cause["message"].as_str());
        let (field, message) = (field.unwrap_or_default(), message.unwrap_or_default());
        for (row, path, text) in REFUSALS {
            let exact = matches!(row, "A2.2 no ports");
            let fits = if exact { field == path } else { field.contains(path) };
            let named = row == "A1.2 port name" && !field.ends_with(".name");
            if fits && message.contains(text) && !named {
                hit(row);
            }
        }
    }
    let message = body["message"].as_str().unwrap_or_default();
    if outcome.code == 500 && message.contains("range is full") {
        hit(if message.contains("serviceIP") { "A2.26 no address is left" } else { "A2.27 no port is left" });
    }
    if outcome.code == 500 && message.contains("failed to allocate requested HealthCheck NodePort") {
        hit("A2.27 health check port taken");
    }
    if !outcome.warnings.is_empty() {
        hit("a warning");
    }
    if !matches!(outcome.code, 200 | 201) || body["kind"] != "Service" {
        return;
    }
    let spec = &body["spec"];
    let dry = step.query.iter().any(|(key, _)| *key == "dryRun");
    match &step.doing {
        Doing::Create(sent) => {
            if sent["spec"]["sessionAffinity"] == "ClientIP"
                && sent["spec"]["sessionAffinityConfig"].is_null()
            {
                hit("A1.12 timeout by default");
            }
            if !sent["status"].is_null() {
                hit("A1.34 status is left alone");
            }
            if spec["clusterIP"] == "None"
                && spec["selector"].is_null()
                && spec["ipFamilies"].as_array().is_some_and(|families| families.len() == 2)
            {
                hit("A3.4 both families for headless without selector");
            }
            if !sent["spec"]["loadBalancerIP"].is_null() {
                hit("A1.13 load balancer's address as it is");
            }
            if dry {
                hit("A3.11 dry run");
            }
        }
        Doing::Update { .. } if outcome.code == 201 => hit("A3.1 PUT makes"),
        _ => {}
    }
    let changes = matches!(step.doing, Doing::Update { .. } | Doing::Patch { .. }) && outcome.code == 200;
    if changes && step.subresource.is_empty() {
        if step.touches("type") {
            hit("A3.9 type changed");
        }
        if step.touches("ipFamilyPolicy") && spec["clusterIPs"].as_array().is_some_and(|ips| ips.len() == 2) {
            hit("A3.6 second address given");
        }
    }
    if changes && step.subresource == "status" {
        let status = &body["status"];
        let ingress = || status["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        if ingress().any(|ingress| ingress["ipMode"] == "VIP") && !step.touches("ipMode") {
            hit("A2.24 ipMode by default");
        }
        // Neither is checked.
        if ingress().any(|ingress| ingress["ports"][0]["error"].is_string()) {
            hit("A1.32 port's error as it is");
        }
        if status["conditions"][0].is_object() {
            hit("A1.33 condition as it is");
        }
    }
}
