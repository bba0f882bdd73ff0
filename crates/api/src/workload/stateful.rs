//! StatefulSets, and the revisions that they and DaemonSets keep.

use serde_json::{Value, json};

use super::{not_negative, runs_forever, selected, selector};
use crate::fielderror::FieldError;
use crate::selector::LabelSelector;
use crate::{meta, pod, walk};

/// Fills in what the client left out of a StatefulSet (pkg/apis/apps/v1/defaults.go).
pub fn default_stateful_set(object: &mut Value) {
    super::default_template(object);
    walk::default(object, "spec.podManagementPolicy", "OrderedReady");
    if walk::text(object, "spec.updateStrategy.type").is_empty() {
        walk::set(object, "spec.updateStrategy.type", "RollingUpdate");
        walk::default(object, "spec.updateStrategy.rollingUpdate", json!({}));
    }
    if walk::text(object, "spec.updateStrategy.type") == "RollingUpdate"
        && walk::at(object, "spec.updateStrategy.rollingUpdate").is_some()
    {
        walk::default(object, "spec.updateStrategy.rollingUpdate.partition", 0);
        // MaxUnavailableStatefulSet is off in 1.36: the field is dropped.
        walk::remove(object, "spec.updateStrategy.rollingUpdate.maxUnavailable");
    }
    for field in ["whenDeleted", "whenScaled"] {
        walk::default(object, &format!("spec.persistentVolumeClaimRetentionPolicy.{field}"), "Retain");
    }
    walk::default(object, "spec.replicas", 1);
    if walk::at(object, "spec.serviceName").is_none() {
        walk::set(object, "spec.serviceName", "");
    }
    walk::default(object, "spec.revisionHistoryLimit", 10);
    for claim in walk::list_mut(object, "spec.volumeClaimTemplates") {
        walk::default(claim, "apiVersion", "v1");
        walk::default(claim, "kind", "PersistentVolumeClaim");
        walk::default(claim, "spec.volumeMode", "Filesystem");
        walk::default(claim, "status.phase", "Pending");
    }
}

/// A new StatefulSet has no pods, and says so.
pub fn prepare_create_stateful_set(object: &mut Value) {
    walk::set(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
}

/// What is wrong with a StatefulSet.
pub fn validate_stateful_set(object: &Value) -> Vec<FieldError> {
    validate(object, false)
}

fn validate(object: &Value, changed: bool) -> Vec<FieldError> {
    const STRATEGY: &str = "spec.updateStrategy";
    let mut errors = Vec::new();
    match walk::text(object, "spec.podManagementPolicy") {
        "" => errors.push(FieldError::required("spec.podManagementPolicy", "")),
        "OrderedReady" | "Parallel" => {}
        other => errors.push(FieldError::invalid(
            "spec.podManagementPolicy",
            other,
            "must be 'OrderedReady' or 'Parallel'",
        )),
    }
    let rolling = format!("{STRATEGY}.rollingUpdate");
    match walk::text(object, "spec.updateStrategy.type") {
        "" => errors.push(FieldError::required(STRATEGY, "")),
        "OnDelete" => {
            if let Some(value) = walk::at(object, &rolling) {
                let text = "only allowed for updateStrategy 'RollingUpdate'";
                errors.push(FieldError::invalid(&rolling, value.clone(), text));
            }
        }
        "RollingUpdate" => {
            not_negative(&mut errors, object, &format!("{rolling}.partition"));
        }
        _ => errors.push(FieldError::invalid(
            STRATEGY,
            walk::at(object, STRATEGY).cloned().unwrap_or_default(),
            "must be 'RollingUpdate' or 'OnDelete'",
        )),
    }
    for field in ["whenDeleted", "whenScaled"] {
        let path = format!("spec.persistentVolumeClaimRetentionPolicy.{field}");
        let policy = walk::text(object, &path);
        if !matches!(policy, "Retain" | "Delete") {
            errors.push(FieldError::not_supported(path, policy, &["Retain", "Delete"]));
        }
    }
    if !changed {
        for (i, claim) in walk::list(object, "spec.volumeClaimTemplates").iter().enumerate() {
            let spec = claim.get("spec").unwrap_or(&Value::Null);
            errors.extend(crate::kinds::storage::claim_spec_faults(
                spec,
                &format!("spec.volumeClaimTemplates[{i}].spec"),
            ));
        }
    }
    for field in ["replicas", "minReadySeconds", "ordinals.start"] {
        not_negative(&mut errors, object, &format!("spec.{field}"));
    }
    let service = walk::text(object, "spec.serviceName");
    if !changed && !service.is_empty() {
        errors.extend(meta::findings("spec.serviceName", service, meta::label_faults(service)));
    }
    let chosen = selector(&mut errors, object, "statefulset");
    let template = walk::at(object, "spec.template").cloned().unwrap_or_else(|| json!({}));
    if let Some(chosen) = &chosen {
        template_rules(&mut errors, object, &template, chosen);
    } else {
        let said = walk::at(object, "spec.selector").map(super::shown).unwrap_or_default();
        errors.push(FieldError::invalid("spec.selector", said, ""));
    }
    runs_forever(&mut errors, &template, "StatefulSet");
    errors
}

fn template_rules(errors: &mut Vec<FieldError>, object: &Value, template: &Value, chosen: &LabelSelector) {
    let mut template = template.clone();
    // What the controller overwrites in each pod, and the volumes it adds, are no fault of the template.
    walk::remove(&mut template, "spec.subdomain");
    walk::remove(&mut template, "spec.hostname");
    let claims = walk::list(object, "spec.volumeClaimTemplates");
    if !claims.is_empty() && walk::at(&template, "spec").is_some() {
        // Of two claims of one name there is one volume.
        let mut names: Vec<&str> = Vec::new();
        for name in claims.iter().map(meta::name) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let claimed = |name: &&str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        let mut volumes: Vec<Value> = names.iter().map(claimed).collect();
        let others = walk::list(&template, "spec.volumes").iter();
        volumes.extend(others.filter(|v| !names.contains(&walk::text(v, "name"))).cloned());
        walk::set(&mut template, "spec.volumes", volumes);
    }
    selected(errors, &template, Some(chosen));
    errors.extend(pod::validate_template(&template, "spec.template"));
    // And once more what every template is asked.
    let labels = walk::map(&template, "metadata.labels");
    errors.extend(meta::validate_labels(labels, "spec.template.labels"));
    let notes = walk::map(&template, "metadata.annotations");
    errors.extend(meta::validate_annotations(notes, "spec.template.annotations"));
}

/// Warns of a new template, of claims, and of a history without end.
pub(crate) fn stateful_set_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = super::template_warnings(new, old, "spec.template");
    for (i, claim) in walk::list(new, "spec.volumeClaimTemplates").iter().enumerate() {
        let part = if old.is_some() { ".Spec" } else { "" };
        let spec = claim.get("spec").unwrap_or(&Value::Null);
        out.extend(pod::claim_warnings(spec, &format!("spec.volumeClaimTemplates[{i}]{part}")));
    }
    if walk::int(new, "spec.revisionHistoryLimit").is_some_and(|n| n < 0) {
        let text = "a negative value retains all historical revisions; a value >= 0 is recommended";
        out.push(format!("spec.revisionHistoryLimit: {text}"));
    }
    out
}

/// What is wrong with a changed StatefulSet: most of it is fixed.
pub fn validate_stateful_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate(new, true);
    let fixed = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        for field in [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ] {
            walk::remove(&mut spec, field);
        }
        spec
    };
    if fixed(new) != fixed(old) {
        errors.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
    errors
}

/// What is wrong with the numbers that the StatefulSet controller reports.
pub fn validate_stateful_set_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let of = |field: &str| walk::int(new, &format!("status.{field}")).unwrap_or(0);
    for field in [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ] {
        not_negative(&mut errors, new, &format!("status.{field}"));
    }
    for field in ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"] {
        if of(field) > of("replicas") {
            let text = "cannot be greater than status.replicas";
            errors.push(FieldError::invalid(format!("status.{field}"), of(field), text));
        }
    }
    if of("availableReplicas") > of("readyReplicas") {
        let text = "cannot be greater than status.readyReplicas";
        errors.push(FieldError::invalid("status.availableReplicas", of("availableReplicas"), text));
    }
    errors.extend(collisions_only_grow(new, old));
    errors
}

/// The count of names that were taken never goes back.
pub(super) fn collisions_only_grow(new: &Value, old: &Value) -> Vec<FieldError> {
    const PATH: &str = "status.collisionCount";
    match (walk::int(new, PATH).unwrap_or(0), walk::int(old, PATH)) {
        (now, Some(before)) if now < before => {
            vec![FieldError::invalid(PATH, now, "cannot be decremented")]
        }
        _ => Vec::new(),
    }
}

/// What is wrong with a ControllerRevision.
pub fn validate_revision(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    not_negative(&mut errors, object, "revision");
    match walk::at(object, "data") {
        None => errors.push(FieldError::required("data", "data is mandatory")),
        Some(data) if !data.is_object() => {
            errors.push(FieldError::required("data", "data must be a valid JSON object"));
        }
        Some(_) => {}
    }
    errors
}

/// What is wrong with a changed ControllerRevision.
pub fn validate_revision_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    not_negative(&mut errors, new, "revision");
    if new.get("data") != old.get("data") {
        let data = new.get("data").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("data", data, "field is immutable"));
    }
    errors
}
