//! Nodes.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::meta::{self, NameRule};
use crate::{duration, walk};

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
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate,
        validate_update,
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
        _ => {}
    }
    if walk::flag(object, "spec.unschedulable") == Some(false) {
        walk::remove(object, "spec.unschedulable");
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in walk::list(object, "spec.taints").iter().enumerate() {
        let path = |field: &str| format!("spec.taints[{i}].{field}");
        let (key, effect) = (walk::text(taint, "key"), walk::text(taint, "effect"));
        errors.extend(meta::findings(&path("key"), key, meta::qualified_faults(key)));
        let value = walk::text(taint, "value");
        errors.extend(meta::findings(&path("value"), value, meta::label_value_faults(value)));
        match effect {
            "" => errors.push(FieldError::required(path("effect"), "")),
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            other => errors.push(FieldError::not_supported(
                path("effect"),
                other,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            )),
        }
        if seen.contains(&(key, effect)) {
            let mut found = FieldError::duplicate(format!("spec.taints[{i}]"), taint.clone());
            found.detail = "taints must be unique by key and effect pair".into();
            errors.push(found);
        }
        seen.push((key, effect));
    }
    let ranges = walk::list(object, "spec.podCIDRs");
    for (i, range) in ranges.iter().enumerate() {
        errors.extend(crate::ip::range_faults(
            &format!("spec.podCIDRs[{i}]"),
            range.as_str().unwrap_or(""),
            &[],
        ));
    }
    if ranges.len() > 2 {
        errors.push(FieldError::invalid(
            "spec.podCIDRs",
            Value::from(ranges.to_vec()),
            "may specify no more than one CIDR for each IP family",
        ));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate(new);
    let had = walk::at(old, "spec.podCIDRs");
    if had.is_some() && had != walk::at(new, "spec.podCIDRs") {
        errors.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let provider = walk::text(old, "spec.providerID");
    if !provider.is_empty() && provider != walk::text(new, "spec.providerID") {
        errors.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    errors
}

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut status = walk::list(object, "status.conditions")
        .iter()
        .find(|c| walk::text(c, "type") == "Ready")
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
