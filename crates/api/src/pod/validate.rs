//! The rules of a pod's specification.

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::{meta, walk};

fn word(errors: &mut Vec<FieldError>, value: &Value, at: &str, field: &str, allowed: &[&str]) {
    let path = format!("{at}.{field}");
    match walk::text(value, field) {
        "" => errors.push(FieldError::required(path, "")),
        found if !allowed.contains(&found) => errors.push(FieldError::not_supported(path, found, allowed)),
        _ => {}
    }
}

fn not_negative(errors: &mut Vec<FieldError>, value: &Value, at: &str, field: &str) {
    if let Some(n) = walk::int(value, field).filter(|n| *n < 0) {
        errors.push(FieldError::invalid(format!("{at}.{field}"), n, "must be greater than or equal to 0"));
    }
}

/// What is wrong with a pod template at `at` (`ValidatePodTemplateSpec`).
pub fn validate_template(template: &Value, at: &str) -> Vec<FieldError> {
    let labels = walk::map(template, "metadata.labels");
    let mut errors = meta::validate_labels(labels, &format!("{at}.labels"));
    let annotations = walk::map(template, "metadata.annotations");
    errors.extend(meta::validate_annotations(annotations, &format!("{at}.annotations")));
    let spec = template.get("spec").unwrap_or(&Value::Null);
    errors.extend(validate_spec(spec, &format!("{at}.spec")));
    errors
}

/// What is wrong with a pod's specification at `at` (`spec`, or `spec.template.spec`).
pub fn validate_spec(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut volumes: Vec<&str> = Vec::new();
    for (i, volume) in walk::list(spec, "volumes").iter().enumerate() {
        let path = format!("{at}.volumes[{i}].name");
        let name = walk::text(volume, "name");
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else {
            errors.extend(meta::findings(&path, name, meta::label_faults(name)));
            if volumes.contains(&name) {
                errors.push(FieldError::duplicate(path, name));
            }
        }
        volumes.push(name);
    }
    let host_network = walk::flag(spec, "hostNetwork") == Some(true);
    if walk::list(spec, "containers").is_empty() {
        errors.push(FieldError::required(format!("{at}.containers"), ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for list in ["containers", "initContainers"] {
        let mut host_ports: Vec<(i64, &str, &str)> = Vec::new();
        for (i, container) in walk::list(spec, list).iter().enumerate() {
            let path = format!("{at}.{list}[{i}]");
            let name = walk::text(container, "name");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            } else {
                errors.extend(meta::findings(&format!("{path}.name"), name, meta::label_faults(name)));
                if names.contains(&name) {
                    errors.push(FieldError::duplicate(format!("{path}.name"), name));
                }
            }
            names.push(name);
            container_rules(&mut errors, container, &path, &volumes, host_network);
            for (j, port) in walk::list(container, "ports").iter().enumerate() {
                let key = (
                    walk::int(port, "hostPort").unwrap_or(0),
                    walk::text(port, "protocol"),
                    walk::text(port, "hostIP"),
                );
                if key.0 != 0 && list == "containers" {
                    if host_ports.contains(&key) {
                        let shown = format!("{}/{}/{}", key.1, key.2, key.0);
                        errors.push(FieldError::duplicate(format!("{path}.ports[{j}].hostPort"), shown));
                    }
                    host_ports.push(key);
                }
            }
        }
    }
    word(&mut errors, spec, at, "restartPolicy", &["Always", "OnFailure", "Never"]);
    word(&mut errors, spec, at, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    not_negative(&mut errors, spec, at, "terminationGracePeriodSeconds");
    errors.extend(meta::validate_labels(walk::map(spec, "nodeSelector"), &format!("{at}.nodeSelector")));
    for (field, rule) in [
        ("nodeName", meta::subdomain_faults as fn(&str) -> Vec<String>),
        ("serviceAccountName", meta::subdomain_faults),
        ("hostname", meta::label_faults),
        ("subdomain", meta::label_faults),
    ] {
        let text = walk::text(spec, field);
        if !text.is_empty() {
            errors.extend(meta::findings(&format!("{at}.{field}"), text, rule(text)));
        }
    }
    if let Some(n) = walk::int(spec, "activeDeadlineSeconds").filter(|n| *n < 1) {
        errors.push(FieldError::invalid(
            format!("{at}.activeDeadlineSeconds"),
            n,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    for (i, alias) in walk::list(spec, "hostAliases").iter().enumerate() {
        let ip = walk::text(alias, "ip");
        errors.extend(crate::ip::faults(&format!("{at}.hostAliases[{i}].ip"), ip, &[]));
    }
    tolerations(&mut errors, spec, at);
    errors
}

fn tolerations(errors: &mut Vec<FieldError>, spec: &Value, at: &str) {
    for (i, toleration) in walk::list(spec, "tolerations").iter().enumerate() {
        let path = |field: &str| format!("{at}.tolerations[{i}].{field}");
        let key = walk::text(toleration, "key");
        let operator = walk::text(toleration, "operator");
        if !key.is_empty() {
            errors.extend(meta::findings(&path("key"), key, meta::qualified_faults(key)));
        } else if operator != "Exists" {
            errors.push(FieldError::invalid(
                path("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if !matches!(operator, "" | "Equal" | "Exists") {
            errors.push(FieldError::not_supported(path("operator"), operator, &["Equal", "Exists"]));
        }
        let effect = walk::text(toleration, "effect");
        if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            errors.push(FieldError::not_supported(
                path("effect"),
                effect,
                &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            ));
        }
    }
}

fn container_rules(
    errors: &mut Vec<FieldError>,
    container: &Value,
    at: &str,
    volumes: &[&str],
    host_network: bool,
) {
    let image = walk::text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{at}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{at}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in walk::list(container, "ports").iter().enumerate() {
        let path = |field: &str| format!("{at}.ports[{i}].{field}");
        let name = walk::text(port, "name");
        if !name.is_empty() {
            errors.extend(meta::findings(&path("name"), name, meta::port_name_faults(name)));
            if names.contains(&name) {
                errors.push(FieldError::duplicate(path("name"), name));
            }
            names.push(name);
        }
        let number = walk::int(port, "containerPort").unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(path("containerPort"), ""));
        } else if !meta::is_port(number) {
            errors.push(FieldError::invalid(path("containerPort"), number, meta::PORT_TEXT));
        }
        let host = walk::int(port, "hostPort").unwrap_or(0);
        if host != 0 && !meta::is_port(host) {
            errors.push(FieldError::invalid(path("hostPort"), host, meta::PORT_TEXT));
        } else if host_network && host != number {
            errors.push(FieldError::invalid(
                path("hostPort"),
                host,
                "must match `containerPort` when `hostNetwork` is true",
            ));
        }
        word(errors, port, &format!("{at}.ports[{i}]"), "protocol", &["SCTP", "TCP", "UDP"]);
    }
    for (i, env) in walk::list(container, "env").iter().enumerate() {
        let name = walk::text(env, "name");
        let path = format!("{at}.env[{i}].name");
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if name.contains('=') || !name.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            let text = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.push(FieldError::invalid(path, name, text));
        }
        if !walk::text(env, "value").is_empty() && walk::at(env, "valueFrom").is_some() {
            errors.push(FieldError::invalid(
                format!("{at}.env[{i}].valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            ));
        }
    }
    let mut paths: Vec<&str> = Vec::new();
    for (i, mount) in walk::list(container, "volumeMounts").iter().enumerate() {
        let (name, path) = (walk::text(mount, "name"), walk::text(mount, "mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.volumeMounts[{i}].name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(FieldError::not_found(format!("{at}.volumeMounts[{i}].name"), name));
        }
        if path.is_empty() {
            errors.push(FieldError::required(format!("{at}.volumeMounts[{i}].mountPath"), ""));
        } else if paths.contains(&path) {
            errors.push(FieldError::invalid(
                format!("{at}.volumeMounts[{i}].mountPath"),
                path,
                "must be unique",
            ));
        }
        paths.push(path);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = walk::at(container, probe) {
            probe_rules(errors, value, &format!("{at}.{probe}"), probe != "readinessProbe");
        }
    }
    for hook in ["lifecycle.postStart", "lifecycle.preStop"] {
        if let Some(value) = walk::at(container, hook) {
            handler(errors, value, &format!("{at}.{hook}"));
        }
    }
    word(errors, container, at, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    word(errors, container, at, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"]);
}

fn probe_rules(errors: &mut Vec<FieldError>, probe: &Value, at: &str, once: bool) {
    handler(errors, probe, at);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        not_negative(errors, probe, at, field);
    }
    let successes = walk::int(probe, "successThreshold").unwrap_or(1);
    if once && successes != 1 {
        errors.push(FieldError::invalid(format!("{at}.successThreshold"), successes, "must be 1"));
    }
}

fn handler(errors: &mut Vec<FieldError>, value: &Value, at: &str) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let mut found = kinds.iter().filter(|k| walk::at(value, k).is_some());
    let Some(first) = found.next() else {
        errors.push(FieldError::required(at, "must specify a handler type"));
        return;
    };
    for more in found {
        errors
            .push(FieldError::forbidden(format!("{at}.{more}"), "may not specify more than 1 handler type"));
    }
    let at = format!("{at}.{first}");
    match *first {
        "exec" if walk::list(value, "exec.command").is_empty() => {
            errors.push(FieldError::required(format!("{at}.command"), ""));
        }
        "httpGet" | "tcpSocket" | "grpc" => {
            let path = format!("{at}.port");
            match walk::at(value, &format!("{first}.port")) {
                Some(Value::String(name)) => {
                    errors.extend(meta::findings(&path, name, meta::port_name_faults(name)))
                }
                other => {
                    let number = other.and_then(Value::as_i64).unwrap_or(0);
                    if !meta::is_port(number) {
                        errors.push(FieldError::invalid(path, number, meta::PORT_TEXT));
                    }
                }
            }
            if *first == "httpGet" {
                word(
                    errors,
                    walk::at(value, "httpGet").unwrap_or(&Value::Null),
                    &at,
                    "scheme",
                    &["HTTP", "HTTPS"],
                );
            }
        }
        _ => {}
    }
}

/// What may change in a pod that exists: little.
pub fn validate_change(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for list in ["containers", "initContainers"] {
        let path = format!("spec.{list}");
        if walk::list(new, &path).len() != walk::list(old, &path).len() {
            errors.push(FieldError::forbidden(path, "pod updates may not add or remove containers"));
            return errors;
        }
    }
    let (mut same, mut spec) =
        (new.get("spec").cloned().unwrap_or_default(), old.get("spec").cloned().unwrap_or_default());
    if walk::int(&spec, "terminationGracePeriodSeconds").is_some_and(|n| n < 0)
        && walk::int(&same, "terminationGracePeriodSeconds") == Some(1)
    {
        walk::set(&mut spec, "terminationGracePeriodSeconds", 1);
    }
    if let (Some(a), Some(b)) =
        (walk::int(&same, "activeDeadlineSeconds"), walk::int(&spec, "activeDeadlineSeconds"))
        && a > b
    {
        errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            a,
            "must be less than or equal to previous value",
        ));
    }
    let had = walk::list(&spec, "tolerations").to_vec();
    let has = walk::list(&same, "tolerations").to_vec();
    if had.iter().any(|t| !has.contains(t)) {
        errors.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    for value in [&mut same, &mut spec] {
        for field in ["tolerations", "activeDeadlineSeconds", "schedulingGates"] {
            walk::remove(value, field);
        }
        for list in ["containers", "initContainers"] {
            for container in walk::list_mut(value, list) {
                walk::remove(container, "image");
            }
        }
    }
    if same != spec {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
    errors
}
