//! The rules of a pod's specification, alone or in the template of a workload: which field, and in which words
//! (pkg/apis/core/validation). The rules of its parts are in files of their own.

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::quantity::Quantity;
use crate::{ip, meta, walk};

mod annotations;
mod change;
mod containers;
mod handlers;
mod resources;
mod scheduling;
mod security;
mod status;
mod volumes;

pub use change::validate_change;
pub(super) use resources::{HUGE, aggregate, of_whole_pods};
pub use resources::{container_resource_faults, overcommitted, overhead, whole_numbers};
pub use scheduling::{node_selector, tolerations};
pub use status::validate_status;

type Errors = Vec<FieldError>;

/// What the rules of a part need to know of the pod around it.
struct Around<'a> {
    /// The volumes that mounts may name: those that keep their own rules.
    volumes: Vec<(&'a str, &'a Value)>,
    claims: Vec<&'a str>,
    grace: Option<i64>,
    os: Option<&'a str>,
    restart: &'a str,
    /// Whether users are those of the host.
    host_users: bool,
}

/// Finds fault with a word that has to be there and to be one of these.
fn word(errors: &mut Errors, value: &Value, at: &str, field: &str, allowed: &[&str]) {
    let path = format!("{at}.{field}");
    match walk::text(value, field) {
        "" => errors.push(FieldError::required(path, "")),
        found if !allowed.contains(&found) => errors.push(FieldError::not_supported(path, found, allowed)),
        _ => {}
    }
}

/// Finds fault with a word that may be missing, but be no other than these.
fn maybe(errors: &mut Errors, value: &Value, at: &str, field: &str, allowed: &[&str]) {
    if let Some(found) = walk::at(value, field).and_then(Value::as_str)
        && !allowed.contains(&found)
    {
        errors.push(FieldError::not_supported(format!("{at}.{field}"), found, allowed));
    }
}

fn not_negative(errors: &mut Errors, value: &Value, at: &str, field: &str) {
    if let Some(n) = walk::int(value, field).filter(|n| *n < 0) {
        errors.push(FieldError::invalid(format!("{at}.{field}"), n, "must be greater than or equal to 0"));
    }
}

fn label(errors: &mut Errors, path: &str, text: &str) {
    errors.extend(meta::findings(path, text, meta::label_faults(text)));
}

fn subdomain(errors: &mut Errors, path: &str, text: &str) {
    errors.extend(meta::findings(path, text, meta::subdomain_faults(text)));
}

/// The quantity at a path of keys that may hold dots.
fn quantity(value: &Value) -> Quantity {
    value.as_str().and_then(Quantity::parse).unwrap_or(Quantity::ZERO)
}

fn has(value: &Value, field: &str) -> bool {
    walk::at(value, field).is_some()
}

/// Every container with its path, those that begin first.
pub(super) fn every_container<'a>(spec: &'a Value, at: &str) -> Vec<(String, &'a Value)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| {
            walk::list(spec, list).iter().enumerate().map(move |(i, c)| (format!("{at}.{list}[{i}]"), c))
        })
        .collect()
}

/// What is wrong with a pod template at `at` (`ValidatePodTemplateSpec`).
pub fn validate_template(template: &Value, at: &str) -> Vec<FieldError> {
    let labels = walk::map(template, "metadata.labels");
    let mut errors = meta::validate_labels(labels, &format!("{at}.labels"));
    let annotations = walk::map(template, "metadata.annotations");
    let (notes, inside) = (format!("{at}.annotations"), format!("{at}.spec"));
    errors.extend(meta::validate_annotations(annotations, &notes));
    let spec = template.get("spec").unwrap_or(&Value::Null);
    annotations::rules(&mut errors, annotations, spec, &notes);
    errors.extend(validate_spec(spec, None, &inside));
    annotations::match_fields(&mut errors, annotations, spec, &inside);
    if !walk::list(spec, "ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            format!("{inside}.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
    errors
}

/// What is wrong with a pod at any time, its metadata apart (`validatePodMetadataAndSpec`).
pub fn validate_pod(pod: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    annotations::rules(&mut errors, walk::map(pod, "metadata.annotations"), spec, "metadata.annotations");
    errors.extend(validate_spec(spec, Some(meta::name(pod)), "spec"));
    if walk::text(spec, "serviceAccountName").is_empty() {
        for (i, volume) in walk::list(spec, "volumes").iter().enumerate() {
            for (j, source) in walk::list(volume, "projected.sources").iter().enumerate() {
                if has(source, "serviceAccountToken") {
                    errors.push(FieldError::forbidden(
                        format!("spec.volumes[{i}].projected.sources[{j}].serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    ));
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in walk::list(spec, list).iter().enumerate() {
            containers::padded_image(&mut errors, container, &format!("spec.{list}[{i}]"));
        }
    }
    errors
}

/// What is wrong with a pod that is to be made (`ValidatePodCreate`).
pub fn validate_new(pod: &Value) -> Vec<FieldError> {
    let mut errors = validate_pod(pod);
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if !walk::list(spec, "ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    if !walk::text(spec, "nodeName").is_empty() && !walk::list(spec, "schedulingGates").is_empty() {
        let text = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden("spec.nodeName", text));
    }
    annotations::match_fields(&mut errors, walk::map(pod, "metadata.annotations"), spec, "spec");
    errors
}

/// What is wrong with a pod's specification at `at` (`spec`, or `spec.template.spec`); `name` is the pod's, if there is a pod.
fn validate_spec(spec: &Value, name: Option<&str>, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let grace = walk::int(spec, "terminationGracePeriodSeconds");
    if grace.is_none() {
        errors.push(FieldError::required(format!("{at}.terminationGracePeriodSeconds"), ""));
    }
    let claims: Vec<&str> =
        walk::list(spec, "resourceClaims").iter().map(|c| walk::text(c, "name")).collect();
    let around = Around {
        volumes: volumes::rules(&mut errors, spec, name, &format!("{at}.volumes")),
        claims: claims.into_iter().filter(|name| !name.is_empty()).collect(),
        grace,
        os: walk::at(spec, "os").map(|os| walk::text(os, "name")),
        restart: walk::text(spec, "restartPolicy"),
        host_users: walk::flag(spec, "hostUsers").unwrap_or(true),
    };
    resources::claims(&mut errors, spec, &format!("{at}.resourceClaims"));
    containers::main(&mut errors, spec, &around, at);
    containers::init(&mut errors, spec, &around, at);
    containers::ephemeral(&mut errors, spec, &around, at);
    resources::of_pod(&mut errors, spec, &around, at);
    host_network(&mut errors, spec, name.is_some(), at);
    word(&mut errors, spec, at, "restartPolicy", &["Always", "OnFailure", "Never"]);
    word(&mut errors, spec, at, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    errors.extend(meta::validate_labels(walk::map(spec, "nodeSelector"), &format!("{at}.nodeSelector")));
    security::of_pod(&mut errors, spec, at);
    scheduling::affinity(&mut errors, spec, at);
    dns(&mut errors, spec, at);
    for (i, gate) in walk::list(spec, "readinessGates").iter().enumerate() {
        let kind = walk::text(gate, "conditionType");
        let path = format!("{at}.readinessGates[{i}].conditionType");
        errors.extend(meta::findings(&path, kind, meta::qualified_faults(kind)));
    }
    scheduling::gates(&mut errors, spec, at);
    scheduling::spread(&mut errors, spec, at);
    security::host_processes(&mut errors, spec, at);
    security::own_users(&mut errors, spec, at);
    overridden_name(&mut errors, spec, at);
    for field in ["serviceAccountName", "nodeName"] {
        let text = walk::text(spec, field);
        if !text.is_empty() {
            subdomain(&mut errors, &format!("{at}.{field}"), text);
        }
    }
    if let Some(n) =
        walk::int(spec, "activeDeadlineSeconds").filter(|n| !(1..=i64::from(i32::MAX)).contains(n))
    {
        let text = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(format!("{at}.activeDeadlineSeconds"), n, text));
    }
    for field in ["hostname", "subdomain"] {
        let text = walk::text(spec, field);
        if !text.is_empty() {
            label(&mut errors, &format!("{at}.{field}"), text);
        }
    }
    errors.extend(tolerations(walk::list(spec, "tolerations"), &format!("{at}.tolerations")));
    for (i, alias) in walk::list(spec, "hostAliases").iter().enumerate() {
        let path = format!("{at}.hostAliases[{i}]");
        errors.extend(ip::faults(&format!("{path}.ip"), walk::text(alias, "ip"), &[]));
        for (j, name) in walk::list(alias, "hostnames").iter().enumerate() {
            subdomain(&mut errors, &format!("{path}.hostnames[{j}]"), name.as_str().unwrap_or(""));
        }
    }
    let class = walk::text(spec, "priorityClassName");
    if !class.is_empty() {
        subdomain(&mut errors, &format!("{at}.priorityClassName"), class);
    }
    if let Some(class) = walk::at(spec, "runtimeClassName").and_then(Value::as_str) {
        subdomain(&mut errors, &format!("{at}.runtimeClassName"), class);
    }
    if has(spec, "preemptionPolicy") {
        word(&mut errors, spec, at, "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    }
    if let Some(overhead) = walk::at(spec, "overhead") {
        errors.extend(resources::overhead(overhead, &format!("{at}.overhead")));
    }
    security::os(&mut errors, spec, at);
    containers::files_of_environment(&mut errors, spec, at);
    errors
}

/// With the host's network, a container's ports are the host's.
fn host_network(errors: &mut Errors, spec: &Value, is_pod: bool, at: &str) {
    if walk::flag(spec, "hostNetwork") != Some(true) {
        return;
    }
    for (i, container) in walk::list(spec, "containers").iter().enumerate() {
        for (j, port) in walk::list(container, "ports").iter().enumerate() {
            let number = |field| walk::int(port, field).unwrap_or(0);
            let (host, own) = (number("hostPort"), number("containerPort"));
            // In a template it is filled in once there is a pod.
            if (is_pod || host != 0) && host != own {
                errors.push(FieldError::invalid(
                    format!("{at}.containers[{i}].ports[{j}].hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_BYTES: usize = 2048;

fn dns(errors: &mut Errors, spec: &Value, at: &str) {
    let path = format!("{at}.dnsConfig");
    let config = walk::at(spec, "dnsConfig");
    if walk::text(spec, "dnsPolicy") == "None" {
        let Some(config) = config else {
            errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        };
        if walk::list(config, "nameservers").is_empty() {
            let text = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(format!("{path}.nameservers"), text));
            return;
        }
    }
    let Some(config) = config else { return };
    let servers = walk::list(config, "nameservers");
    if servers.len() > NAMESERVERS {
        let text = format!("must not have more than {NAMESERVERS} nameservers");
        errors.push(FieldError::invalid(format!("{path}.nameservers"), servers.to_vec(), text));
    }
    for (i, server) in servers.iter().enumerate() {
        errors.extend(ip::faults(&format!("{path}.nameservers[{i}]"), server.as_str().unwrap_or(""), &[]));
    }
    let searches = walk::list(config, "searches");
    let texts: Vec<&str> = searches.iter().filter_map(Value::as_str).collect();
    if searches.len() > SEARCHES {
        let text = format!("must not have more than {SEARCHES} search paths");
        errors.push(FieldError::invalid(format!("{path}.searches"), searches.to_vec(), text));
    }
    if texts.join(" ").len() > SEARCH_BYTES {
        let text = format!(
            "must not have more than {SEARCH_BYTES} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(format!("{path}.searches"), searches.to_vec(), text));
    }
    for (i, search) in texts.iter().enumerate().filter(|(_, search)| **search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        errors.extend(meta::findings(
            &format!("{path}.searches[{i}]"),
            search,
            meta::underscored_subdomain_faults(search),
        ));
    }
    for (i, option) in walk::list(config, "options").iter().enumerate() {
        if walk::text(option, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.options[{i}]"), "must not be empty"));
        }
    }
}

fn overridden_name(errors: &mut Errors, spec: &Value, at: &str) {
    let Some(name) = walk::at(spec, "hostnameOverride").and_then(Value::as_str) else { return };
    let path = format!("{at}.hostnameOverride");
    for (field, text) in [
        ("setHostnameAsFQDN", "may not be specified when setHostnameAsFQDN is true"),
        ("hostNetwork", "may not be specified when hostNetwork is true"),
    ] {
        if walk::flag(spec, field) == Some(true) {
            errors.push(FieldError::forbidden(&path, text));
        }
    }
    if name.len() > 64 {
        errors.push(FieldError::too_long(&path, 64));
    }
    subdomain(errors, &path, name);
}
