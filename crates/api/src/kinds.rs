//! The table of kinds: one entry and one file each.

use serde_json::Value;

use crate::kind::Kind;
use crate::selector::LabelSelector;
use crate::walk;

pub mod autoscaler;
pub mod certificate;
pub mod class;
pub mod config;
pub mod definition;
pub mod disruption;
pub mod endpoints;
pub mod event;
pub mod ingress;
pub mod job;
pub mod lease;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod pod;
pub mod quota;
pub mod rbac;
pub mod registration;
pub mod replication;
pub mod service;
pub mod service_cidr;
pub mod stateful;
pub mod storage;
pub mod workload;

/// Every kind that is served, in the order in which kube-apiserver names groups and resources.
pub static KINDS: &[&Kind] = &[
    &config::CONFIG_MAP,
    &endpoints::ENDPOINTS,
    &event::EVENT,
    &quota::LIMIT_RANGE,
    &namespace::NAMESPACE,
    &node::NODE,
    &storage::PERSISTENT_VOLUME_CLAIM,
    &storage::PERSISTENT_VOLUME,
    &pod::POD,
    &replication::POD_TEMPLATE,
    &replication::REPLICATION_CONTROLLER,
    &quota::RESOURCE_QUOTA,
    &config::SECRET,
    &config::SERVICE_ACCOUNT,
    &service::SERVICE,
    &registration::API_SERVICE,
    &stateful::CONTROLLER_REVISION,
    &stateful::DAEMON_SET,
    &workload::DEPLOYMENT,
    &workload::REPLICA_SET,
    &stateful::STATEFUL_SET,
    &event::EVENT_OF_EVENTS,
    &autoscaler::V2,
    &autoscaler::V1,
    &job::CRON_JOB,
    &job::JOB,
    &certificate::CERTIFICATE_SIGNING_REQUEST,
    &ingress::INGRESS_CLASS,
    &ingress::INGRESS,
    &service_cidr::IP_ADDRESS,
    &network_policy::NETWORK_POLICY,
    &service_cidr::SERVICE_CIDR,
    &disruption::POD_DISRUPTION_BUDGET,
    &rbac::CLUSTER_ROLE_BINDING,
    &rbac::CLUSTER_ROLE,
    &rbac::ROLE_BINDING,
    &rbac::ROLE,
    &storage::CSI_DRIVER,
    &storage::CSI_NODE,
    &storage::CSI_STORAGE_CAPACITY,
    &storage::STORAGE_CLASS,
    &storage::VOLUME_ATTACHMENT,
    &storage::VOLUME_ATTRIBUTES_CLASS,
    &registration::MUTATING_WEBHOOK_CONFIGURATION,
    &registration::VALIDATING_WEBHOOK_CONFIGURATION,
    &definition::CUSTOM_RESOURCE_DEFINITION,
    &class::PRIORITY_CLASS,
    &lease::LEASE,
    &class::RUNTIME_CLASS,
    &endpoints::ENDPOINT_SLICE,
];

/// Whether two versions of an object desire different things.
pub(crate) fn desired_differs(kind: &Kind, new: &Value, old: &Value) -> bool {
    match kind.kind() {
        // An EndpointSlice has no spec: all of it but metadata is desired, and its labels say whose it is
        // (registry/discovery/endpointslice/strategy.go).
        "EndpointSlice" => {
            ["addressType", "endpoints", "ports"].iter().any(|f| new.get(f) != old.get(f))
                || walk::at(new, "metadata.labels") != walk::at(old, "metadata.labels")
        }
        // A change of annotations may be one of the revision that is asked for (registry/apps/deployment/strategy.go).
        "Deployment" => {
            new.get("spec") != old.get("spec")
                || walk::map(new, "metadata.annotations") != walk::map(old, "metadata.annotations")
        }
        "PodTemplate" => new.get("template") != old.get("template"),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            new.get("webhooks") != old.get("webhooks")
        }
        _ => new.get("spec") != old.get("spec"),
    }
}

/// What the column of ages shows.
pub(crate) const AGE: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. \
    It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is \
    represented in RFC3339 form and is in UTC.";

/// Labels in kubectl's notation, `<none>` if there are none.
pub(crate) fn label_text(labels: &serde_json::Map<String, Value>) -> String {
    let mut parts: Vec<String> =
        labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    parts.sort();
    if parts.is_empty() { "<none>".into() } else { parts.join(",") }
}

/// Removes an empty map or text: Kubernetes leaves such out on the wire.
pub(crate) fn drop_if_empty(object: &mut Value, path: &str) {
    let empty = match walk::at(object, path) {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        _ => false,
    };
    if empty {
        walk::remove(object, path);
    }
}

/// The names and the images of a template's containers, as the columns of workloads show them.
pub(crate) fn containers(object: &Value, spec: &str) -> [Value; 2] {
    let containers = walk::list(object, &format!("{spec}.containers"));
    ["name", "image"]
        .map(|field| containers.iter().map(|c| walk::text(c, field)).collect::<Vec<_>>().join(",").into())
}

/// A label selector in kubectl's notation, `<none>` if it is absent or selects everything.
pub(crate) fn selector_text(selector: Option<&Value>) -> Value {
    let text = selector.and_then(|s| LabelSelector::from_object(s).ok()).map(|s| s.to_string());
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "<none>".into()).into()
}

#[cfg(test)]
mod tests;
