//! The `scale` subresource: a workload seen as a number of replicas, and back.

use serde_json::{Value, json};

use crate::fielderror::FieldError;
use crate::selector::LabelSelector;
use crate::walk;

/// The `autoscaling/v1 Scale` of an object with so many replicas.
pub(crate) fn scale(object: &Value, replicas: i64, status: Value) -> Value {
    let mut meta = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = walk::at(object, &format!("metadata.{field}")) {
            walk::set(&mut meta, field, value.clone());
        }
    }
    let mut spec = json!({});
    // `replicas: 0` is left out on the wire, as Kubernetes does.
    if replicas != 0 {
        walk::set(&mut spec, "replicas", replicas);
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status})
}

/// The `autoscaling/v1 Scale` of a workload.
pub fn to_scale(object: &Value) -> Value {
    let selector = match walk::at(object, "spec.selector") {
        // A ReplicationController's is a plain map.
        Some(map) if walk::text(object, "kind") == "ReplicationController" => {
            LabelSelector::from_map(map).to_string()
        }
        Some(selector) => LabelSelector::from_object(selector).map(|s| s.to_string()).unwrap_or_default(),
        None => String::new(),
    };
    let mut status = json!({"replicas": walk::int(object, "status.replicas").unwrap_or(0)});
    if !selector.is_empty() {
        walk::set(&mut status, "selector", selector);
    }
    scale(object, walk::int(object, "spec.replicas").unwrap_or(0), status)
}

/// Writes the number of a Scale into the object it scales. The caller compares resource versions and stores the object
/// as any other update.
pub fn apply_scale(object: &mut Value, scale: &Value) -> Result<(), Vec<FieldError>> {
    let replicas = match walk::at(scale, "spec.replicas") {
        None => 0,
        Some(value) => value.as_i64().ok_or_else(|| {
            vec![FieldError::invalid("spec.replicas", value.clone(), "must be a whole number")]
        })?,
    };
    if replicas < 0 {
        return Err(vec![FieldError::invalid(
            "spec.replicas",
            replicas,
            "must be greater than or equal to 0",
        )]);
    }
    walk::set(object, "spec.replicas", replicas);
    Ok(())
}
