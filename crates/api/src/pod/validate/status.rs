//! What may be reported of a pod.

use serde_json::{Value, json};

use super::{Errors, annotations, subdomain};
use crate::fielderror::FieldError;
use crate::{ip, meta, walk};

/// What is wrong with a change of a pod's status (`ValidatePodStatusUpdate`).
pub fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    annotations::changes(&mut errors, new, old, "metadata.annotations");
    for (i, condition) in walk::list(new, "status.conditions").iter().enumerate() {
        let path = format!("status.conditions[{i}]");
        generation(&mut errors, condition, &path);
        let kind = walk::text(condition, "type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            errors.extend(meta::findings(&format!("{path}.Type"), kind, meta::qualified_faults(kind)));
        }
    }
    const NOMINATED: &str = "status.nominatedNodeName";
    let node = walk::text(new, NOMINATED);
    if !node.is_empty() && node != walk::text(old, NOMINATED) {
        subdomain(&mut errors, NOMINATED, node);
        if !walk::text(old, "spec.nodeName").is_empty() {
            let text = "may not be set on pods that are already bound to a node";
            errors.push(FieldError::forbidden(NOMINATED, text));
        }
    }
    generation(&mut errors, new.get("status").unwrap_or(&Value::Null), "status");
    const CLASS: &str = "status.qosClass";
    if walk::text(new, CLASS) != walk::text(old, CLASS) {
        errors.push(FieldError::invalid(CLASS, walk::text(new, CLASS), "field is immutable"));
    }
    for (statuses, containers) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", ""),
    ] {
        ended(&mut errors, new, old, statuses, containers);
    }
    addresses(&mut errors, new, old, "podIPs");
    let hosts = walk::list(new, "status.hostIPs");
    if let Some(first) = hosts.first().map(|host| walk::text(host, "ip"))
        && first != walk::text(new, "status.hostIP")
    {
        errors.push(FieldError::invalid("status.hostIPs[0].ip", first, "must be equal to `hostIP`"));
    }
    addresses(&mut errors, new, old, "hostIPs");
    errors
}

fn generation(errors: &mut Errors, value: &Value, at: &str) {
    if let Some(n) = walk::int(value, "observedGeneration").filter(|n| *n < 0) {
        let text = "must be a non-negative integer";
        errors.push(FieldError::invalid(format!("{at}.observedGeneration"), n, text));
    }
}

fn addresses(errors: &mut Errors, new: &Value, old: &Value, field: &str) {
    let path = format!("status.{field}");
    let of = |pod: &Value| -> Vec<String> {
        walk::list(pod, &path).iter().map(|address| walk::text(address, "ip").to_owned()).collect()
    };
    let (now, before) = (of(new), of(old));
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    for (i, address) in now.iter().enumerate() {
        errors.extend(ip::faults(&format!("{path}[{i}]"), address, &before));
    }
    if now.len() < 2 {
        return;
    }
    let families: Vec<Option<bool>> = now.iter().map(|text| ip::parse(text).map(|ip| ip.is_ipv4())).collect();
    if let Some(bad) = families.iter().position(Option::is_none) {
        let text = format!("failed to check for dual stack with error:invalid IP: {bad}, {}", now[bad]);
        errors.push(FieldError::internal(&path, text));
    }
    let both = families.contains(&Some(true)) && families.contains(&Some(false)) && !families.contains(&None);
    if !both || now.len() > 2 {
        let shown: Vec<Value> = now.iter().map(|ip| json!({"IP": ip})).collect();
        let text = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(path, shown, text));
    }
}

/// Whether a container that ended so may run again.
fn restarts(pod: &Value, container: Option<&Value>, code: i64) -> bool {
    let Some(container) = container else { return false };
    for rule in walk::list(container, "restartPolicyRules") {
        let listed = walk::list(rule, "exitCodes.values").iter().any(|value| value.as_i64() == Some(code));
        let (operator, action) = (walk::text(rule, "exitCodes.operator"), walk::text(rule, "action"));
        if (operator == "In" && listed) || (operator == "NotIn" && !listed) {
            return action == "Restart";
        }
    }
    let own = walk::text(container, "restartPolicy");
    match if own.is_empty() { walk::text(pod, "spec.restartPolicy") } else { own } {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

/// What has ended for good doesn't run again.
fn ended(errors: &mut Errors, new: &Value, old: &Value, statuses: &str, containers: &str) {
    let all_again = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| walk::list(old, &format!("spec.{list}")))
        .flat_map(|container| walk::list(container, "restartPolicyRules"))
        .any(|rule| walk::text(rule, "action") == "RestartAllContainers");
    if all_again && !containers.is_empty() {
        return;
    }
    for (i, before) in walk::list(old, &format!("status.{statuses}")).iter().enumerate() {
        let Some(end) = walk::at(before, "state.terminated") else { continue };
        let name = walk::text(before, "name");
        let same =
            |now: &&Value| walk::text(now, "name") == name && walk::at(now, "state.terminated").is_none();
        if !walk::list(new, &format!("status.{statuses}")).iter().any(|now| same(&now)) {
            continue;
        }
        let container = walk::list(old, &format!("spec.{containers}"))
            .iter()
            .find(|container| walk::text(container, "name") == name);
        let code = walk::int(end, "exitCode").unwrap_or(0);
        if containers.is_empty() || !restarts(old, container, code) {
            let text = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(format!("status.{statuses}[{i}].state"), text));
        }
    }
}
