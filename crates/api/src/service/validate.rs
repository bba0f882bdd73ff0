//! The rules of a Service, with the paths and texts that clients match on (pkg/apis/core/validation).

use serde_json::{Value, json};

use super::{externally_accessible, is_headless, needs_cluster_ip, needs_health_port, type_of};
use crate::fielderror::FieldError;
use crate::{ip, meta, walk};

const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";

fn show(service: &Value, path: &str) -> Value {
    walk::at(service, path).cloned().unwrap_or(Value::Null)
}

fn texts<'a>(service: &'a Value, path: &str) -> Vec<&'a str> {
    walk::list(service, path).iter().filter_map(Value::as_str).collect()
}

/// A field that must hold one of a few words.
fn word(errors: &mut Vec<FieldError>, service: &Value, path: &str, allowed: &[&str], needed: bool) {
    match walk::text(service, path) {
        "" if needed => errors.push(FieldError::required(path, "")),
        "" => {}
        found if !allowed.contains(&found) => errors.push(FieldError::not_supported(path, found, allowed)),
        _ => {}
    }
}

/// A field that holds one of a few words if it is there at all; the empty word is none of them.
fn pointed(errors: &mut Vec<FieldError>, service: &Value, path: &str, allowed: &[&str]) {
    if let Some(found) = walk::at(service, path).and_then(Value::as_str)
        && !allowed.contains(&found)
    {
        errors.push(FieldError::not_supported(path, found, allowed));
    }
}

/// What is wrong with a Service as it stands, after allocation.
pub fn validate(service: &Value) -> Vec<FieldError> {
    validate_against(service, None)
}

/// What is wrong with a change, and with the Service as it then stands.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_change(new, old);
    errors.extend(validate_against(new, Some(old)));
    errors
}

fn validate_change(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    fixed_addresses(&mut errors, new, old);
    fixed_families(&mut errors, new, old);
    class_changed(&mut errors, new, old);
    class(&mut errors, new);
    if needs_health_port(old)
        && needs_health_port(new)
        && walk::int(old, "spec.healthCheckNodePort") != walk::int(new, "spec.healthCheckNodePort")
    {
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    errors
}

fn class_changed(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    if type_of(old) == "LoadBalancer"
        && type_of(new) == "LoadBalancer"
        && walk::at(old, "spec.loadBalancerClass") != walk::at(new, "spec.loadBalancerClass")
    {
        errors.push(FieldError::invalid(
            "spec.loadBalancerClass",
            show(new, "spec.loadBalancerClass"),
            "may not change once set",
        ));
    }
}

/// Addresses: the first never changes, a second may come, and go with `SingleStack`.
fn fixed_addresses(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    const IPS: &str = "spec.clusterIPs";
    if type_of(new) == "ExternalName" || type_of(old) == "ExternalName" {
        return;
    }
    if is_none(old) && is_none(new) {
        return;
    }
    let (now, before) = (texts(new, IPS), texts(old, IPS));
    let mut changed =
        |i: usize, text: &str| errors.push(FieldError::invalid(format!("{IPS}[{i}]"), show(new, IPS), text));
    if now.len() == before.len() {
        for (i, _) in before.iter().zip(&now).enumerate().filter(|(_, (a, b))| a != b) {
            changed(i, "may not change once set");
        }
        return;
    }
    match (before.first(), now.first()) {
        (_, None) => changed(0, "primary clusterIP can not be unset"),
        (Some(a), Some(b)) if a != b => changed(0, "may not change once set"),
        _ => {}
    }
    if now.len() == 1 && before.len() > 1 {
        released(errors, new, "clusterIP");
    }
}

/// Families: the same. That the place is always the first, and the value shown sometimes the addresses, is Kubernetes'.
fn fixed_families(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    const FAMILIES: &str = "spec.ipFamilies";
    if type_of(new) == "ExternalName" || type_of(old) == "ExternalName" || is_none(new) || is_none(old) {
        return;
    }
    let (now, before) = (texts(new, FAMILIES), texts(old, FAMILIES));
    let mut changed = |shown: &str, text: &str| {
        errors.push(FieldError::invalid(format!("{FAMILIES}[0]"), show(new, shown), text));
    };
    if now.len() == before.len() {
        for _ in before.iter().zip(&now).filter(|(a, b)| a != b) {
            changed(FAMILIES, "may not change once set");
        }
        return;
    }
    if before.len() > now.len() && texts(new, "spec.clusterIPs").is_empty() {
        changed(FAMILIES, "primary ipFamily can not be unset");
    }
    if let (Some(a), Some(b)) = (before.first(), now.first())
        && a != b
    {
        changed("spec.clusterIPs", "may not change once set");
    }
    if now.len() == 1 && before.len() > 1 {
        released(errors, new, "ipFamily");
    }
}

fn released(errors: &mut Vec<FieldError>, new: &Value, one: &str) {
    const POLICY: &str = "spec.ipFamilyPolicy";
    if walk::text(new, POLICY) != "SingleStack" {
        let why = format!("must be set to 'SingleStack' when releasing the secondary {one}");
        errors.push(FieldError::invalid(POLICY, show(new, POLICY), why));
    }
}

fn is_none(service: &Value) -> bool {
    texts(service, "spec.clusterIPs") == ["None"]
}

/// What is wrong with a Service whose stored form, if there is one, excuses odd spellings of the same values.
pub(super) fn validate_against(service: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    topology(&mut errors, service);
    by_type(&mut errors, service);
    ports(&mut errors, service);
    errors.extend(meta::validate_labels(walk::map(service, "spec.selector"), "spec.selector"));
    affinity(&mut errors, service);
    errors.extend(validate_addresses(service, old));
    let had = old.map(|o| texts(o, "spec.externalIPs")).unwrap_or_default();
    for (i, text) in texts(service, "spec.externalIPs").into_iter().enumerate() {
        let path = format!("spec.externalIPs[{i}]");
        let faults = ip::faults(&path, text, &had);
        if faults.is_empty() {
            errors.extend(ip::special_faults(&path, text));
        } else {
            errors.extend(faults);
        }
    }
    word(&mut errors, service, "spec.type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], true);
    port_numbers(&mut errors, service);
    load_balancer(&mut errors, service, old);
    traffic(&mut errors, service);
    errors
}

fn topology(errors: &mut Vec<FieldError>, service: &Value) {
    if let (Some(mode), Some(hints)) =
        (meta::annotation(service, TOPOLOGY_MODE), meta::annotation(service, TOPOLOGY_HINTS))
        && mode != hints
    {
        errors.push(FieldError::invalid(
            format!("metadata.annotations[{TOPOLOGY_MODE}]"),
            mode,
            format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified"),
        ));
    }
}

fn by_type(errors: &mut Vec<FieldError>, service: &Value) {
    let kind = type_of(service);
    if walk::list(service, "spec.ports").is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(service) => errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        )),
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let path = format!("spec.{field}");
                if walk::at(service, &path).is_some_and(|v| v.as_array().is_none_or(|a| !a.is_empty())) {
                    errors.push(FieldError::forbidden(path, "may not be set for ExternalName services"));
                }
            }
            let name = walk::text(service, "spec.externalName");
            let bare = name.strip_suffix('.').unwrap_or(name);
            if bare.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                errors.extend(meta::findings("spec.externalName", bare, meta::subdomain_faults(bare)));
            }
        }
        _ => {}
    }
}

fn ports(errors: &mut Vec<FieldError>, service: &Value) {
    let all = walk::list(service, "spec.ports");
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in all.iter().enumerate() {
        let path = |field: &str| format!("spec.ports[{i}].{field}");
        let name = walk::text(port, "name");
        if name.is_empty() {
            if all.len() > 1 {
                errors.push(FieldError::required(path("name"), ""));
            }
        } else {
            errors.extend(meta::findings(&path("name"), name, meta::label_faults(name)));
            if names.contains(&name) {
                errors.push(FieldError::duplicate(path("name"), name));
            }
            names.push(name);
        }
        let number = walk::int(port, "port").unwrap_or(0);
        if !meta::is_port(number) {
            errors.push(FieldError::invalid(path("port"), number, meta::PORT_TEXT));
        }
        match walk::text(port, "protocol") {
            "" => errors.push(FieldError::required(path("protocol"), "")),
            "TCP" | "UDP" | "SCTP" => {}
            other => errors.push(FieldError::not_supported(path("protocol"), other, &["SCTP", "TCP", "UDP"])),
        }
        match port.get("targetPort") {
            Some(Value::String(name)) => {
                errors.extend(meta::findings(&path("targetPort"), name, meta::port_name_faults(name)));
            }
            other => {
                let number = other.and_then(Value::as_i64).unwrap_or(0);
                if !meta::is_port(number) {
                    errors.push(FieldError::invalid(path("targetPort"), number, meta::PORT_TEXT));
                }
            }
        }
        if let Some(app) = walk::at(port, "appProtocol").and_then(Value::as_str) {
            errors.extend(meta::findings(&path("appProtocol"), app, meta::qualified_faults(app)));
        }
    }
}

fn affinity(errors: &mut Vec<FieldError>, service: &Value) {
    word(errors, service, "spec.sessionAffinity", &["ClientIP", "None"], true);
    match walk::text(service, "spec.sessionAffinity") {
        "ClientIP" => {
            let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            match walk::int(service, path) {
                None => errors.push(FieldError::required(path, "when session affinity type is ClientIP")),
                Some(n) if !(1..=86400).contains(&n) => errors.push(FieldError::invalid(
                    path,
                    n,
                    // The text is Kubernetes'; 86400 itself is allowed.
                    "must be greater than 0 and less than 86400",
                )),
                Some(_) => {}
            }
        }
        "None" if walk::at(service, "spec.sessionAffinityConfig").is_some() => {
            errors.push(FieldError::forbidden(
                "spec.sessionAffinityConfig",
                "must not be set when session affinity is None",
            ))
        }
        _ => {}
    }
}

/// What is wrong with addresses and families: looked at before allocation, and again after.
pub(super) fn validate_addresses(service: &Value, old: Option<&Value>) -> Vec<FieldError> {
    const IPS: &str = "spec.clusterIPs";
    let mut errors = Vec::new();
    if type_of(service) == "ExternalName" {
        return errors;
    }
    let one = walk::text(service, "spec.clusterIP");
    let ips = texts(service, IPS);
    if one.is_empty() {
        if !ips.is_empty() {
            errors.push(FieldError::invalid(
                IPS,
                show(service, IPS),
                "must be empty when `clusterIP` is not specified",
            ));
        }
    } else if ips.is_empty() {
        errors.push(FieldError::required(IPS, ""));
    } else if ips[0] != one {
        errors.push(FieldError::invalid(IPS, show(service, IPS), "first value must match `clusterIP`"));
    }
    let families = texts(service, "spec.ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        if !["IPv4", "IPv6"].contains(family) {
            errors.push(FieldError::not_supported(&path, *family, &["IPv4", "IPv6"]));
        }
        if families[..i].contains(family) {
            errors.push(FieldError::duplicate(&path, *family));
        }
    }
    // Absent is all right, empty is not: in Kubernetes the field is a pointer.
    pointed(
        &mut errors,
        service,
        "spec.ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    let had = old.map(|o| texts(o, IPS)).unwrap_or_default();
    let mut misplaced = false;
    for (i, text) in ips.iter().enumerate() {
        if i == 0 && *text == "None" {
            if ips.len() > 1 {
                misplaced = true;
                errors.push(FieldError::invalid(
                    IPS,
                    show(service, IPS),
                    "'None' must be the first and only value",
                ));
            }
            continue;
        }
        let faults = ip::faults(&format!("{IPS}[{i}]"), text, &had);
        misplaced |= !faults.is_empty();
        errors.extend(faults);
    }
    if ips.len() > 2 {
        errors.push(FieldError::invalid(IPS, show(service, IPS), "may only hold up to 2 values"));
    }
    // What follows would only repeat the same fault in other words.
    if misplaced {
        return errors;
    }
    let parsed: Vec<_> = ips.iter().map(|t| ip::parse(t)).collect();
    // What was stored once is let pass, also where it is no address.
    if ips.len() > 1
        && let Some(i) = parsed.iter().position(Option::is_none)
    {
        let why = format!("failed to check for dual stack with error:invalid IP[{i}]: {}", ips[i]);
        errors.push(FieldError::internal(IPS, why));
    }
    let any = |v4: bool| parsed.iter().flatten().any(|ip| ip.is_ipv4() == v4);
    if ips.len() > 1 && !(any(true) && any(false)) {
        errors.push(FieldError::invalid(
            IPS,
            show(service, IPS),
            "may specify no more than one IP for each IP family",
        ));
    }
    for (i, (parsed, family)) in parsed.iter().zip(&families).enumerate() {
        if let Some(address) = parsed
            && ["IPv4", "IPv6"].contains(family)
            && ip::family(*address) != *family
        {
            errors.push(FieldError::invalid(
                format!("{IPS}[{i}]"),
                ips[i],
                format!("expected an {family} value as indicated by `ipFamilies[{i}]`"),
            ));
        }
    }
    errors
}

fn port_numbers(errors: &mut Vec<FieldError>, service: &Value) {
    let all = walk::list(service, "spec.ports");
    let key = |port: &Value, field: &str| {
        (walk::text(port, "protocol").to_owned(), walk::int(port, field).unwrap_or(0))
    };
    if type_of(service) == "ClusterIP" {
        for (i, port) in all.iter().enumerate() {
            if walk::int(port, "nodePort").unwrap_or(0) != 0 {
                errors.push(FieldError::forbidden(
                    format!("spec.ports[{i}].nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            }
        }
    }
    for (i, port) in all.iter().enumerate() {
        let this = key(port, "nodePort");
        if this.1 != 0 && all[..i].iter().any(|p| key(p, "nodePort") == this) {
            errors.push(FieldError::duplicate(format!("spec.ports[{i}].nodePort"), this.1));
        }
    }
    for (i, port) in all.iter().enumerate() {
        let this = key(port, "port");
        if all[..i].iter().any(|p| key(p, "port") == this) {
            let shown = json!({
                "Name": "", "Protocol": this.0, "AppProtocol": null, "Port": this.1, "TargetPort": 0, "NodePort": 0,
            });
            errors.push(FieldError::duplicate(format!("spec.ports[{i}]"), shown));
        }
    }
}

fn load_balancer(errors: &mut Vec<FieldError>, service: &Value, old: Option<&Value>) {
    let balanced = type_of(service) == "LoadBalancer";
    let ranges = texts(service, "spec.loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // The capital letter of the path is Kubernetes'.
        let path = "spec.LoadBalancerSourceRanges";
        if !balanced {
            errors.push(FieldError::forbidden(path, ONLY_LOAD_BALANCER));
        }
        let had: Vec<&str> = old.map(|o| texts(o, "spec.loadBalancerSourceRanges")).unwrap_or_default();
        let had: Vec<&str> = had.iter().map(|t| t.trim()).collect();
        for (i, text) in ranges.iter().enumerate() {
            errors.extend(ip::range_faults(&format!("{path}[{i}]"), text.trim(), &had));
        }
    } else if let Some(text) = meta::annotation(service, SOURCE_RANGES) {
        let path = format!("metadata.annotations[{SOURCE_RANGES}]");
        if !balanced {
            errors.push(FieldError::forbidden(&path, ONLY_LOAD_BALANCER));
        }
        let text = text.trim();
        if !text.is_empty() {
            for part in text.split(',') {
                errors.extend(ip::range_faults(&path, part.trim(), &[]));
            }
        }
    }
    let allocate = walk::at(service, "spec.allocateLoadBalancerNodePorts");
    if balanced && allocate.is_none() {
        // So is the path without `spec`.
        errors.push(FieldError::required("allocateLoadBalancerNodePorts", ""));
    }
    if !balanced && allocate.is_some() {
        errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", ONLY_LOAD_BALANCER));
    }
    // Of a change this has been said already.
    if old.is_none() {
        class(errors, service);
    }
}

fn class(errors: &mut Vec<FieldError>, service: &Value) {
    if let Some(class) = walk::at(service, "spec.loadBalancerClass").and_then(Value::as_str) {
        if type_of(service) == "LoadBalancer" {
            errors.extend(meta::findings("spec.loadBalancerClass", class, meta::qualified_faults(class)));
        } else {
            errors.push(FieldError::forbidden("spec.loadBalancerClass", ONLY_LOAD_BALANCER));
        }
    }
}

fn traffic(errors: &mut Vec<FieldError>, service: &Value) {
    const EXTERNAL: &str = "spec.externalTrafficPolicy";
    const HEALTH: &str = "spec.healthCheckNodePort";
    let policy = walk::text(service, EXTERNAL);
    if externally_accessible(service) {
        word(errors, service, EXTERNAL, &["Cluster", "Local"], true);
    } else if !policy.is_empty() {
        errors.push(FieldError::invalid(
            EXTERNAL,
            policy,
            "may only be set for externally-accessible services",
        ));
    }
    let health = walk::int(service, HEALTH).unwrap_or(0);
    if !needs_health_port(service) {
        if health != 0 {
            errors.push(FieldError::invalid(
                HEALTH,
                health,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ));
        }
    } else if health == 0 {
        errors.push(FieldError::required(HEALTH, ""));
    } else if !meta::is_port(health) {
        errors.push(FieldError::invalid(HEALTH, health, meta::PORT_TEXT));
    }
    if needs_cluster_ip(service) && walk::at(service, "spec.internalTrafficPolicy").is_none() {
        errors.push(FieldError::required("spec.internalTrafficPolicy", ""));
    }
    pointed(errors, service, "spec.internalTrafficPolicy", &["Cluster", "Local"]);
    if walk::at(service, "spec.trafficDistribution").is_some() {
        let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        let found = walk::text(service, "spec.trafficDistribution");
        if !known.contains(&found) {
            errors.push(FieldError::not_supported("spec.trafficDistribution", found, &known));
        }
    }
}

/// What is wrong with a status that a load balancer's controller writes.
pub fn validate_status_update(new: &Value, old: &Value) -> Vec<FieldError> {
    const INGRESS: &str = "status.loadBalancer.ingress";
    let mut errors = Vec::new();
    let all = walk::list(new, INGRESS);
    if type_of(new) != "LoadBalancer" {
        if !all.is_empty() {
            errors
                .push(FieldError::forbidden(INGRESS, "may only be used when `spec.type` is 'LoadBalancer'"));
        }
        return errors;
    }
    let had: Vec<&str> = walk::list(old, INGRESS).iter().map(|i| walk::text(i, "ip")).collect();
    for (i, ingress) in all.iter().enumerate() {
        let path = |field: &str| format!("{INGRESS}[{i}].{field}");
        let address = walk::text(ingress, "ip");
        if !address.is_empty() {
            errors.extend(ip::faults(&path("ip"), address, &had));
        }
        match (address.is_empty(), walk::text(ingress, "ipMode")) {
            (false, "") => {
                errors.push(FieldError::required(path("ipMode"), "must be specified when `ip` is set"))
            }
            (true, "") | (false, "VIP" | "Proxy") => {}
            (true, _) => {
                errors
                    .push(FieldError::forbidden(path("ipMode"), "may not be specified when `ip` is not set"));
            }
            (false, other) => {
                errors.push(FieldError::not_supported(path("ipMode"), other, &["Proxy", "VIP"]))
            }
        }
        let host = walk::text(ingress, "hostname");
        if !host.is_empty() {
            errors.extend(meta::findings(&path("hostname"), host, meta::subdomain_faults(host)));
            if ip::parse(host).is_some() {
                errors.push(FieldError::invalid(
                    path("hostname"),
                    host,
                    "must be a DNS name, not an IP address",
                ));
            }
        }
        for (j, port) in walk::list(ingress, "ports").iter().enumerate() {
            let error = walk::text(port, "error");
            let path = format!("{}[{j}]", path("ports"));
            if error.len() > 316 {
                errors.push(FieldError::too_long(format!("{path}.error"), 316));
            }
        }
    }
    errors
}
