//! What a pod's specification means, alone or in the template of a workload: defaults, quality of service, binding.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::quantity::Quantity;
use crate::{meta, walk};

mod summary;
mod validate;
mod warnings;

pub use summary::{Summary, summary};
pub use validate::{
    container_resource_faults, node_selector, overcommitted, overhead, tolerations, validate_change,
    validate_new, validate_status, validate_template, whole_numbers,
};
pub use warnings::{claim_warnings, name_warnings, status_warnings, template_warnings, warnings};

const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// Fills in what the client left out of a pod's specification (pkg/apis/core/v1/defaults.go).
pub fn default_spec(spec: &mut Value) {
    walk::default(spec, "restartPolicy", "Always");
    walk::default(spec, "terminationGracePeriodSeconds", 30);
    walk::default(spec, "dnsPolicy", "ClusterFirst");
    walk::default(spec, "schedulerName", "default-scheduler");
    walk::default(spec, "securityContext", json!({}));
    // The older name of the field is kept in step, and counts only where the newer one says nothing.
    let names = ["serviceAccountName", "serviceAccount"];
    if let Some(account) =
        names.map(|name| walk::text(spec, name).to_owned()).into_iter().find(|n| !n.is_empty())
    {
        for name in names {
            walk::set(spec, name, account.as_str());
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in walk::list_mut(spec, list) {
            default_container(container);
        }
    }
    for volume in walk::list_mut(spec, "volumes") {
        default_volume(volume);
    }
    round_amounts(spec);
    drop_disabled(spec);
}

/// Amounts have thousandths at most.
fn round_amounts(spec: &mut Value) {
    let round = |amounts: &mut Value| {
        for amount in amounts.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
            if let Some(quantity) = amount.as_str().and_then(Quantity::parse) {
                *amount = quantity.rounded_to_milli().to_string().into();
            }
        }
    };
    walk::at_mut(spec, "overhead").into_iter().for_each(round);
    let both = |value: &mut Value| {
        for part in ["resources.limits", "resources.requests"] {
            walk::at_mut(value, part).into_iter().for_each(round);
        }
    };
    both(spec);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        walk::list_mut(spec, list).iter_mut().for_each(both);
    }
}

/// What Kubernetes knows and doesn't do unless it is asked to (its feature gates) isn't kept.
fn drop_disabled(spec: &mut Value) {
    walk::remove(spec, "schedulingGroup");
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in walk::list_mut(spec, list) {
            let had = walk::remove(container, "lifecycle.stopSignal").is_some();
            if had && walk::map(container, "lifecycle").is_empty() {
                walk::remove(container, "lifecycle");
            }
        }
    }
    for volume in walk::list_mut(spec, "volumes") {
        for source in walk::list_mut(volume, "projected.sources") {
            walk::remove(source, "clusterTrustBundle");
            walk::remove(source, "podCertificate");
        }
    }
}

/// When an image of this name is fetched.
fn pull_policy(image: &str) -> &'static str {
    match tag(image) {
        None | Some("latest") => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_container(container: &mut Value) {
    let policy = pull_policy(walk::text(container, "image"));
    walk::default(container, "imagePullPolicy", policy);
    walk::default(container, "terminationMessagePath", "/dev/termination-log");
    walk::default(container, "terminationMessagePolicy", "File");
    walk::default(container, "resources", json!({}));
    for port in walk::list_mut(container, "ports") {
        walk::default(port, "protocol", "TCP");
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
    let fields = |item: &mut Value| {
        if let Some(reference) = walk::at_mut(item, "fieldRef") {
            walk::default(reference, "apiVersion", "v1");
        }
    };
    walk::list_mut(volume, "downwardAPI.items").iter_mut().for_each(fields);
    for source in walk::list_mut(volume, "projected.sources") {
        walk::list_mut(source, "downwardAPI.items").iter_mut().for_each(fields);
        if let Some(token) = walk::at_mut(source, "serviceAccountToken") {
            walk::default(token, "expirationSeconds", 3600);
        }
    }
    if let Some(claim) = walk::at_mut(volume, "ephemeral.volumeClaimTemplate.spec") {
        walk::default(claim, "volumeMode", "Filesystem");
    }
    if let Some(image) = walk::at_mut(volume, "image") {
        let policy = pull_policy(walk::text(image, "reference"));
        walk::default(image, "pullPolicy", policy);
    }
    default_disks(volume);
}

/// The defaults that sources of volumes have in pods and in PersistentVolumes.
pub(crate) fn default_disks(volume: &mut Value) {
    if let Some(path) = walk::at_mut(volume, "hostPath") {
        walk::default(path, "type", "");
    }
    let texts = [
        ("iscsi", "iscsiInterface", "default"),
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
    ];
    for (source, field, usual) in texts {
        if let Some(source) =
            walk::at_mut(volume, source).filter(|source| walk::text(source, field).is_empty())
        {
            walk::set(source, field, usual);
        }
    }
    if let Some(disk) = walk::at_mut(volume, "azureDisk") {
        walk::default(disk, "cachingMode", "ReadWrite");
        walk::default(disk, "fsType", "ext4");
        walk::default(disk, "readOnly", false);
        walk::default(disk, "kind", "Shared");
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

/// The singular and the plural of an address say the same, and the singular is believed.
fn default_addresses(pod: &mut Value) {
    let one = walk::text(pod, "status.podIP").to_owned();
    let first = walk::list(pod, "status.podIPs").first().map(|ip| walk::text(ip, "ip").to_owned());
    match first {
        None if !one.is_empty() => walk::set(pod, "status.podIPs", json!([{"ip": one}])),
        Some(first) if one.is_empty() => walk::set(pod, "status.podIP", first),
        Some(first) if first != one => walk::set(pod, "status.podIPs", json!([{"ip": one}])),
        _ => {}
    }
}

/// Fills in a pod: its specification, and requests from limits.
pub fn default(pod: &mut Value) {
    default_addresses(pod);
    walk::default(pod, "spec.enableServiceLinks", true);
    if let Some(spec) = walk::at_mut(pod, "spec") {
        default_spec(spec);
        let host_network = walk::flag(spec, "hostNetwork") == Some(true);
        for list in CONTAINERS {
            for container in walk::list_mut(spec, list) {
                for port in walk::list_mut(container, "ports").iter_mut().filter(|_| host_network) {
                    if walk::int(port, "hostPort").unwrap_or(0) == 0
                        && let Some(number) = walk::at(port, "containerPort").cloned()
                    {
                        walk::set(port, "hostPort", number);
                    }
                }
                let limits = walk::map(container, "resources.limits").clone();
                for (name, limit) in limits {
                    if let Some(requests) = walk::map_mut(container, "resources.requests") {
                        requests.entry(name).or_insert(limit);
                    }
                }
            }
        }
        default_whole(spec);
    }
}

/// What a pod wants as a whole follows from what its containers want, and from what it may use (KEP-2837).
fn default_whole(spec: &mut Value) {
    let Some(own) = walk::at(spec, "resources") else { return };
    let (limits, requests) = (walk::map(own, "limits"), walk::map(own, "requests"));
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    let (mut limits, mut requests) = (limits.clone(), requests.clone());
    for (name, limit) in validate::aggregate(spec, "resources.limits") {
        if name.starts_with(validate::HUGE) && !requests.contains_key(&name) {
            limits.entry(name).or_insert(limit);
        }
    }
    if !limits.is_empty() {
        for (name, request) in validate::aggregate(spec, "resources.requests") {
            if validate::of_whole_pods(&name) && overcommitted(&name) {
                requests.entry(name).or_insert(request);
            }
        }
        for (name, limit) in limits.iter().filter(|(name, _)| validate::of_whole_pods(name)) {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    for (part, all) in [("resources.limits", limits), ("resources.requests", requests)] {
        if !all.is_empty() {
            walk::set(spec, part, all);
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`: who goes first when a node runs short.
pub fn quality_of_service(pod: &Value) -> &'static str {
    type Sums = BTreeMap<&'static str, Quantity>;
    let (mut requests, mut limits) = (Sums::new(), Sums::new());
    let mut guaranteed = true;
    let mut count = |wants: &Value| {
        for name in ["cpu", "memory"] {
            for (part, sums) in [("requests", &mut requests), ("limits", &mut limits)] {
                let amount =
                    walk::map(wants, part).get(name).and_then(Value::as_str).and_then(Quantity::parse);
                let amount = amount.filter(|amount| *amount > Quantity::ZERO);
                if let Some(amount) = amount {
                    let sum = sums.entry(name).or_insert(Quantity::ZERO);
                    *sum = *sum + amount;
                } else if part == "limits" {
                    guaranteed = false;
                }
            }
        }
    };
    match walk::at(pod, "spec.resources") {
        Some(whole) => count(whole),
        None => CONTAINERS
            .iter()
            .flat_map(|list| walk::list(pod, &format!("spec.{list}")))
            .for_each(|container| count(container.get("resources").unwrap_or(&Value::Null))),
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Which labels a pod shares with others of its owner becomes part of the selectors (KEP-3633, KEP-3243).
fn select_by_own_labels(pod: &mut Value) {
    let labels = meta::labels(pod).clone();
    let merge = |term: &mut Value| {
        if walk::at(term, "labelSelector").is_none() {
            return;
        }
        for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            for key in walk::list(term, field).to_vec() {
                let Some(value) = key.as_str().and_then(|key| labels.get(key)) else { continue };
                let mut rules = walk::list(term, "labelSelector.matchExpressions").to_vec();
                rules.push(json!({"key": key, "operator": operator, "values": [value]}));
                walk::set(term, "labelSelector.matchExpressions", rules);
            }
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let at = format!("spec.affinity.{kind}");
        for each in walk::list_mut(pod, &format!("{at}.preferredDuringSchedulingIgnoredDuringExecution")) {
            walk::at_mut(each, "podAffinityTerm").into_iter().for_each(merge);
        }
        let required = format!("{at}.requiredDuringSchedulingIgnoredDuringExecution");
        walk::list_mut(pod, &required).iter_mut().for_each(merge);
    }
    walk::list_mut(pod, "spec.topologySpreadConstraints").iter_mut().for_each(merge);
}

/// What a note says of AppArmor becomes a field where there is none (KEP-24).
fn field_app_armor(pod: &mut Value) {
    if walk::text(pod, "spec.os.name") == "windows" {
        return;
    }
    const PROFILE: &str = "securityContext.appArmorProfile";
    let notes = walk::map(pod, "metadata.annotations").clone();
    let whole = walk::at(pod, &format!("spec.{PROFILE}")).cloned();
    for list in CONTAINERS {
        for container in walk::list_mut(pod, &format!("spec.{list}")) {
            let key =
                format!("container.apparmor.security.beta.kubernetes.io/{}", walk::text(container, "name"));
            let said = notes.get(&key).and_then(Value::as_str).and_then(warnings::app_armor_profile);
            if let Some(said) = said.filter(|said| Some(said) != whole.as_ref())
                && walk::at(container, PROFILE).is_none()
            {
                walk::set(container, PROFILE, said);
            }
        }
    }
}

/// A new pod is pending.
pub fn prepare_create(pod: &mut Value) {
    select_by_own_labels(pod);
    field_app_armor(pod);
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
    if let (true, Some(class)) =
        (walk::text(new, "status.qosClass").is_empty(), walk::at(old, "status.qosClass"))
    {
        walk::set(new, "status.qosClass", class.clone());
    }
    keep_generations(new, old);
}

/// Which generation of the pod was reported on isn't forgotten by those who don't know of it.
fn keep_generations(new: &mut Value, old: &Value) {
    const FIELD: &str = "observedGeneration";
    let seen = |value: &Value| walk::int(value, FIELD).filter(|n| *n != 0);
    let own = "status.observedGeneration";
    if let (None, Some(n)) = (walk::int(new, own).filter(|n| *n != 0), walk::int(old, own)) {
        walk::set(new, own, n);
    }
    let mut before: Vec<(&str, Option<i64>)> =
        walk::list(old, "status.conditions").iter().map(|c| (walk::text(c, "type"), seen(c))).collect();
    for condition in walk::list_mut(new, "status.conditions") {
        let kind = walk::text(condition, "type");
        let Some(at) = before.iter().position(|(known, _)| *known == kind) else { continue };
        let (_, had) = before.remove(at);
        if let (None, Some(n)) = (seen(condition), had) {
            walk::set(condition, FIELD, n);
        }
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
