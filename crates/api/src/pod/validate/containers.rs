//! The rules of containers: those that run, those that begin, and those that look in.

use serde_json::Value;

use super::volumes::{descending, no_backsteps};
use super::{Around, Errors, every_container, handlers, has, label, maybe, resources, security, word};
use crate::fielderror::FieldError;
use crate::quantity::Quantity;
use crate::{meta, walk};

/// The containers that run.
pub(super) fn main(errors: &mut Errors, spec: &Value, around: &Around<'_>, at: &str) {
    let all = walk::list(spec, "containers");
    let at = format!("{at}.containers");
    if all.is_empty() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, container) in all.iter().enumerate() {
        let path = format!("{at}[{i}]");
        common(errors, container, around, &path);
        let name = walk::text(container, "name");
        if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        } else {
            names.push(name);
        }
        handlers::of_container(errors, container, around, &path);
        restarts(errors, container, &path);
    }
    host_ports(errors, all, &at);
}

/// The containers that run to their ends before others begin, or beside them.
pub(super) fn init(errors: &mut Errors, spec: &Value, around: &Around<'_>, at: &str) {
    let mut names: Vec<&str> = walk::list(spec, "containers").iter().map(|c| walk::text(c, "name")).collect();
    let at = format!("{at}.initContainers");
    for (i, container) in walk::list(spec, "initContainers").iter().enumerate() {
        let path = format!("{at}[{i}]");
        common(errors, container, around, &path);
        restarts(errors, container, &path);
        let name = walk::text(container, "name");
        if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        } else if !name.is_empty() {
            names.push(name);
        }
        host_ports(errors, std::slice::from_ref(container), &at);
        let beside = walk::text(container, "restartPolicy") == "Always";
        if beside {
            handlers::of_container(errors, container, around, &path);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if has(container, field) {
                    let text = "may not be set for init containers without restartPolicy=Always";
                    errors.push(FieldError::forbidden(format!("{path}.{field}"), text));
                }
            }
            for (j, policy) in walk::list(container, "resizePolicy").iter().enumerate() {
                if walk::text(policy, "restartPolicy") == "RestartContainer" {
                    errors.push(FieldError::invalid(
                        format!("{path}.resizePolicy[{j}].restartPolicy"),
                        "RestartContainer",
                        "must not be set to 'RestartContainer' for non-sidecar initContainers",
                    ));
                }
            }
        }
    }
}

/// What a container that looks in may not have, in the order of Go's struct.
const NOT_EPHEMERAL: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

/// The containers that look in.
pub(super) fn ephemeral(errors: &mut Errors, spec: &Value, around: &Around<'_>, at: &str) {
    let others: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| walk::list(spec, list))
        .map(|c| walk::text(c, "name"))
        .collect();
    let mut names = others.clone();
    for (i, container) in walk::list(spec, "ephemeralContainers").iter().enumerate() {
        let path = format!("{at}.ephemeralContainers[{i}]");
        common(errors, container, around, &path);
        padded_image(errors, container, &path);
        let name = walk::text(container, "name");
        if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        } else {
            names.push(name);
        }
        let target = walk::text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
        }
        const TEXT: &str = "cannot be set for an Ephemeral Container";
        for field in NOT_EPHEMERAL {
            let empty = |value: &Value| match value {
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if walk::at(container, field).is_some_and(|value| !empty(value)) {
                errors.push(FieldError::forbidden(format!("{path}.{field}"), TEXT));
            }
        }
        for (j, mount) in walk::list(container, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !walk::text(mount, field).is_empty() {
                    errors.push(FieldError::forbidden(format!("{path}.volumeMounts[{j}].{field}"), TEXT));
                }
            }
        }
    }
}

/// Finds fault with an image's name that has spaces around it; templates may have them.
pub(super) fn padded_image(errors: &mut Errors, container: &Value, at: &str) {
    let image = walk::text(container, "image");
    if image.trim() != image {
        let text = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{at}.image"), image, text));
    }
}

fn common(errors: &mut Errors, container: &Value, around: &Around<'_>, at: &str) {
    let name = walk::text(container, "name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{at}.name"), ""));
    } else {
        label(errors, &format!("{at}.name"), name);
    }
    if walk::text(container, "image").is_empty() {
        errors.push(FieldError::required(format!("{at}.image"), ""));
    }
    word(errors, container, at, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(errors, container, at);
    environment(errors, container, at);
    environment_from(errors, container, at);
    mounts(errors, container, around, at);
    devices(errors, container, around, at);
    word(errors, container, at, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    if let Some(wants) = walk::at(container, "resources") {
        resources::of_container(errors, wants, &around.claims, &format!("{at}.resources"));
    }
    resizes(errors, container, around, &format!("{at}.resizePolicy"));
    security::of_container(errors, container, around.host_users, &format!("{at}.securityContext"));
}

fn ports(errors: &mut Errors, container: &Value, at: &str) {
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in walk::list(container, "ports").iter().enumerate() {
        let path = |field: &str| format!("{at}.ports[{i}].{field}");
        let name = walk::text(port, "name");
        if !name.is_empty() {
            let faults = meta::port_name_faults(name);
            if faults.is_empty() && names.contains(&name) {
                errors.push(FieldError::duplicate(path("name"), name));
            } else if faults.is_empty() {
                names.push(name);
            }
            errors.extend(meta::findings(&path("name"), name, faults));
        }
        for field in ["containerPort", "hostPort"] {
            let number = walk::int(port, field).unwrap_or(0);
            if number == 0 && field == "containerPort" {
                errors.push(FieldError::required(path(field), ""));
            } else if number != 0 && !meta::is_port(number) {
                errors.push(FieldError::invalid(path(field), number, meta::PORT_TEXT));
            }
        }
        word(errors, port, &format!("{at}.ports[{i}]"), "protocol", &["SCTP", "TCP", "UDP"]);
    }
}

fn host_ports(errors: &mut Errors, containers: &[Value], at: &str) {
    let mut taken: Vec<String> = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in walk::list(container, "ports").iter().enumerate() {
            let number = walk::int(port, "hostPort").unwrap_or(0);
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", walk::text(port, "protocol"), walk::text(port, "hostIP"));
            if taken.contains(&key) {
                errors.push(FieldError::duplicate(format!("{at}[{i}].ports[{j}].hostPort"), key));
            } else {
                taken.push(key);
            }
        }
    }
}

/// What keeps a text from being the name of a variable.
fn variable_faults(name: &str) -> Vec<String> {
    let printable = |b: u8| (b' '..=b'~').contains(&b) && b != b'=';
    if name.bytes().all(printable) {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .into(),
    ]
}

fn environment(errors: &mut Errors, container: &Value, at: &str) {
    for (i, variable) in walk::list(container, "env").iter().enumerate() {
        let path = format!("{at}.env[{i}]");
        let name = walk::text(variable, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            errors.extend(meta::findings(&format!("{path}.name"), name, variable_faults(name)));
        }
        if let Some(from) = walk::at(variable, "valueFrom") {
            value_from(errors, from, walk::text(variable, "value"), &format!("{path}.valueFrom"));
        }
    }
}

const OF_POD: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(errors: &mut Errors, from: &Value, value: &str, at: &str) {
    let mut count = 0;
    for kind in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let Some(source) = walk::at(from, kind) else { continue };
        count += 1;
        let path = format!("{at}.{kind}");
        match kind {
            "fieldRef" => field_reference(errors, source, &OF_POD, &path),
            "resourceFieldRef" => resource_reference(errors, source, &path, false),
            "fileKeyRef" => file_key(errors, source, &path),
            _ => {
                let name = walk::text(source, "name");
                super::subdomain(errors, &format!("{path}.name"), name);
                let key = walk::text(source, "key");
                if key.is_empty() {
                    errors.push(FieldError::required(format!("{path}.key"), ""));
                } else {
                    errors.extend(meta::findings(&format!("{path}.key"), key, meta::config_key_faults(key)));
                }
            }
        }
    }
    let text = match count {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if !value.is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(at, "", text));
}

fn file_key(errors: &mut Errors, source: &Value, at: &str) {
    let of = |field: &str| (format!("{at}.{field}"), walk::text(source, field));
    let (path, key) = of("key");
    if key.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        errors.extend(meta::findings(&path, key, variable_faults(key)));
    }
    let (path, volume) = of("volumeName");
    if volume.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        label(errors, &path, volume);
    }
    let (path, file) = of("path");
    if file.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        no_backsteps(errors, &path, file);
    }
}

/// `metadata.labels['app']` as the field and the key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.strip_suffix("']")?.split_once("['")?;
    (!field.is_empty()).then_some((field, rest))
}

/// A reference to a field of the pod: one of `allowed`, or a label or an annotation by its key.
pub(super) fn field_reference(errors: &mut Errors, reference: &Value, allowed: &[&str], at: &str) {
    let path = walk::text(reference, "fieldPath");
    let version = walk::text(reference, "apiVersion");
    if version.is_empty() {
        errors.push(FieldError::required(format!("{at}.apiVersion"), ""));
        return;
    }
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.fieldPath"), ""));
        return;
    }
    let refused = |why: String| {
        FieldError::invalid(format!("{at}.fieldPath"), path, format!("error converting fieldPath: {why}"))
    };
    if version != "v1" {
        errors.push(refused(format!("unsupported pod version: {version}")));
        return;
    }
    if let Some((field, key)) = subscript(path) {
        match field {
            "metadata.annotations" => {
                let key = key.to_lowercase();
                errors.extend(meta::findings(at, &key, meta::qualified_faults(&key)));
            }
            "metadata.labels" => errors.extend(meta::findings(at, key, meta::qualified_faults(key))),
            _ => errors.push(refused(format!("field label does not support subscript: {path}"))),
        }
        return;
    }
    const KNOWN: [&str; 14] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let path = if path == "spec.host" { "spec.nodeName" } else { path };
    if !KNOWN.contains(&path) {
        errors.push(refused(format!("field label not supported: {path}")));
    } else if !allowed.contains(&path) {
        errors.push(FieldError::not_supported(format!("{at}.fieldPath"), path, allowed));
    }
}

const AMOUNTS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A reference to what a container may use; in a volume it has to name the container.
pub(super) fn resource_reference(errors: &mut Errors, reference: &Value, at: &str, in_volume: bool) {
    let resource = walk::text(reference, "resource");
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && walk::text(reference, "containerName").is_empty() {
        errors.push(FieldError::required(format!("{at}.containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(format!("{at}.resource"), ""));
    } else if !AMOUNTS.contains(&resource) && !huge {
        errors.push(FieldError::not_supported(format!("{at}.resource"), resource, &AMOUNTS));
    }
    let divisor = walk::text(reference, "divisor");
    let divisor = Quantity::parse(divisor).filter(|d| !d.is_zero()).map(|d| d.to_string());
    let Some(divisor) = divisor else { return };
    const UNITS: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
    let of_bytes = |what: &str| {
        let good = UNITS.split(", ").any(|unit| unit == divisor);
        (!good).then(|| format!("only divisor's values {UNITS} are supported with the {what} resource"))
    };
    let text = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") => (!matches!(divisor.as_str(), "1m" | "1"))
            .then(|| "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()),
        Some("memory") => of_bytes("memory"),
        Some("ephemeral-storage") => of_bytes("local ephemeral storage"),
        _ if huge => of_bytes("hugepages"),
        _ => None,
    };
    if let Some(text) = text {
        errors.push(FieldError::invalid(format!("{at}.divisor"), resource, text));
    }
}

fn environment_from(errors: &mut Errors, container: &Value, at: &str) {
    let at = format!("{at}.envFrom");
    for (i, source) in walk::list(container, "envFrom").iter().enumerate() {
        let prefix = walk::text(source, "prefix");
        errors.extend(meta::findings(&format!("{at}[{i}].prefix"), prefix, variable_faults(prefix)));
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            let Some(reference) = walk::at(source, kind) else { continue };
            count += 1;
            let (path, name) = (format!("{at}[{i}].{kind}.name"), walk::text(reference, "name"));
            if name.is_empty() {
                errors.push(FieldError::required(path, ""));
            } else {
                // Here what a name may begin with is enough, as if letters were to follow.
                let begins = name.strip_suffix('-').map_or(name.to_owned(), |begin| format!("{begin}a"));
                errors.extend(meta::findings(&path, name, meta::subdomain_faults(&begins)));
            }
        }
        match count {
            0 => errors.push(FieldError::invalid(
                &at,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => {
                let text = "may not have more than one field specified at a time";
                errors.push(FieldError::invalid(&at, "", text));
            }
        }
    }
}

fn mounts(errors: &mut Errors, container: &Value, around: &Around<'_>, at: &str) {
    let at = format!("{at}.volumeMounts");
    let devices = walk::list(container, "volumeDevices");
    let privileged = walk::flag(container, "securityContext.privileged") == Some(true);
    let mut paths: Vec<&str> = Vec::new();
    for (i, mount) in walk::list(container, "volumeMounts").iter().enumerate() {
        let of = |field: &str| (format!("{at}[{i}].{field}"), walk::text(mount, field));
        let ((at_name, name), (at_path, path)) = (of("name"), of("mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(&at_name, ""));
        }
        if !around.volumes.iter().any(|(known, _)| *known == name) {
            errors.push(FieldError::not_found(&at_name, name));
        }
        if path.is_empty() {
            errors.push(FieldError::required(&at_path, ""));
        }
        if paths.contains(&path) {
            errors.push(FieldError::invalid(&at_path, path, "must be unique"));
        }
        paths.push(path);
        if devices.iter().any(|device| walk::text(device, "name") == name) {
            errors.push(FieldError::invalid(&at_name, name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|device| walk::text(device, "devicePath") == path) {
            let text = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(&at_path, path, text));
        }
        // The paths of the following name the list.
        let (sub, expression) = (walk::text(mount, "subPath"), walk::text(mount, "subPathExpr"));
        descending(errors, &format!("{at}.subPath"), sub);
        if !expression.is_empty() {
            if !sub.is_empty() {
                let text = "subPathExpr and subPath are mutually exclusive";
                errors.push(FieldError::invalid(format!("{at}[{i}].subPathExpr"), expression, text));
            }
            descending(errors, &format!("{at}.subPathExpr"), expression);
        }
        maybe(errors, mount, &at, "mountPropagation", &["Bidirectional", "HostToContainer", "None"]);
        if walk::text(mount, "mountPropagation") == "Bidirectional" && !privileged {
            let text = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(format!("{at}.mountPropagation"), text));
        }
        read_only_below(errors, mount, &at);
    }
}

fn read_only_below(errors: &mut Errors, mount: &Value, at: &str) {
    let Some(mode) = walk::at(mount, "recursiveReadOnly").and_then(Value::as_str) else { return };
    let path = format!("{at}.recursiveReadOnly");
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if walk::flag(mount, "readOnly") != Some(true) {
                errors.push(FieldError::forbidden(&path, "may only be specified when readOnly is true"));
            }
            if !matches!(walk::text(mount, "mountPropagation"), "" | "None") {
                let text = "may only be specified when mountPropagation is None or not specified";
                errors.push(FieldError::forbidden(path, text));
            }
        }
        _ => maybe(errors, mount, at, "recursiveReadOnly", &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(errors: &mut Errors, container: &Value, around: &Around<'_>, at: &str) {
    let mounts = walk::list(container, "volumeMounts");
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (i, device) in walk::list(container, "volumeDevices").iter().enumerate() {
        let of = |field: &str| (format!("{at}.volumeDevices[{i}].{field}"), walk::text(device, field));
        let ((at_name, name), (at_path, path)) = (of("name"), of("devicePath"));
        let volume = around.volumes.iter().find(|(known, _)| *known == name).map(|(_, volume)| volume);
        if name.is_empty() {
            errors.push(FieldError::required(&at_name, ""));
        }
        if names.contains(&name) {
            errors.push(FieldError::invalid(&at_name, name, "must be unique"));
        }
        match volume {
            None => errors.push(FieldError::not_found(&at_name, name)),
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                let text =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(&at_name, name, text));
            }
            Some(_) => {}
        }
        if path.is_empty() {
            errors.push(FieldError::required(&at_path, ""));
        }
        if paths.contains(&path) {
            errors.push(FieldError::invalid(&at_path, path, "must be unique"));
        }
        if path.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(&at_path, path, "can not contain backsteps ('..')"));
        } else {
            paths.push(path);
        }
        if mounts.iter().any(|mount| walk::text(mount, "name") == name) {
            errors.push(FieldError::invalid(&at_name, name, "must not already exist in volumeMounts"));
        }
        if mounts.iter().any(|mount| walk::text(mount, "mountPath") == path) {
            let text = "must not already exist as a path in volumeMounts";
            errors.push(FieldError::invalid(&at_path, path, text));
        }
        if !name.is_empty() {
            names.push(name);
        }
    }
}

fn resizes(errors: &mut Errors, container: &Value, around: &Around<'_>, at: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, policy) in walk::list(container, "resizePolicy").iter().enumerate() {
        let (resource, restart) = (walk::text(policy, "resourceName"), walk::text(policy, "restartPolicy"));
        if seen.contains(&resource) {
            errors.push(FieldError::duplicate(format!("{at}[{i}]"), resource));
        }
        seen.push(resource);
        for (word, allowed) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])]
        {
            if word.is_empty() {
                errors.push(FieldError::required(at, ""));
            } else if !allowed.contains(&word) {
                errors.push(FieldError::not_supported(at, word, &allowed));
            }
        }
        if around.restart == "Never" && restart != "NotRequired" {
            let text = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(at, restart, text));
        }
    }
}

/// Whether a container is begun again, and when (KEP-5307).
fn restarts(errors: &mut Errors, container: &Value, at: &str) {
    let rules = walk::list(container, "restartPolicyRules");
    if !has(container, "restartPolicy") {
        if !rules.is_empty() {
            let text = "must specify restartPolicy when restart rules are used";
            errors.push(FieldError::required(format!("{at}.restartPolicy"), text));
        }
    } else {
        maybe(errors, container, at, "restartPolicy", &["Always", "Never", "OnFailure"]);
    }
    if rules.len() > 20 {
        errors.push(FieldError::too_many(format!("{at}.restartPolicyRules"), rules.len(), 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{at}.restartPolicyRules[{i}]");
        let action = walk::text(rule, "action");
        let actions = ["Restart", "RestartAllContainers"];
        if !actions.contains(&action) {
            errors.push(FieldError::not_supported(format!("{path}.action"), action, &actions));
        }
        let Some(codes) = walk::at(rule, "exitCodes") else {
            errors.push(FieldError::required(format!("{path}.exitCodes"), "must be specified"));
            continue;
        };
        let operator = walk::text(codes, "operator");
        if !["In", "NotIn"].contains(&operator) {
            let path = format!("{path}.exitCodes.operator");
            errors.push(FieldError::not_supported(path, operator, &["In", "NotIn"]));
        }
        let values = walk::list(codes, "values").len();
        if values > 255 {
            errors.push(FieldError::too_many(format!("{path}.exitCodes.values"), values, 255));
        }
    }
}

/// Files that variables are read from lie in volumes that are the pod's own.
pub(super) fn files_of_environment(errors: &mut Errors, spec: &Value, at: &str) {
    for (path, container) in every_container(spec, at) {
        for (i, variable) in walk::list(container, "env").iter().enumerate() {
            let Some(reference) = walk::at(variable, "valueFrom.fileKeyRef") else { continue };
            let name = walk::text(reference, "volumeName");
            let volume =
                walk::list(spec, "volumes").iter().rfind(|volume| walk::text(volume, "name") == name);
            let path = format!("{path}.env[{i}].valueFrom.fileKeyRef.volumeName");
            match volume {
                None => errors.push(FieldError::not_found(path, name)),
                Some(volume) if !has(volume, "emptyDir") => {
                    errors.push(FieldError::invalid(
                        path,
                        name,
                        "referenced volume must be of type emptyDir",
                    ));
                }
                Some(_) => {}
            }
        }
    }
}
