//! What may change in a pod that exists: little.

use serde_json::Value;

use super::{Errors, annotations, tolerations, validate_pod};
use crate::fielderror::FieldError;
use crate::{meta, walk};

/// What is wrong with a changed pod, metadata apart (`ValidatePodUpdate`).
pub fn validate_change(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::validate_base(new, meta::NameRule::Subdomain);
    errors.extend(validate_pod(new));
    annotations::changes(&mut errors, new, old, "metadata.annotations");
    let none = Value::Null;
    let (now, before) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
    for list in ["containers", "initContainers"] {
        let (path, all) = (format!("spec.{list}"), walk::list(now, list));
        if all.len() != walk::list(before, list).len() {
            errors.push(FieldError::forbidden(path, "pod updates may not add or remove containers"));
            return errors;
        }
        for (i, container) in all.iter().enumerate() {
            if walk::text(container, "image").is_empty() {
                errors.push(FieldError::required(format!("{path}[{i}].image"), ""));
            }
            super::containers::padded_image(&mut errors, container, &format!("{path}[{i}]"));
        }
    }
    const DEADLINE: &str = "activeDeadlineSeconds";
    let path = format!("spec.{DEADLINE}");
    match (walk::int(now, DEADLINE), walk::int(before, DEADLINE)) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.push(FieldError::invalid(path, n, "must be between 0 and 2147483647, inclusive"));
            return errors;
        }
        (Some(n), Some(had)) if had < n => {
            errors.push(FieldError::invalid(path, n, "must be less than or equal to previous value"));
            return errors;
        }
        (None, Some(_)) => {
            let text = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, Value::Null, text));
        }
        _ => {}
    }
    added_tolerations(&mut errors, now, before);
    lifted_gates(&mut errors, now, before);
    if now == before {
        return errors;
    }
    let mut kept = now.clone();
    for list in ["containers", "initContainers"] {
        for (container, had) in walk::list_mut(&mut kept, list).iter_mut().zip(walk::list(before, list)) {
            restore(container, had, "image");
        }
    }
    for field in [DEADLINE, "schedulingGates", "tolerations"] {
        restore(&mut kept, before, field);
    }
    const GRACE: &str = "terminationGracePeriodSeconds";
    if walk::int(before, GRACE).is_some_and(|n| n < 0) && walk::int(&kept, GRACE) == Some(1) {
        restore(&mut kept, before, GRACE);
    }
    if !walk::list(before, "schedulingGates").is_empty() {
        gated(&mut errors, &mut kept, before);
    }
    let mut changed = Vec::new();
    differences(&kept, before, "spec", &mut changed);
    if !changed.is_empty() {
        errors.push(FieldError::forbidden(
            "spec",
            format!(
                "pod updates may not change fields other than `spec.containers[*].image`,\
                 `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                 `spec.tolerations` (only additions to existing tolerations),\
                 `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n\
                 changed: {}",
                changed.join(", ")
            ),
        ));
    }
    errors
}

/// Gives a field its former value.
fn restore(value: &mut Value, before: &Value, field: &str) {
    let Some(map) = value.as_object_mut() else { return };
    match before.get(field) {
        Some(had) => {
            map.insert(field.to_owned(), had.clone());
        }
        None => {
            map.shift_remove(field);
        }
    }
}

/// The fields in which two values differ.
fn differences(now: &Value, before: &Value, at: &str, out: &mut Vec<String>) {
    match (now, before) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let none = Value::Null;
                let (a, b) = (a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
                differences(a, b, &format!("{at}.{key}"), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{at}[{i}]"), out);
            }
        }
        (a, b) if a == b || (is_none(a) && is_none(b)) => {}
        _ => out.push(at.to_owned()),
    }
}

/// An empty list is as good as none.
fn is_none(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn added_tolerations(errors: &mut Errors, now: &Value, before: &Value) {
    let timeless = |toleration: &Value| {
        let mut toleration = toleration.clone();
        walk::remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let all = walk::list(now, "tolerations");
    let kept = |had: &Value| all.iter().any(|toleration| timeless(toleration) == timeless(had));
    if walk::list(before, "tolerations").iter().all(kept) {
        errors.extend(tolerations(all, "spec.tolerations"));
    } else {
        let text = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", text));
    }
}

fn lifted_gates(errors: &mut Errors, now: &Value, before: &Value) {
    let had: Vec<&str> =
        walk::list(before, "schedulingGates").iter().map(|g| walk::text(g, "name")).collect();
    for (i, gate) in walk::list(now, "schedulingGates").iter().enumerate() {
        let name = walk::text(gate, "name");
        if !had.contains(&name) {
            let text = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}].name"), text));
        }
    }
}

/// While a pod is held back, where it may run can be narrowed; what was checked here is as it was then in `kept`.
fn gated(errors: &mut Errors, kept: &mut Value, before: &Value) {
    let had = walk::map(before, "nodeSelector");
    let has = walk::map(kept, "nodeSelector");
    if has != had {
        if had.iter().any(|(key, value)| has.get(key) != Some(value)) {
            let text = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            let shown = walk::at(kept, "nodeSelector").cloned().unwrap_or_default();
            errors.push(FieldError::invalid("spec.nodeSelector", shown, text));
        }
        restore(kept, before, "nodeSelector");
    }
    const NODES: &str = "affinity.nodeAffinity";
    let (has, had) = (walk::at(kept, NODES).cloned(), walk::at(before, NODES).cloned());
    if has == had {
        return;
    }
    narrowed(errors, has.as_ref(), had.as_ref());
    match had {
        Some(had) => walk::set(kept, NODES, had),
        None => {
            walk::remove(kept, NODES);
            let empty = walk::map(kept, "affinity").is_empty();
            if empty && walk::at(before, "affinity").is_none() {
                walk::remove(kept, "affinity");
            }
        }
    }
}

fn narrowed(errors: &mut Errors, has: Option<&Value>, had: Option<&Value>) {
    const TERMS: &str = "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let terms = |value: Option<&Value>| value.map_or(Vec::new(), |value| walk::list(value, TERMS).to_vec());
    let (has, had) = (terms(has), terms(had));
    let path = format!("spec.affinity.nodeAffinity.{TERMS}");
    if had.is_empty() {
        return;
    }
    if has.len() != had.len() {
        let text = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        let shown = if has.is_empty() { Value::Null } else { has.iter().map(shown).collect() };
        errors.push(FieldError::invalid(path, shown, text));
        return;
    }
    for (i, (has, had)) in has.iter().zip(&had).enumerate() {
        let lists = ["matchExpressions", "matchFields"];
        let was_empty = lists.iter().all(|list| walk::list(had, list).is_empty());
        let is_empty = lists.iter().all(|list| walk::list(has, list).is_empty());
        let grown = lists.iter().all(|list| walk::list(has, list).starts_with(walk::list(had, list)));
        if (was_empty && !is_empty) || !grown {
            let text = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(format!("{path}[{i}]"), shown(has), text));
        }
    }
}

/// A term as the texts of Kubernetes show it: the members of Go's struct.
fn shown(term: &Value) -> Value {
    let rule = |rule: &Value| {
        let of = |field: &str| rule.get(field).cloned().unwrap_or_default();
        serde_json::json!({"Key": of("key"), "Operator": of("operator"), "Values": of("values")})
    };
    let list = |field: &str| match walk::list(term, field) {
        [] => Value::Null,
        rules => rules.iter().map(rule).collect(),
    };
    serde_json::json!({"MatchExpressions": list("matchExpressions"), "MatchFields": list("matchFields")})
}
