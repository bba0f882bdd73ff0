//! ReplicationControllers, and the pod templates that stand alone.

use serde_json::{Value, json};

use super::{not_negative, runs_forever, selected};
use crate::fielderror::FieldError;
use crate::selector::LabelSelector;
use crate::{meta, pod, walk};

/// Fills in what the client left out of a ReplicationController: selector and labels come from the template
/// (pkg/apis/core/v1/defaults.go).
pub fn default_replication_controller(object: &mut Value) {
    let _ = walk::map_mut(object, "spec");
    if walk::at(object, "spec.template").is_some() {
        super::default_template(object);
    }
    let labels = walk::map(object, "spec.template.metadata.labels").clone();
    if !labels.is_empty() {
        if walk::map(object, "spec.selector").is_empty() {
            walk::set(object, "spec.selector", labels.clone());
        }
        if meta::labels(object).is_empty() {
            walk::set(object, "metadata.labels", labels);
        }
    }
    walk::default(object, "spec.replicas", 1);
}

/// What is wrong with a ReplicationController.
pub fn validate_replication_controller(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    not_negative(&mut errors, object, "spec.minReadySeconds");
    let selector = walk::map(object, "spec.selector");
    if selector.is_empty() {
        errors.push(FieldError::required("spec.selector", ""));
    }
    not_negative(&mut errors, object, "spec.replicas");
    let Some(template) = walk::at(object, "spec.template") else {
        errors.push(FieldError::required("spec.template", ""));
        return errors;
    };
    let chosen = (!selector.is_empty()).then(|| LabelSelector::from_map(&Value::Object(selector.clone())));
    selected(&mut errors, template, chosen.as_ref());
    errors.extend(pod::validate_template(template, "spec.template"));
    runs_forever(&mut errors, template, "ReplicationController");
    errors
}

/// Fills in a pod template that stands alone.
pub fn default_pod_template(object: &mut Value) {
    walk::default(object, "template.metadata", json!({}));
    if walk::map(object, "template.metadata.labels").is_empty() {
        walk::remove(object, "template.metadata.labels");
    }
    let _ = walk::map_mut(object, "template.spec");
    if let Some(spec) = walk::at_mut(object, "template.spec") {
        pod::default_spec(spec);
    }
}

/// What is wrong with a pod template that stands alone.
pub fn validate_pod_template(object: &Value) -> Vec<FieldError> {
    pod::validate_template(walk::at(object, "template").unwrap_or(&json!({})), "template")
}
