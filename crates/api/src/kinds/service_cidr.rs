//! ServiceCIDRs, the ranges that Services' addresses come from, and IPAddresses, the addresses that are taken.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status_itself, keep_status};
use crate::meta::{self, NameRule};
use crate::{duration, ip, walk};

/// The entry of ServiceCIDR.
pub static SERVICE_CIDR: Kind = Kind::Listed(&Entry {
    namespaced: false,
    subresources: &["status"],
    strategy: Strategy {
        prepare_create: |o| walk::set(o, "status", json!({})),
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status_itself,
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("CIDRs", "string", "The ranges, one of each family."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let ranges: Vec<&str> = walk::list(o, "spec.cidrs").iter().filter_map(Value::as_str).collect();
        vec![meta::name(o).into(), ranges.join(",").into(), duration::age(o, now).into()]
    },
    ..Entry::of(
        "networking.k8s.io",
        "v1",
        ("ServiceCIDR", "ServiceCIDRList"),
        ("servicecidrs", "servicecidr"),
    )
});

/// The entry of IPAddress.
pub static IP_ADDRESS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    short_names: &["ip"],
    names: NameRule::Address,
    strategy: Strategy {
        default: |o| super::drop_if_empty(o, "spec.parentRef.namespace"),
        validate: validate_address,
        validate_update: validate_address_update,
        ..Strategy::PLAIN
    },
    fields: &[
        ("spec.parentRef.group", |o| walk::text(o, "spec.parentRef.group").to_owned()),
        ("spec.parentRef.resource", |o| walk::text(o, "spec.parentRef.resource").to_owned()),
        ("spec.parentRef.namespace", |o| walk::text(o, "spec.parentRef.namespace").to_owned()),
        ("spec.parentRef.name", |o| walk::text(o, "spec.parentRef.name").to_owned()),
    ],
    columns: &[Column::object_name(), Column::new("ParentRef", "string", "Whose address it is.")],
    cells: |o, _| {
        let owner = walk::at(o, "spec.parentRef").map_or_else(
            || "<none>".to_owned(),
            |parent| {
                let of = |field: &str| walk::text(parent, field);
                let dot = if of("group").is_empty() { "" } else { "." };
                let resource = format!("{}{dot}{}", of("resource"), of("group")).to_lowercase();
                let parts = [resource.as_str(), of("namespace"), of("name")];
                parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
            },
        );
        vec![meta::name(o).into(), owner.into()]
    },
    ..Entry::of("networking.k8s.io", "v1", ("IPAddress", "IPAddressList"), ("ipaddresses", "ipaddress"))
});

const RANGES: &str = "spec.cidrs";

/// The ranges of a ServiceCIDR.
pub fn ranges(object: &Value) -> Vec<ipnet::IpNet> {
    walk::list(object, RANGES).iter().filter_map(|range| range.as_str()?.parse().ok()).collect()
}

/// Whether a ServiceCIDR gives addresses: it says that it is ready, and nobody has deleted it.
pub fn is_ready(object: &Value) -> bool {
    let holds = |c: &Value| walk::text(c, "type") == "Ready" && walk::text(c, "status") == "True";
    meta::deletion_timestamp(object).is_none() && walk::list(object, "status.conditions").iter().any(holds)
}

fn validate(object: &Value) -> Vec<FieldError> {
    let ranges = walk::list(object, RANGES);
    if ranges.is_empty() {
        return vec![FieldError::required(RANGES, "at least one CIDR required")];
    }
    if ranges.len() > 2 {
        let spec = object.get("spec").cloned().unwrap_or_default();
        return vec![FieldError::invalid(RANGES, spec, "may only hold up to 2 values")];
    }
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let mut errors = Vec::new();
    for (i, range) in ranges.iter().enumerate() {
        errors.extend(ip::canonical_range_faults(&format!("{RANGES}[{i}]"), &text(range)));
    }
    if let [a, b] = ranges
        && let (Ok(a), Ok(b)) = (text(a).parse::<ipnet::IpNet>(), text(b).parse::<ipnet::IpNet>())
        && a.addr().is_ipv4() == b.addr().is_ipv4()
    {
        let text = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(RANGES, ranges.to_vec(), text));
    }
    errors
}

/// A range never changes; a second one of the other family may come.
fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    const FIXED: &str = "field is immutable";
    let (now, before) = (walk::list(new, RANGES), walk::list(old, RANGES));
    let mut errors = Vec::new();
    if now.len() == before.len() {
        for (i, (n, _)) in now.iter().zip(before).enumerate().filter(|(_, (n, b))| n != b) {
            errors.push(FieldError::invalid(format!("{RANGES}[{i}]"), n.clone(), FIXED));
        }
    } else if let ([only], [first, _]) = (before, now) {
        if only != first {
            errors.push(FieldError::invalid(format!("{RANGES}[0]"), first.clone(), FIXED));
        }
        errors.extend(validate(new));
    } else {
        errors.push(FieldError::invalid(RANGES, now.to_vec(), FIXED));
    }
    errors
}

fn validate_address(object: &Value) -> Vec<FieldError> {
    const PARENT: &str = "spec.parentRef";
    let Some(parent) = walk::at(object, PARENT) else {
        return vec![FieldError::required(PARENT, "")];
    };
    let mut errors = Vec::new();
    let group = walk::text(parent, "group");
    if !group.is_empty() {
        errors.extend(meta::findings(&format!("{PARENT}.group"), group, meta::subdomain_faults(group)));
    }
    for (field, needed) in [("resource", true), ("name", true), ("namespace", false)] {
        let path = format!("{PARENT}.{field}");
        match walk::text(parent, field) {
            "" if needed => errors.push(FieldError::required(path, "")),
            text => errors.extend(meta::findings(&path, text, meta::path_segment_faults(text))),
        }
    }
    errors
}

fn validate_address_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_address(new);
    let (now, before) = (walk::at(new, "spec.parentRef"), walk::at(old, "spec.parentRef"));
    if now != before {
        let now = now.cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.parentRef", now, "field is immutable"));
    }
    errors
}
