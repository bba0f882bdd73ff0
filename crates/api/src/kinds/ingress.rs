//! Ingresses and IngressClasses, kept as data: routing by name and path is somebody else's work.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::{duration, ip, meta, walk};

/// The entry of Ingress.
pub static INGRESS: Kind = Kind::Listed(&Entry {
    short_names: &["ing"],
    subresources: &["status"],
    generation: true,
    strategy: Strategy {
        default: |o| {
            for (list, field) in [("spec.rules", "host"), ("spec.tls", "secretName")] {
                walk::list_mut(o, list).iter_mut().for_each(|item| super::drop_if_empty(item, field));
            }
        },
        prepare_create: |o| walk::set(o, "status", json!({"loadBalancer": {}})),
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: |o| {
            let mut errors = validate(o);
            errors.extend(class_annotation(o));
            errors
        },
        validate_update: |new, _| {
            let mut errors = meta::validate_base(new, meta::NameRule::Subdomain);
            errors.extend(validate(new));
            errors
        },
        validate_status_update,
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Class", "string", "The IngressClass that is meant."),
        Column::new("Hosts", "string", "The names that are asked for."),
        Column::new("Address", "string", "Where requests come in."),
        Column::new("Ports", "string", "The ports that are open."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let mut addresses: Vec<&str> = Vec::new();
        for ingress in walk::list(o, "status.loadBalancer.ingress") {
            let (ip, host) = (walk::text(ingress, "ip"), walk::text(ingress, "hostname"));
            addresses.push(if ip.is_empty() { host } else { ip });
        }
        addresses.retain(|text| !text.is_empty());
        addresses.sort_unstable();
        addresses.dedup();
        let mut address = addresses.join(",");
        if address.len() > 16 {
            address.truncate(13);
            address.push_str("...");
        }
        let ports = if walk::list(o, "spec.tls").is_empty() { "80" } else { "80, 443" };
        vec![
            meta::name(o).into(),
            walk::at(o, "spec.ingressClassName").and_then(Value::as_str).unwrap_or("<none>").into(),
            hosts(walk::list(o, "spec.rules")).into(),
            address.into(),
            ports.into(),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of("networking.k8s.io", "v1", ("Ingress", "IngressList"), ("ingresses", "ingress"))
});

/// The entry of IngressClass.
pub static INGRESS_CLASS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    generation: true,
    strategy: Strategy {
        default: |o| {
            if walk::at(o, "spec.parameters").is_some() {
                walk::default(o, "spec.parameters.scope", "Cluster");
            }
        },
        validate: validate_class,
        validate_update: |new, old| {
            let mut errors = Vec::new();
            let (now, before) = (walk::text(new, "spec.controller"), walk::text(old, "spec.controller"));
            if now != before {
                errors.push(FieldError::invalid("spec.controller", now, "field is immutable"));
            }
            errors.extend(validate_class(new));
            errors
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Controller", "string", "Who handles this class."),
        Column::new("Parameters", "string", "Where more is said about the class."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let mut name = meta::name(o).to_owned();
        if meta::annotation(o, "ingressclass.kubernetes.io/is-default-class") == Some("true") {
            name.push_str(" (default)");
        }
        let parameters = walk::at(o, "spec.parameters").map_or_else(
            || "<none>".to_owned(),
            |p| {
                let group = walk::at(p, "apiGroup").and_then(Value::as_str);
                let dot = group.map_or_else(String::new, |group| format!(".{group}"));
                format!("{}{dot}/{}", walk::text(p, "kind"), walk::text(p, "name"))
            },
        );
        vec![
            name.into(),
            walk::text(o, "spec.controller").into(),
            parameters.into(),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of(
        "networking.k8s.io",
        "v1",
        ("IngressClass", "IngressClassList"),
        ("ingressclasses", "ingressclass"),
    )
});

fn hosts(rules: &[Value]) -> String {
    let (mut shown, mut more): (Vec<&str>, bool) = (Vec::new(), false);
    for rule in rules {
        more |= shown.len() == 3;
        let host = walk::text(rule, "host");
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".into(),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - 3),
        (false, false) => shown.join(","),
    }
}

fn class_annotation(object: &Value) -> Option<FieldError> {
    const KEY: &str = "kubernetes.io/ingress.class";
    let annotation = meta::annotation(object, KEY)?;
    let class = walk::at(object, "spec.ingressClassName").and_then(Value::as_str)?;
    let text = "must match `ingressClassName` when both are specified";
    (annotation != class).then(|| FieldError::invalid(format!("annotations.{KEY}"), annotation, text))
}

const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
    consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', \
    regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn host_faults(host: &str) -> Vec<String> {
    if !host.contains('*') {
        return meta::subdomain_faults(host);
    }
    let good = host.strip_prefix("*.").is_some_and(|rest| meta::subdomain_faults(rest).is_empty());
    if good { Vec::new() } else { vec![WILDCARD.into()] }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let rules = walk::list(object, "spec.rules");
    let default = walk::at(object, "spec.defaultBackend");
    if rules.is_empty() && default.is_none() {
        let text = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", Value::Null, text));
    }
    if let Some(default) = default {
        backend(&mut errors, default, "spec.defaultBackend");
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        let host = walk::text(rule, "host");
        if !host.is_empty() {
            let path = format!("{at}.host");
            if ip::parse(host).is_some() {
                errors.push(FieldError::invalid(&path, host, "must be a DNS name, not an IP address"));
            }
            errors.extend(meta::findings(&path, host, host_faults(host)));
        }
        let Some(http) = walk::at(rule, "http") else { continue };
        let paths = walk::list(http, "paths");
        if paths.is_empty() {
            errors.push(FieldError::required(format!("{at}.http.paths"), ""));
        }
        for (j, path) in paths.iter().enumerate() {
            route(&mut errors, path, &format!("{at}.http.paths[{j}]"));
        }
    }
    for (i, tls) in walk::list(object, "spec.tls").iter().enumerate() {
        for (j, host) in walk::list(tls, "hosts").iter().filter_map(Value::as_str).enumerate() {
            errors.extend(meta::findings(&format!("spec.tls[{i}].hosts[{j}]"), host, host_faults(host)));
        }
        let secret = walk::text(tls, "secretName");
        if !secret.is_empty() {
            let path = format!("spec.tls[{i}].secretName");
            errors.extend(meta::findings(&path, secret, meta::subdomain_faults(secret)));
        }
    }
    if let Some(class) = walk::at(object, "spec.ingressClassName").and_then(Value::as_str) {
        errors.extend(meta::findings("spec.ingressClassName", class, meta::subdomain_faults(class)));
    }
    errors
}

fn route(errors: &mut Vec<FieldError>, value: &Value, at: &str) {
    let path = walk::text(value, "path");
    let mut say = |text: String| errors.push(FieldError::invalid(format!("{at}.path"), path, text));
    match walk::text(value, "pathType") {
        "" if walk::at(value, "pathType").is_none() => {
            errors.push(FieldError::required(format!("{at}.pathType"), "pathType must be specified"));
            return;
        }
        "Exact" | "Prefix" => {
            if !path.starts_with('/') {
                say("must be an absolute path".into());
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|part| path.contains(part)) {
                say(format!("must not contain '{part}'"));
            }
            for end in ["/..", "/."].into_iter().filter(|end| path.ends_with(end)) {
                say(format!("cannot end with '{end}'"));
            }
        }
        "ImplementationSpecific" => {
            if !path.is_empty() && !path.starts_with('/') {
                say("must be an absolute path".into());
            }
        }
        other => errors.push(FieldError::not_supported(
            format!("{at}.pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
        )),
    }
    backend(errors, walk::at(value, "backend").unwrap_or(&Value::Null), &format!("{at}.backend"));
}

fn backend(errors: &mut Vec<FieldError>, value: &Value, at: &str) {
    match (walk::at(value, "resource"), walk::at(value, "service")) {
        (Some(_), Some(_)) => {
            errors.push(FieldError::invalid(at, "", "cannot set both resource and service backends"));
        }
        (Some(resource), None) => reference(errors, resource, &format!("{at}.resource")),
        (None, Some(service)) => {
            let name = walk::text(service, "name");
            let path = format!("{at}.service.name");
            if name.is_empty() {
                errors.push(FieldError::required(path, ""));
            } else {
                errors.extend(meta::findings(&path, name, meta::label_faults(name)));
            }
            let (word, number) =
                (walk::text(service, "port.name"), walk::int(service, "port.number").unwrap_or(0));
            match (word.is_empty(), number) {
                (false, 0) => {
                    let path = format!("{at}.service.port.name");
                    errors.extend(meta::findings(&path, word, meta::port_name_faults(word)));
                }
                (false, _) => {
                    errors.push(FieldError::invalid(at, "", "cannot set both port name & port number"));
                }
                (true, 0) => errors.push(FieldError::required(at, "port name or number is required")),
                (true, n) if !meta::is_port(n) => {
                    errors.push(FieldError::invalid(format!("{at}.service.port.number"), n, meta::PORT_TEXT));
                }
                _ => {}
            }
        }
        (None, None) => {
            errors.push(FieldError::invalid(at, "", "resource or service backend is required"));
        }
    }
}

fn reference(errors: &mut Vec<FieldError>, value: &Value, at: &str) {
    if let Some(group) = walk::at(value, "apiGroup").and_then(Value::as_str) {
        errors.extend(meta::findings(&format!("{at}.apiGroup"), group, meta::subdomain_faults(group)));
    }
    for field in ["kind", "name"] {
        let path = format!("{at}.{field}");
        match walk::text(value, field) {
            "" => errors.push(FieldError::required(path, "")),
            text => errors.extend(meta::findings(&path, text, meta::path_segment_faults(text))),
        }
    }
}

fn validate_status_update(new: &Value, old: &Value) -> Vec<FieldError> {
    const LIST: &str = "status.loadBalancer.ingress";
    let had: Vec<&str> = walk::list(old, LIST).iter().map(|i| walk::text(i, "ip")).collect();
    let mut errors = Vec::new();
    for (i, ingress) in walk::list(new, LIST).iter().enumerate() {
        let (address, host) = (walk::text(ingress, "ip"), walk::text(ingress, "hostname"));
        if !address.is_empty() {
            errors.extend(ip::faults(&format!("{LIST}[{i}].ip"), address, &had));
        }
        if !host.is_empty() {
            let path = format!("{LIST}[{i}].hostname");
            errors.extend(meta::findings(&path, host, meta::subdomain_faults(host)));
            if ip::parse(host).is_some() {
                errors.push(FieldError::invalid(path, host, "must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

fn validate_class(object: &Value) -> Vec<FieldError> {
    const AT: &str = "spec.parameters";
    let controller = walk::text(object, "spec.controller");
    let mut errors = Vec::new();
    if controller.len() > 250 {
        errors.push(FieldError::too_long("spec.controller", 250));
    }
    errors.extend(meta::domain_prefixed_path_faults("spec.controller", controller));
    let Some(parameters) = walk::at(object, AT) else { return errors };
    reference(&mut errors, parameters, AT);
    let namespace = walk::at(parameters, "namespace").and_then(Value::as_str);
    match (walk::text(parameters, "scope"), namespace) {
        ("Namespace", None) => errors.push(FieldError::required(
            format!("{AT}.namespace"),
            "`parameters.scope` is set to 'Namespace'",
        )),
        ("Namespace", Some(name)) => {
            errors.extend(meta::findings(&format!("{AT}.namespace"), name, meta::label_faults(name)));
        }
        ("Cluster", Some(_)) => errors
            .push(FieldError::forbidden(format!("{AT}.namespace"), "`parameters.scope` is set to 'Cluster'")),
        ("Cluster", None) => {}
        (other, _) => {
            errors.push(FieldError::not_supported(format!("{AT}.scope"), other, &["Cluster", "Namespace"]))
        }
    }
    errors
}
