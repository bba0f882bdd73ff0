//! The table of kinds: one entry and one file each.

use serde_json::Value;

use crate::kind::Kind;
use crate::walk;

pub mod config;
pub mod endpoints;
pub mod event;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod service;
pub mod workload;

/// Every kind that is served.
pub static KINDS: &[&Kind] = &[
    &namespace::NAMESPACE,
    &node::NODE,
    &pod::POD,
    &service::SERVICE,
    &endpoints::ENDPOINTS,
    &config::CONFIG_MAP,
    &config::SECRET,
    &config::SERVICE_ACCOUNT,
    &event::EVENT,
    &workload::DEPLOYMENT,
    &workload::REPLICA_SET,
    &endpoints::ENDPOINT_SLICE,
    &lease::LEASE,
];

/// Whether two versions of an object desire different things.
pub(crate) fn desired_differs(kind: &Kind, new: &Value, old: &Value) -> bool {
    match kind.kind {
        // An EndpointSlice has no spec: all of it but metadata is desired, and its labels say whose it is
        // (registry/discovery/endpointslice/strategy.go).
        "EndpointSlice" => {
            ["addressType", "endpoints", "ports"].iter().any(|f| new.get(f) != old.get(f))
                || walk::at(new, "metadata.labels") != walk::at(old, "metadata.labels")
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

#[cfg(test)]
mod tests;
