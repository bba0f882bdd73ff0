//! Nodes.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::meta::{self, NameRule};
use crate::quantity::Quantity;
use crate::{duration, pod, walk};

/// The entry of Node. Its status comes with its creation: that is how a node registers itself.
pub static NODE: Kind = Kind::Listed(&Entry {
    group: "",
    version: "v1",
    kind: "Node",
    list_kind: "NodeList",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    subresources: &["proxy", "status"],
    generation: false,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy {
        default,
        prepare_create: drop_configuration,
        prepare_update: |new, old| {
            keep_status(new, old);
            walk::remove(new, "spec.configSource");
        },
        prepare_status_update: |new, old| {
            keep_all_but_status(new, old);
            walk::remove(new, "status.config");
        },
        validate,
        validate_update,
        validate_status_update: validate_change,
        warnings: |new, _| warnings(new),
        ..Strategy::PLAIN
    },
    fields: &[("spec.unschedulable", |o| walk::flag(o, "spec.unschedulable").unwrap_or(false).to_string())],
    columns: &[
        Column::object_name(),
        Column::new("Status", "string", "The status of the node"),
        Column::new("Roles", "string", "The roles of the node"),
        Column::new("Age", "string", AGE),
        Column::new("Version", "string", "The version of what runs the pods of the node."),
        Column::wide("Internal-IP", "string", "The address of the node inside the cluster."),
        Column::wide("External-IP", "string", "The address of the node outside the cluster."),
        Column::wide("OS-Image", "string", "The operating system of the node."),
        Column::wide("Kernel-Version", "string", "The kernel of the node."),
        Column::wide("Container-Runtime", "string", "What runs the containers of the node."),
    ],
    cells,
});

fn default(object: &mut Value) {
    if walk::at(object, "status.allocatable").is_none()
        && let Some(capacity) = walk::at(object, "status.capacity").cloned()
    {
        walk::set(object, "status.allocatable", capacity);
    }
    // The singular and the plural say the same, whichever the client knows.
    let one = walk::text(object, "spec.podCIDR").to_owned();
    let first = walk::list(object, "spec.podCIDRs").first().and_then(Value::as_str).unwrap_or("").to_owned();
    match (one.is_empty(), first.is_empty()) {
        (false, true) => walk::set(object, "spec.podCIDRs", json!([one])),
        (true, false) => walk::set(object, "spec.podCIDR", first),
        (false, false) if one != first => walk::set(object, "spec.podCIDRs", json!([one])),
        _ => {}
    }
    if walk::flag(object, "spec.unschedulable") == Some(false) {
        walk::remove(object, "spec.unschedulable");
    }
}

/// What is wrong with taints at `at`.
fn taints(errors: &mut Vec<FieldError>, all: &[Value], at: &str) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in all.iter().enumerate() {
        let path = |field: &str| format!("{at}[{i}].{field}");
        let (key, effect) = (walk::text(taint, "key"), walk::text(taint, "effect"));
        errors.extend(meta::findings(&path("key"), key, meta::qualified_faults(key)));
        let value = walk::text(taint, "value");
        let faults = meta::label_value_faults(value);
        if !faults.is_empty() {
            errors.push(FieldError::invalid(path("value"), value, faults.join(";")));
        }
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        match effect {
            "" => errors.push(FieldError::required(path("effect"), "")),
            other if !known.contains(&other) => {
                errors.push(FieldError::not_supported(path("effect"), other, &known));
            }
            _ => {}
        }
        if seen.contains(&(key, effect)) {
            // The members of Go's struct.
            let shown =
                json!({"Key": key, "Value": value, "Effect": effect, "TimeAdded": taint.get("timeAdded")});
            let mut found = FieldError::duplicate(format!("{at}[{i}]"), shown);
            found.detail = "taints must be unique by key and effect pair".into();
            errors.push(found);
        }
        seen.push((key, effect));
    }
}

/// Annotations that mean something.
fn annotations(errors: &mut Vec<FieldError>, object: &Value) {
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    const TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
    if let Some(text) = meta::annotation(object, TAINTS).filter(|text| !text.is_empty()) {
        match serde_json::from_str::<Value>(text) {
            Ok(all) => {
                let all = all.as_array().map_or(&[][..], Vec::as_slice);
                taints(errors, all, &format!("metadata.annotations.{TAINTS}"));
            }
            Err(_) => errors.push(FieldError::invalid("metadata.annotations", TAINTS, go_syntax_fault(text))),
        }
    }
    if let Some(text) = meta::annotation(object, AVOID).filter(|text| !text.is_empty())
        && serde_json::from_str::<Value>(text).is_err()
    {
        errors.push(FieldError::invalid("metadata.annotations.AvoidPods", AVOID, go_syntax_fault(text)));
    }
}

/// What Go says of a text that doesn't begin as JSON.
fn go_syntax_fault(text: &str) -> String {
    let first = text.trim_start().chars().next().unwrap_or(' ');
    format!("invalid character '{first}' looking for beginning of value")
}

fn amounts(errors: &mut Vec<FieldError>, object: &Value) {
    for part in ["capacity", "allocatable"] {
        for (name, value) in walk::map(object, &format!("status.{part}")) {
            let path = format!("status.{part}.{name}");
            let Some(amount) = value.as_str().and_then(Quantity::parse) else { continue };
            if amount.is_negative() {
                let text = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(&path, amount.to_string(), text));
            }
            if pod::whole_numbers(name) && !amount.is_whole() {
                errors.push(FieldError::invalid(path, amount.to_string(), "must be an integer"));
            }
        }
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    annotations(&mut errors, object);
    // Kubernetes names the wrong place.
    taints(&mut errors, walk::list(object, "spec.taints"), "metadata.taints");
    amounts(&mut errors, object);
    const RANGES: &str = "spec.podCIDRs";
    let ranges: Vec<&str> = walk::list(object, RANGES).iter().filter_map(Value::as_str).collect();
    for (i, range) in ranges.iter().enumerate() {
        errors.extend(crate::ip::range_faults(&format!("{RANGES}[{i}]"), range, &[]));
    }
    if ranges.len() > 1 {
        let family = |range: &&str| range.parse::<ipnet::IpNet>().ok().map(|net| net.addr().is_ipv4());
        let families: Vec<Option<bool>> = ranges.iter().map(family).collect();
        if let Some(bad) = families.iter().position(Option::is_none) {
            errors.push(FieldError::internal(
                RANGES,
                format!(
                    "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{bad}]: <nil> (invalid CIDR \
                     address: {})",
                    ranges[bad]
                ),
            ));
        }
        let both =
            families.contains(&Some(true)) && families.contains(&Some(false)) && !families.contains(&None);
        if !both || ranges.len() > 2 {
            let text = "may specify no more than one CIDR for each IP family";
            errors.push(FieldError::invalid(RANGES, ranges.clone(), text));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::validate_base(new, NameRule::Subdomain);
    errors.extend(validate(new));
    errors.extend(validate_change(new, old));
    errors
}

/// What may change, here and through `/status` (`ValidateNodeUpdate`).
fn validate_change(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    annotations(&mut errors, new);
    amounts(&mut errors, new);
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, address) in walk::list(new, "status.addresses").iter().enumerate() {
        let key = (walk::text(address, "type"), walk::text(address, "address"));
        if seen.contains(&key) {
            let shown = json!({"Type": key.0, "Address": key.1});
            errors.push(FieldError::duplicate(format!("status.addresses[{i}]"), shown));
        }
        seen.push(key);
    }
    let (had, has) = (walk::list(old, "spec.podCIDRs"), walk::list(new, "spec.podCIDRs"));
    let changes =
        if had.len() == has.len() { had.iter().zip(has).filter(|(a, b)| a != b).count() } else { 1 };
    for _ in (0..changes).filter(|_| !had.is_empty()) {
        let text = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", text));
    }
    let provider = walk::text(old, "spec.providerID");
    if !provider.is_empty() && provider != walk::text(new, "spec.providerID") {
        errors.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    taints(&mut errors, walk::list(new, "spec.taints"), "metadata.taints");
    if walk::text(new, "spec.externalID") != walk::text(old, "spec.externalID") {
        errors.push(FieldError::forbidden("spec.externalID", "may not be updated"));
    }
    errors
}

/// What nobody heeds any more is not kept.
fn drop_configuration(object: &mut Value) {
    walk::remove(object, "spec.configSource");
    walk::remove(object, "status.config");
}

fn warnings(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if !walk::text(object, "spec.externalID").is_empty() {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
    }
    for (i, range) in walk::list(object, "spec.podCIDRs").iter().enumerate() {
        out.extend(crate::ip::range_warnings(&format!("spec.podCIDRs[{i}]"), range.as_str().unwrap_or("")));
    }
    out
}

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut status = walk::list(object, "status.conditions")
        .iter()
        .rfind(|c| walk::text(c, "type") == "Ready")
        .map_or("Unknown", |c| if walk::text(c, "status") == "True" { "Ready" } else { "NotReady" })
        .to_owned();
    if walk::flag(object, "spec.unschedulable") == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in meta::labels(object) {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|r| !r.is_empty()));
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let address = |kind: &str| {
        walk::list(object, "status.addresses")
            .iter()
            .find(|a| walk::text(a, "type") == kind)
            .map_or("<none>", |a| walk::text(a, "address"))
    };
    let info = |field: &str| match walk::text(object, &format!("status.nodeInfo.{field}")) {
        "" => "<unknown>",
        text => text,
    };
    vec![
        meta::name(object).into(),
        status.into(),
        roles.into(),
        duration::age(object, now).into(),
        walk::text(object, "status.nodeInfo.kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}
