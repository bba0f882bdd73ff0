//! What the workloads mean: a number of pods alike, and how they are exchanged. Here Deployments and ReplicaSets, and what
//! all workloads share.

use serde_json::{Value, json};

use crate::fielderror::FieldError;
use crate::selector::{LabelSelector, validate_object};
use crate::{pod, walk};

mod daemon;
mod job;
mod replication;
mod stateful;

pub use daemon::*;
pub use job::*;
pub use replication::*;
pub use stateful::*;

fn default_template(object: &mut Value) {
    // To Kubernetes a specification that is left out is an empty one.
    let _ = walk::map_mut(object, "spec.template.spec");
    if let Some(spec) = walk::at_mut(object, "spec.template.spec") {
        pod::default_spec(spec);
    }
}

/// A selector without its empty parts, as the texts show it.
fn shown(selector: &Value) -> Value {
    let mut selector = selector.clone();
    if let Some(map) = selector.as_object_mut() {
        map.retain(|_, part| match part {
            Value::Object(map) => !map.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        });
    }
    selector
}

/// Fills in what the client left out of a Deployment (pkg/apis/apps/v1/defaults.go).
pub fn default_deployment(object: &mut Value) {
    default_template(object);
    walk::default(object, "spec.replicas", 1);
    walk::default(object, "spec.strategy.type", "RollingUpdate");
    if walk::text(object, "spec.strategy.type") == "RollingUpdate" {
        walk::default(object, "spec.strategy.rollingUpdate.maxUnavailable", "25%");
        walk::default(object, "spec.strategy.rollingUpdate.maxSurge", "25%");
    }
    walk::default(object, "spec.revisionHistoryLimit", 10);
    walk::default(object, "spec.progressDeadlineSeconds", 600);
}

/// Fills in what the client left out of a ReplicaSet.
pub fn default_replica_set(object: &mut Value) {
    default_template(object);
    walk::default(object, "spec.replicas", 1);
}

/// A new ReplicaSet has no pods, and says so.
pub fn prepare_create_replica_set(object: &mut Value) {
    walk::set(object, "status", json!({"replicas": 0}));
}

/// A new Deployment has no pods.
pub fn prepare_create_deployment(object: &mut Value) {
    walk::set(object, "status", json!({}));
}

/// Checks that a number is none below zero.
pub(crate) fn not_negative(errors: &mut Vec<FieldError>, object: &Value, path: &str) {
    if let Some(n) = walk::int(object, path).filter(|n| *n < 0) {
        errors.push(FieldError::invalid(path, n, "must be greater than or equal to 0"));
    }
}

/// Checks a label selector that must select something, and gives it as the matching does: none where it can't be understood,
/// and one of nothing where there is none (`LabelSelectorAsSelector`).
fn selector(errors: &mut Vec<FieldError>, object: &Value, kind: &str) -> Option<LabelSelector> {
    const SELECTOR: &str = "spec.selector";
    let Some(selector) = walk::at(object, SELECTOR) else {
        errors.push(FieldError::required(SELECTOR, ""));
        return Some(LabelSelector::nothing());
    };
    let faults = validate_object(selector, SELECTOR);
    let sound = faults.is_empty();
    errors.extend(faults);
    if walk::map(selector, "matchLabels").is_empty() && walk::list(selector, "matchExpressions").is_empty() {
        let text = format!("empty selector is invalid for {kind}");
        errors.push(FieldError::invalid(SELECTOR, shown(selector), text));
    }
    LabelSelector::from_object(selector).ok().filter(|_| sound)
}

/// Checks that a template's labels are selected; an empty selector is another fault.
fn selected(errors: &mut Vec<FieldError>, template: &Value, selector: Option<&LabelSelector>) {
    let labels = walk::map(template, "metadata.labels");
    if selector.is_some_and(|selector| !selector.is_empty() && !selector.matches(labels)) {
        errors.push(unselected(template));
    }
}

fn unselected(template: &Value) -> FieldError {
    FieldError::invalid(
        "spec.template.metadata.labels",
        walk::at(template, "metadata.labels").filter(|l| *l != &json!({})).cloned().unwrap_or_default(),
        "`selector` does not match template `labels`",
    )
}

/// Checks what pods that shall always run may not ask for; `kind` is how the text names the owner.
fn runs_forever(errors: &mut Vec<FieldError>, template: &Value, kind: &str) {
    let policy = walk::text(template, "spec.restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if walk::at(template, "spec.activeDeadlineSeconds").is_some() {
        errors.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        ));
    }
}

fn selector_and_template(errors: &mut Vec<FieldError>, object: &Value) {
    // Kubernetes says `deployment` of ReplicaSets, too.
    let Some(chosen) = selector(errors, object, "deployment") else {
        let said = walk::at(object, "spec.selector").map(shown).unwrap_or_default();
        errors.push(FieldError::invalid("spec.selector", said, "invalid label selector"));
        return;
    };
    let template = walk::at(object, "spec.template").cloned().unwrap_or_else(|| json!({}));
    selected(errors, &template, Some(&chosen));
    errors.extend(pod::validate_template(&template, "spec.template"));
    runs_forever(errors, &template, "ReplicaSet");
}

/// Warns of a new template, and of one whose object has changed.
pub(crate) fn template_warnings(new: &Value, old: Option<&Value>, at: &str) -> Vec<String> {
    let same = |old: &Value| crate::meta::generation(new) == crate::meta::generation(old);
    if old.is_some_and(same) {
        return Vec::new();
    }
    pod::template_warnings(walk::at(new, at).unwrap_or(&Value::Null), at)
}

/// The same, and of a name that pods' names begin with.
pub(crate) fn name_and_template_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = if old.is_none() { pod::name_warnings(new) } else { Vec::new() };
    out.extend(template_warnings(new, old, "spec.template"));
    out
}

/// The number or share at a path; findings if it is neither (`ValidatePositiveIntOrPercent`).
pub(crate) fn share(errors: &mut Vec<FieldError>, object: &Value, path: &str) -> Option<i64> {
    let value = walk::at(object, path)?;
    if let Some(n) = value.as_i64() {
        if n < 0 {
            errors.push(FieldError::invalid(path, n, "must be greater than or equal to 0"));
        }
        return Some(n);
    }
    let percent =
        value.as_str().and_then(|t| t.strip_suffix('%')).filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    match percent.and_then(|t| t.parse().ok()) {
        Some(n) => Some(n),
        None => {
            errors.push(FieldError::invalid(
                path,
                value.clone(),
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
                 for validation is '[0-9]+%')",
            ));
            None
        }
    }
}

/// Checks that a share is not more than the whole.
pub(crate) fn at_most_whole(errors: &mut Vec<FieldError>, object: &Value, path: &str, share: Option<i64>) {
    if let Some(value) = walk::at(object, path).filter(|v| v.is_string())
        && share.is_some_and(|n| n > 100)
    {
        errors.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// What is wrong with a Deployment.
pub fn validate_deployment(object: &Value) -> Vec<FieldError> {
    const ROLLING: &str = "spec.strategy.rollingUpdate";
    let mut errors = Vec::new();
    not_negative(&mut errors, object, "spec.replicas");
    selector_and_template(&mut errors, object);
    match walk::text(object, "spec.strategy.type") {
        "Recreate" => {
            if walk::at(object, ROLLING).is_some() {
                errors.push(FieldError::forbidden(
                    ROLLING,
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => {
            let unavailable = format!("{ROLLING}.maxUnavailable");
            let missing = share(&mut errors, object, &unavailable);
            let surge = share(&mut errors, object, &format!("{ROLLING}.maxSurge"));
            if missing.unwrap_or(0) == 0 && surge.unwrap_or(0) == 0 {
                errors.push(FieldError::invalid(
                    &unavailable,
                    walk::at(object, &unavailable).cloned().unwrap_or_default(),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            at_most_whole(&mut errors, object, &unavailable, missing);
        }
        kind => {
            // The members of Go's struct.
            let rolling = walk::at(object, ROLLING).map(|rolling| {
                let of = |field: &str| rolling.get(field).cloned().unwrap_or(Value::from(0));
                json!({"MaxUnavailable": of("maxUnavailable"), "MaxSurge": of("maxSurge")})
            });
            let shown = json!({"Type": kind, "RollingUpdate": rolling});
            errors.push(FieldError::not_supported("spec.strategy", shown, &["Recreate", "RollingUpdate"]));
        }
    }
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        not_negative(&mut errors, object, &format!("spec.{field}"));
    }
    if let (Some(deadline), Some(ready)) = (
        walk::int(object, "spec.progressDeadlineSeconds"),
        walk::int(object, "spec.minReadySeconds").or(Some(0)),
    ) && deadline <= ready
    {
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
    errors
}

/// What is wrong with a ReplicaSet.
pub fn validate_replica_set(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    not_negative(&mut errors, object, "spec.replicas");
    not_negative(&mut errors, object, "spec.minReadySeconds");
    selector_and_template(&mut errors, object);
    errors
}

fn same_selector(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    let (now, before) = (walk::at(new, "spec.selector"), walk::at(old, "spec.selector"));
    if now != before {
        errors.push(FieldError::invalid(
            "spec.selector",
            now.cloned().unwrap_or_default(),
            "field is immutable",
        ));
    }
}

/// What is wrong with a changed Deployment.
pub fn validate_deployment_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_deployment(new);
    same_selector(&mut errors, new, old);
    errors
}

/// What is wrong with a changed ReplicaSet.
pub fn validate_replica_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_replica_set(new);
    same_selector(&mut errors, new, old);
    errors
}

/// Checks the numbers of pods that a controller reports: `order` is that in which they are named, and those of `within` are
/// at most all.
fn counts(new: &Value, order: &[&str], within: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let of = |field: &str| walk::int(new, &format!("status.{field}")).unwrap_or(0);
    for field in order {
        not_negative(&mut errors, new, &format!("status.{field}"));
    }
    for field in within.iter().filter(|field| of(field) > of("replicas")) {
        let text = "cannot be greater than status.replicas";
        errors.push(FieldError::invalid(format!("status.{field}"), of(field), text));
    }
    if of("availableReplicas") > of("readyReplicas") {
        let text = "cannot be greater than readyReplicas";
        errors.push(FieldError::invalid("status.availableReplicas", of("availableReplicas"), text));
    }
    errors
}

/// What is wrong with the numbers that the Deployment controller reports.
pub fn validate_deployment_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let order = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ];
    let mut errors = counts(new, &order, &["updatedReplicas", "readyReplicas", "availableReplicas"]);
    errors.extend(stateful::collisions_only_grow(new, old));
    errors
}

/// What is wrong with the numbers that the ReplicaSet and ReplicationController controllers report.
pub fn validate_replicas_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let order = [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
        "terminatingReplicas",
    ];
    counts(new, &order, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{Kind, find};
    use crate::patch::merge;

    fn kind(plural: &str) -> &'static Kind {
        find("apps", "v1", plural).unwrap()
    }

    fn made(plural: &str, spec: Value) -> Value {
        let mut out = json!({"metadata": {"name": "w", "namespace": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "echo"}]}}}});
        merge(&mut out, &json!({"spec": spec})).unwrap();
        kind(plural).prepare_create(&mut out);
        out
    }

    fn texts(errors: Vec<FieldError>) -> String {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_plain_deployment_gets_the_defaults() {
        let made = made("deployments", json!({}));
        assert_eq!(made["apiVersion"], "apps/v1");
        assert_eq!(made["spec"]["replicas"], 1);
        assert_eq!(
            made["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(made["spec"]["revisionHistoryLimit"], 10);
        assert_eq!(made["spec"]["progressDeadlineSeconds"], 600);
        assert_eq!(made["spec"]["template"]["spec"]["restartPolicy"], "Always");
        // Only a pod itself links to Services by default; the template stays as it was written.
        assert_eq!(made["spec"]["template"]["spec"].get("enableServiceLinks"), None);
        assert_eq!(texts(kind("deployments").check_create(&made)), "");
    }

    #[test]
    fn each_rule_of_a_workload_has_its_path_and_text() {
        let rows = [
            (
                json!({"selector": null}),
                "spec.selector: Required value; spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does \
                 not match template `labels`",
            ),
            (
                json!({"selector": {"matchLabels": {"a": "c"}}}),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            (
                json!({"selector": {"matchLabels": null}}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (json!({"replicas": -1}), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                json!({"template": {"spec": {"restartPolicy": "Never"}}}),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                json!({"template": {"spec": {"containers": [{"name": "c"}]}}}),
                "spec.template.spec.containers[0].image: Required value",
            ),
            (
                json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
        ];
        for (spec, text) in rows {
            assert_eq!(
                texts(kind("deployments").check_create(&made("deployments", spec.clone()))),
                text,
                "{spec}"
            );
        }
    }

    #[test]
    fn the_selector_is_fixed_and_the_generation_counts_changes_of_the_spec() {
        for plural in ["deployments", "replicasets"] {
            let old = made(plural, json!({}));
            assert_eq!(old["metadata"]["generation"], 1);
            let change = |patch: Value| {
                let mut new = old.clone();
                merge(&mut new, &patch).unwrap();
                kind(plural).prepare_update(&mut new, &old);
                new
            };
            let scaled = change(json!({"spec": {"replicas": 3}, "status": {"replicas": 9}}));
            assert_eq!(scaled["metadata"]["generation"], 2);
            assert_eq!(scaled["status"], old["status"]);
            assert_eq!(change(json!({"metadata": {"labels": {"x": "y"}}}))["metadata"]["generation"], 1);
            let other = change(json!({"spec": {"selector": {"matchLabels": {"a": null, "c": "d"}},
                "template": {"metadata": {"labels": {"c": "d"}}}}}));
            assert_eq!(
                texts(kind(plural).check_update(&other, &old)),
                "spec.selector: Invalid value: {\"matchLabels\":{\"c\":\"d\"}}: field is immutable"
            );
        }
    }

    #[test]
    fn through_status_only_the_status_changes() {
        let old = made("deployments", json!({}));
        let mut new = old.clone();
        merge(&mut new, &json!({"spec": {"replicas": 5}, "status": {"replicas": 2, "readyReplicas": 1}}))
            .unwrap();
        kind("deployments").prepare_status_update(&mut new, &old);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["status"], json!({"replicas": 2, "readyReplicas": 1}));
        assert_eq!(texts(kind("deployments").check_status_update(&new, &old)), "");
        new["status"]["readyReplicas"] = json!(3);
        assert_eq!(
            texts(kind("deployments").check_status_update(&new, &old)),
            "status.readyReplicas: Invalid value: 3: cannot be greater than status.replicas"
        );
    }
}
