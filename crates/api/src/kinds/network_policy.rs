//! NetworkPolicies, kept as data: nothing here enforces them.

use serde_json::{Value, json};

use super::{AGE, selector_text};
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy};
use crate::selector::validate_object;
use crate::{duration, ip, meta, walk};

/// The entry of NetworkPolicy.
pub static NETWORK_POLICY: Kind = Kind::Listed(&Entry {
    short_names: &["netpol"],
    generation: true,
    strategy: Strategy {
        default,
        validate: |o| validate(o, &[]),
        validate_update: |new, old| validate(new, &ranges(old)),
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Pod-Selector", "string", "The pods that the policy is about."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        vec![
            meta::name(o).into(),
            selector_text(walk::at(o, "spec.podSelector")),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of(
        "networking.k8s.io",
        "v1",
        ("NetworkPolicy", "NetworkPolicyList"),
        ("networkpolicies", "networkpolicy"),
    )
});

const WAYS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

fn default(object: &mut Value) {
    walk::default(object, "spec.podSelector", json!({}));
    super::drop_if_empty(object, "spec.podSelector.matchLabels");
    for (way, _) in WAYS {
        for rule in walk::list_mut(object, &format!("spec.{way}")) {
            for port in walk::list_mut(rule, "ports") {
                walk::default(port, "protocol", "TCP");
            }
        }
    }
    if walk::list(object, "spec.policyTypes").is_empty() {
        let mut types = vec!["Ingress"];
        if !walk::list(object, "spec.egress").is_empty() {
            types.push("Egress");
        }
        walk::set(object, "spec.policyTypes", types);
    }
}

/// The ranges that a stored policy names: they need not be checked again.
fn ranges(object: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    for (way, peers) in WAYS {
        for rule in walk::list(object, &format!("spec.{way}")) {
            for block in walk::list(rule, peers).iter().filter_map(|peer| walk::at(peer, "ipBlock")) {
                found.push(walk::text(block, "cidr"));
                found.extend(walk::list(block, "except").iter().filter_map(Value::as_str));
            }
        }
    }
    found
}

fn validate(object: &Value, had: &[&str]) -> Vec<FieldError> {
    let mut errors =
        validate_object(walk::at(object, "spec.podSelector").unwrap_or(&Value::Null), "spec.podSelector");
    for (way, peers) in WAYS {
        for (i, rule) in walk::list(object, &format!("spec.{way}")).iter().enumerate() {
            for (j, value) in walk::list(rule, "ports").iter().enumerate() {
                port(&mut errors, value, &format!("spec.{way}[{i}].ports[{j}]"));
            }
            for (j, value) in walk::list(rule, peers).iter().enumerate() {
                peer(&mut errors, value, &format!("spec.{way}[{i}].{peers}[{j}]"), had);
            }
        }
    }
    let types = walk::list(object, "spec.policyTypes");
    if types.len() > 2 {
        let text = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid("spec.policyTypes", types.to_vec(), text));
        return errors;
    }
    for (i, value) in types.iter().enumerate() {
        let text = value.as_str().unwrap_or("");
        if !matches!(text, "Ingress" | "Egress") {
            let path = format!("spec.policyTypes[{i}]");
            errors.push(FieldError::not_supported(path, text, &["Ingress", "Egress"]));
        }
    }
    errors
}

fn port(errors: &mut Vec<FieldError>, value: &Value, at: &str) {
    let protocol = walk::text(value, "protocol");
    if !matches!(protocol, "" | "TCP" | "UDP" | "SCTP") {
        errors.push(FieldError::not_supported(format!("{at}.protocol"), protocol, &["TCP", "UDP", "SCTP"]));
    }
    let end = walk::int(value, "endPort");
    let path = format!("{at}.endPort");
    match (walk::at(value, "port"), end) {
        (None, Some(end)) => {
            errors.push(FieldError::invalid(path, end, "may not be specified when `port` is not specified"));
        }
        (Some(Value::String(name)), end) => {
            if let Some(end) = end {
                let text = "may not be specified when `port` is non-numeric";
                errors.push(FieldError::invalid(path, end, text));
            }
            errors.extend(meta::findings(&format!("{at}.port"), name, meta::port_name_faults(name)));
        }
        (Some(number), end) => {
            let number = number.as_i64().unwrap_or(0);
            if !meta::is_port(number) {
                errors.push(FieldError::invalid(format!("{at}.port"), number, meta::PORT_TEXT));
            }
            if let Some(end) = end {
                if end < number {
                    // The value shown is the port, not the end: so does Kubernetes.
                    let text = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(&path, number, text));
                }
                if !meta::is_port(end) {
                    errors.push(FieldError::invalid(path, end, meta::PORT_TEXT));
                }
            }
        }
        (None, None) => {}
    }
}

fn peer(errors: &mut Vec<FieldError>, value: &Value, at: &str, had: &[&str]) {
    let mut others = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = walk::at(value, field) {
            others += 1;
            errors.extend(validate_object(selector, &format!("{at}.{field}")));
        }
    }
    let block = walk::at(value, "ipBlock");
    if let Some(block) = block {
        ip_block(errors, block, &format!("{at}.ipBlock"), had);
    }
    if others == 0 && block.is_none() {
        errors.push(FieldError::required(at, "must specify a peer"));
    } else if others > 0 && block.is_some() {
        errors.push(FieldError::forbidden(at, "may not specify both ipBlock and another peer"));
    }
}

fn ip_block(errors: &mut Vec<FieldError>, block: &Value, at: &str, had: &[&str]) {
    let cidr = walk::text(block, "cidr");
    if cidr.is_empty() {
        errors.push(FieldError::required(format!("{at}.cidr"), ""));
        return;
    }
    errors.extend(ip::range_faults(&format!("{at}.cidr"), cidr, had));
    let Ok(net) = cidr.parse::<ipnet::IpNet>() else { return };
    for (i, except) in walk::list(block, "except").iter().filter_map(Value::as_str).enumerate() {
        let path = format!("{at}.except[{i}]");
        errors.extend(ip::range_faults(&path, except, had));
        let Ok(part) = except.parse::<ipnet::IpNet>() else { continue };
        if !net.contains(&part.network()) || net.prefix_len() >= part.prefix_len() {
            errors.push(FieldError::invalid(path, except, "must be a strict subset of `cidr`"));
        }
    }
}
