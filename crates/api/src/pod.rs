//! What a pod's specification means, alone or in the template of a workload: defaults, quality of service, binding.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{meta, walk};

mod summary;
mod validate;

pub use summary::{Summary, summary};
pub use validate::{validate_change, validate_spec, validate_template};

const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// Fills in what the client left out of a pod's specification (pkg/apis/core/v1/defaults.go).
pub fn default_spec(spec: &mut Value) {
    walk::default(spec, "restartPolicy", "Always");
    walk::default(spec, "terminationGracePeriodSeconds", 30);
    walk::default(spec, "dnsPolicy", "ClusterFirst");
    walk::default(spec, "schedulerName", "default-scheduler");
    walk::default(spec, "securityContext", json!({}));
    // The older name of the field is kept in step.
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        let account = walk::text(spec, from).to_owned();
        if !account.is_empty() {
            walk::default(spec, to, account);
        }
    }
    let host_network = walk::flag(spec, "hostNetwork") == Some(true);
    for list in CONTAINERS {
        for container in walk::list_mut(spec, list) {
            default_container(container, host_network);
        }
    }
    for volume in walk::list_mut(spec, "volumes") {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    let policy = match tag(walk::text(container, "image")) {
        None | Some("latest") => "Always",
        Some(_) => "IfNotPresent",
    };
    walk::default(container, "imagePullPolicy", policy);
    walk::default(container, "terminationMessagePath", "/dev/termination-log");
    walk::default(container, "terminationMessagePolicy", "File");
    walk::default(container, "resources", json!({}));
    for port in walk::list_mut(container, "ports") {
        walk::default(port, "protocol", "TCP");
        if host_network
            && walk::int(port, "hostPort").unwrap_or(0) == 0
            && let Some(number) = walk::at(port, "containerPort").cloned()
        {
            walk::set(port, "hostPort", number);
        }
    }
    for env in walk::list_mut(container, "env") {
        if let Some(reference) = walk::at_mut(env, "valueFrom.fieldRef") {
            walk::default(reference, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = walk::at_mut(container, probe) else { continue };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            if walk::int(probe, field).unwrap_or(0) == 0
                && walk::at(probe, field).is_none_or(Value::is_number)
            {
                walk::set(probe, field, value);
            }
        }
        if let Some(get) = walk::at_mut(probe, "httpGet") {
            default_get(get);
        }
        if let Some(grpc) = walk::at_mut(probe, "grpc") {
            walk::default(grpc, "service", "");
        }
    }
    for hook in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if let Some(get) = walk::at_mut(container, hook) {
            default_get(get);
        }
    }
}

fn default_get(get: &mut Value) {
    walk::default(get, "path", "/");
    walk::default(get, "scheme", "HTTP");
}

fn default_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|v| v.keys().all(|k| k == "name")) {
        walk::set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = walk::at_mut(volume, source) {
            walk::default(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = walk::at_mut(volume, "hostPath") {
        walk::default(path, "type", "");
    }
}

/// The tag of an image's name; one that is named by digest has no need of a newer one and counts as tagged.
fn tag(image: &str) -> Option<&str> {
    // What is no image's name has no tag either (`parsers.ParseImageName`).
    let odd = |c: char| c.is_whitespace() || c == '!';
    if image.contains('@') || image.contains(odd) {
        return Some("");
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').map(|(_, tag)| tag)
}

/// Fills in a pod: its specification, and requests from limits.
pub fn default(pod: &mut Value) {
    walk::default(pod, "spec.enableServiceLinks", true);
    if let Some(spec) = walk::at_mut(pod, "spec") {
        default_spec(spec);
        for list in CONTAINERS {
            for container in walk::list_mut(spec, list) {
                let limits = walk::map(container, "resources.limits").clone();
                for (name, limit) in limits {
                    if let Some(requests) = walk::map_mut(container, "resources.requests") {
                        requests.entry(name).or_insert(limit);
                    }
                }
            }
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`: who goes first when a node runs short.
pub fn quality_of_service(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in CONTAINERS {
        for container in walk::list(pod, &format!("spec.{list}")) {
            let of = |part: &str, name: &str| {
                walk::map(container, part)
                    .get(name)
                    .and_then(Value::as_str)
                    .filter(|q| !q.trim_matches('0').is_empty())
            };
            for name in ["cpu", "memory"] {
                let (request, limit) = (of("resources.requests", name), of("resources.limits", name));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && (request.is_none() || request == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Taints that every pod bears for a while, unless it says otherwise (admission plugin DefaultTolerationSeconds).
const PASSING: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
/// For how long, in seconds.
const PASSING_S: i64 = 300;

fn tolerate_passing_taints(pod: &mut Value) {
    let mut all: Vec<Value> = walk::list(pod, "spec.tolerations").to_vec();
    for taint in PASSING {
        let meant = |t: &Value| {
            let (key, effect) = (walk::text(t, "key"), walk::text(t, "effect"));
            (key == taint || key.is_empty()) && matches!(effect, "NoExecute" | "")
        };
        if !all.iter().any(meant) {
            all.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": PASSING_S,
            }));
        }
    }
    walk::set(pod, "spec.tolerations", all);
}

/// Without a class of its own a pod has priority 0, and Kubernetes' own classes are known by name (admission plugin Priority).
fn prioritize(pod: &mut Value) {
    let priority = match walk::text(pod, "spec.priorityClassName") {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000_i64,
        "system-node-critical" => 2_000_001_000,
        _ => return,
    };
    walk::set(pod, "spec.priority", priority);
    walk::default(pod, "spec.preemptionPolicy", "PreemptLowerPriority");
}

/// A new pod is pending.
pub fn prepare_create(pod: &mut Value) {
    tolerate_passing_taints(pod);
    prioritize(pod);
    walk::set(pod, "status", json!({"phase": "Pending", "qosClass": quality_of_service(pod)}));
    if !walk::list(pod, "spec.schedulingGates").is_empty() {
        let gated = json!({
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        });
        walk::set(pod, "status.conditions", json!([gated]));
    }
}

/// Through `/status` neither the specification changes nor what follows from it.
pub fn prepare_status_update(new: &mut Value, old: &Value) {
    crate::kind::keep_all_but_status(new, old);
    // Old kubelets spoilt them (registry/core/pod/strategy.go).
    crate::kind::keep_meta(new, old, "ownerReferences");
    if let Some(class) = walk::at(old, "status.qosClass") {
        walk::set(new, "status.qosClass", class.clone());
    }
}

/// Binds a pod to a node, as the `binding` subresource asks; the text says why it cannot be.
pub fn bind(pod: &mut Value, node: &str, now: Timestamp) -> Result<(), String> {
    if meta::deletion_timestamp(pod).is_some() {
        return Err(format!("pod {} is being deleted, cannot be assigned to a host", meta::name(pod)));
    }
    let bound = walk::text(pod, "spec.nodeName");
    if !bound.is_empty() {
        return Err(format!("pod {} is already assigned to node \"{bound}\"", meta::name(pod)));
    }
    if !walk::list(pod, "spec.schedulingGates").is_empty() {
        return Err(format!("pod {} has non-empty .spec.schedulingGates", meta::name(pod)));
    }
    walk::set(pod, "spec.nodeName", node);
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": meta::rfc3339(now),
    });
    let mut conditions: Vec<Value> = walk::list(pod, "status.conditions").to_vec();
    conditions.retain(|c| walk::text(c, "type") != "PodScheduled");
    conditions.push(scheduled);
    walk::set(pod, "status.conditions", conditions);
    Ok(())
}

/// Whether a pod takes part no more: it succeeded or failed.
pub fn is_finished(pod: &Value) -> bool {
    matches!(walk::text(pod, "status.phase"), "Succeeded" | "Failed")
}

#[cfg(test)]
mod tests;
