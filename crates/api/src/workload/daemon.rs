//! DaemonSets: one pod a node.

use serde_json::{Value, json};

use super::{at_most_whole, not_negative, runs_forever, same_selector, share, stateful};
use crate::fielderror::FieldError;
use crate::selector::{LabelSelector, validate_object};
use crate::{pod, walk};

/// Fills in what the client left out of a DaemonSet.
pub fn default_daemon_set(object: &mut Value) {
    super::default_template(object);
    walk::default(object, "spec.updateStrategy.type", "RollingUpdate");
    if walk::text(object, "spec.updateStrategy.type") == "RollingUpdate" {
        walk::default(object, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
        walk::default(object, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
    }
    walk::default(object, "spec.revisionHistoryLimit", 10);
}

/// A new DaemonSet has no pods, and says so. The generation of its template is an annotation in `apps/v1`
/// (`deprecated.daemonset.template.generation`).
pub fn prepare_create_daemon_set(object: &mut Value) {
    walk::set(
        object,
        "status",
        json!({
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
        }),
    );
    if template_generation(object) < 1 {
        set_template_generation(object, 1);
    }
}

/// A change of the template counts, and nothing else may count.
pub fn prepare_update_daemon_set(new: &mut Value, old: &Value) {
    crate::kind::keep_status(new, old);
    let changed = walk::at(new, "spec.template") != walk::at(old, "spec.template");
    set_template_generation(new, template_generation(old) + i64::from(changed));
}

/// A status leaves the template as it is, and with it its generation.
pub fn prepare_status_of_daemon_set(new: &mut Value, old: &Value) {
    crate::kind::keep_all_but_status(new, old);
    set_template_generation(new, template_generation(old));
}

const GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Value) -> i64 {
    crate::meta::annotation(object, GENERATION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    if let Some(annotations) = walk::map_mut(object, "metadata.annotations") {
        annotations.insert(GENERATION.into(), generation.to_string().into());
    }
}

/// What is wrong with a DaemonSet.
pub fn validate_daemon_set(object: &Value) -> Vec<FieldError> {
    const SELECTOR: &str = "spec.selector";
    let mut errors = Vec::new();
    let template = walk::at(object, "spec.template").cloned().unwrap_or_else(|| json!({}));
    let selector = walk::at(object, SELECTOR);
    let faults = selector.map(|selector| validate_object(selector, SELECTOR)).unwrap_or_default();
    let sound = faults.is_empty();
    errors.extend(faults);
    // No selector selects nothing, an empty one everything (`LabelSelectorAsSelector`).
    let chosen = match selector {
        None => Some(LabelSelector::nothing()),
        Some(selector) => LabelSelector::from_object(selector).ok().filter(|_| sound),
    };
    if chosen.is_some_and(|chosen| !chosen.matches(walk::map(&template, "metadata.labels"))) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            walk::at(&template, "metadata.labels").cloned().unwrap_or_default(),
            "`selector` does not match template `labels`",
        ));
    }
    if let Some(selector) = selector
        && walk::map(selector, "matchLabels").is_empty()
        && walk::list(selector, "matchExpressions").is_empty()
    {
        let text = "empty selector is invalid for daemonset";
        errors.push(FieldError::invalid(SELECTOR, super::shown(selector), text));
    }
    errors.extend(pod::validate_template(&template, "spec.template"));
    runs_forever(&mut errors, &template, "DaemonSet");
    not_negative(&mut errors, object, "spec.minReadySeconds");
    strategy(&mut errors, object);
    not_negative(&mut errors, object, "spec.revisionHistoryLimit");
    errors
}

fn strategy(errors: &mut Vec<FieldError>, object: &Value) {
    const ROLLING: &str = "spec.updateStrategy.rollingUpdate";
    match walk::text(object, "spec.updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            if walk::at(object, ROLLING).is_none() {
                errors.push(FieldError::required(ROLLING, ""));
                return;
            }
            let (missing_path, surge_path) =
                (format!("{ROLLING}.maxUnavailable"), format!("{ROLLING}.maxSurge"));
            let missing = share(errors, object, &missing_path);
            let surge = share(errors, object, &surge_path);
            at_most_whole(errors, object, &missing_path, missing);
            at_most_whole(errors, object, &surge_path, surge);
            match (missing.unwrap_or(0) != 0, surge.unwrap_or(0) != 0) {
                (true, true) => errors.push(FieldError::invalid(
                    &surge_path,
                    walk::at(object, &surge_path).cloned().unwrap_or_default(),
                    "may not be set when maxUnavailable is non-zero",
                )),
                (false, false) => {
                    errors.push(FieldError::required(&missing_path, "cannot be 0 when maxSurge is 0"));
                }
                _ => {}
            }
        }
        kind => {
            // The members of Go's struct.
            let rolling = walk::at(object, ROLLING).map(|rolling| {
                let of = |field: &str| rolling.get(field).cloned().unwrap_or(Value::from(0));
                json!({"MaxUnavailable": of("maxUnavailable"), "MaxSurge": of("maxSurge")})
            });
            let shown = json!({"Type": kind, "RollingUpdate": rolling});
            errors.push(FieldError::not_supported(
                "spec.updateStrategy",
                shown,
                &["RollingUpdate", "OnDelete"],
            ));
        }
    }
}

/// Warns of a new template.
pub(crate) fn daemon_set_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| template_generation(old) == template_generation(new)) {
        return Vec::new();
    }
    pod::template_warnings(walk::at(new, "spec.template").unwrap_or(&Value::Null), "spec.template")
}

/// What is wrong with a changed DaemonSet.
pub fn validate_daemon_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    same_selector(&mut errors, new, old);
    errors.extend(validate_daemon_set(new));
    errors
}

/// What is wrong with the numbers that the DaemonSet controller reports.
pub fn validate_daemon_set_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ] {
        not_negative(&mut errors, new, &format!("status.{field}"));
    }
    errors.extend(stateful::collisions_only_grow(new, old));
    errors
}
