//! PodDisruptionBudgets: how many pods may be taken away at once.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::selector::validate_object;
use crate::workload::{at_most_whole, not_negative, share};
use crate::{duration, meta, walk};

/// The entry of PodDisruptionBudget.
pub static POD_DISRUPTION_BUDGET: Kind = Kind::Listed(&Entry {
    short_names: &["pdb"],
    // Whatever fits into a path: Kubernetes asks no more of it.
    names: crate::meta::NameRule::PathSegment,
    subresources: &["status"],
    generation: true,
    strategy: Strategy {
        default: |o| {
            walk::default(o, "spec", json!({}));
            super::drop_if_empty(o, "spec.selector.matchLabels");
        },
        prepare_create: |o| {
            let status = json!({
                "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
            });
            walk::set(o, "status", status);
        },
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate,
        validate_update: |new, _| validate(new),
        validate_status_update: |new, _| {
            let mut errors = Vec::new();
            for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
                not_negative(&mut errors, new, &format!("status.{field}"));
            }
            errors
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Min Available", "string", "The minimum number of pods that must be available."),
        Column::new("Max Unavailable", "string", "The maximum number of pods that may be unavailable."),
        Column::new("Allowed Disruptions", "integer", "How many pods may be taken away at this time."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let share = |path: &str| match walk::at(o, path) {
            None => Value::from("N/A"),
            Some(Value::String(text)) => text.clone().into(),
            Some(number) => number.to_string().into(),
        };
        vec![
            meta::name(o).into(),
            share("spec.minAvailable"),
            share("spec.maxUnavailable"),
            walk::int(o, "status.disruptionsAllowed").unwrap_or(0).into(),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of(
        "policy",
        "v1",
        ("PodDisruptionBudget", "PodDisruptionBudgetList"),
        ("poddisruptionbudgets", "poddisruptionbudget"),
    )
});

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let has = |field: &str| walk::at(object, &format!("spec.{field}")).is_some();
    if has("minAvailable") && has("maxUnavailable") {
        let spec = object.get("spec").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set"));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        let path = format!("spec.{field}");
        let found = share(&mut errors, object, &path);
        at_most_whole(&mut errors, object, &path, found);
    }
    if let Some(selector) = walk::at(object, "spec.selector") {
        errors.extend(validate_object(selector, "spec.selector"));
    }
    let policy = walk::text(object, "spec.unhealthyPodEvictionPolicy");
    if !matches!(policy, "" | "AlwaysAllow" | "IfHealthyBudget") {
        errors.push(FieldError::not_supported(
            "spec.unhealthyPodEvictionPolicy",
            policy,
            &["AlwaysAllow", "IfHealthyBudget"],
        ));
    }
    errors
}
