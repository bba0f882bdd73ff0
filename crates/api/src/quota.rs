//! ResourceQuotas: which amounts they may bound, and what objects use of them.

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::quantity::Quantity;
use crate::{meta, walk};

mod usage;

pub use usage::{Usage, add, amounts, charge, counts, to_object, usage};

/// Names without a domain that a quota may bound (`standardQuotaResources`).
const FOR_QUOTA: [&str; 19] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];

/// What is counted in whole ones (`integerResources`).
pub(crate) const WHOLE: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// What a quota with a scope of pods may bound.
const POD_COMPUTE: [&str; 6] =
    ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

fn is_huge_page(name: &str) -> bool {
    ["hugepages-", "requests.hugepages-"].iter().any(|prefix| name.starts_with(prefix))
}

/// The amount in a field, which may be a number or a text.
pub fn amount(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text),
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => None,
    }
}

/// What keeps a text from being the name of a resource: of containers, or of anything.
pub(crate) fn resource_name_faults(name: &str, path: &str, of_containers: bool) -> Vec<FieldError> {
    if of_containers {
        return meta::findings(path, name, crate::pod::container_resource_faults(name));
    }
    let faults = meta::findings(path, name, meta::qualified_faults(name));
    if !faults.is_empty() || name.contains('/') {
        return faults;
    }
    if FOR_QUOTA.contains(&name) || name == "storage" || is_huge_page(name) {
        return Vec::new();
    }
    vec![FieldError::invalid(path, name, "must be a standard resource type or fully qualified")]
}

fn hard(errors: &mut Vec<FieldError>, object: &Value, field: &str) {
    // Kubernetes goes through a map in any order; sorted, the same object gets the same answer.
    let mut all: Vec<(&String, &Value)> = walk::map(object, field).iter().collect();
    all.sort_by_key(|(name, _)| *name);
    for (name, value) in all {
        let path = format!("{field}[{name}]");
        errors.extend(resource_name_faults(name, &path, false));
        if !name.contains('/') && !FOR_QUOTA.contains(&name.as_str()) && !is_huge_page(name) {
            let text = "must be a standard resource for quota";
            errors.push(FieldError::invalid(&path, name.as_str(), text));
        }
        let Some(amount) = amount(value) else { continue };
        if amount.is_negative() {
            let text = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(&path, amount.to_string(), text));
        }
        let extended = name.contains('/') && !name.starts_with("requests.");
        if (WHOLE.contains(&name.as_str()) || extended) && !amount.is_whole() {
            errors.push(FieldError::invalid(&path, amount.to_string(), "must be an integer"));
        }
    }
}

fn is_scope(scope: &str) -> bool {
    matches!(
        scope,
        "Terminating"
            | "NotTerminating"
            | "BestEffort"
            | "NotBestEffort"
            | "PriorityClass"
            | "VolumeAttributesClass"
            | "CrossNamespacePodAffinity"
    )
}

/// Whether a quota with this scope may bound this resource (`IsResourceQuotaScopeValidForResource`).
fn scope_fits(scope: &str, name: &str) -> bool {
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => name == "pods" || POD_COMPUTE.contains(&name),
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn conflicts(scopes: &[&str]) -> usize {
    let pairs = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
    pairs.iter().filter(|pair| pair.iter().all(|scope| scopes.contains(scope))).count()
}

/// What is wrong with a ResourceQuota.
pub fn validate(object: &Value) -> Vec<FieldError> {
    const SCOPES: &str = "spec.scopes";
    let mut errors = Vec::new();
    hard(&mut errors, object, "spec.hard");
    let names: Vec<&str> = walk::map(object, "spec.hard").keys().map(String::as_str).collect();
    let misfits = |scope: &str| {
        names.iter().filter(|name| FOR_QUOTA.contains(name) && !scope_fits(scope, name)).count()
    };
    let listed = walk::list(object, SCOPES);
    let scopes: Vec<&str> = listed.iter().filter_map(Value::as_str).collect();
    let mut say = |text: &str| errors.push(FieldError::invalid(SCOPES, Value::from(listed.to_vec()), text));
    for scope in &scopes {
        if !is_scope(scope) {
            say("unsupported scope");
        }
        (0..misfits(scope)).for_each(|_| say("unsupported scope applied to resource"));
    }
    (0..conflicts(&scopes)).for_each(|_| say("conflicting scopes"));
    if let Some(selector) = walk::at(object, "spec.scopeSelector") {
        scope_selector(&mut errors, selector, &misfits);
    }
    errors
}

fn scope_selector(errors: &mut Vec<FieldError>, selector: &Value, misfits: &dyn Fn(&str) -> usize) {
    const AT: &str = "spec.scopeSelector.matchExpressions";
    let mut scopes: Vec<&str> = Vec::new();
    for expression in walk::list(selector, "matchExpressions") {
        let (scope, operator) = (walk::text(expression, "scopeName"), walk::text(expression, "operator"));
        let values = walk::list(expression, "values");
        if !is_scope(scope) {
            errors.push(FieldError::invalid(format!("{AT}.scopeName"), scope, "unsupported scope"));
        }
        for _ in 0..misfits(scope) {
            let text = "unsupported scope applied to resource";
            errors.push(FieldError::invalid(AT, selector.clone(), text));
        }
        let alone = is_scope(scope) && !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if alone && operator != "Exists" {
            let text = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(format!("{AT}.operator"), operator, text));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                format!("{AT}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::invalid(
                format!("{AT}.values"),
                values.to_vec(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{AT}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        scopes.push(scope);
    }
    for _ in 0..conflicts(&scopes) {
        errors.push(FieldError::invalid("spec.scopes", Value::Null, "conflicting scopes"));
    }
}

/// What is wrong with a changed ResourceQuota: its scopes are fixed.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate(new);
    let scopes = |object: &Value| {
        let mut all: Vec<String> =
            walk::list(object, "spec.scopes").iter().filter_map(Value::as_str).map(String::from).collect();
        all.sort();
        all.dedup();
        all
    };
    if scopes(new) != scopes(old) {
        let now = walk::at(new, "spec.scopes").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.scopes", now, "field is immutable"));
    }
    errors
}

/// What is wrong with what the quota controller reports.
pub fn validate_status_update(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    hard(&mut errors, new, "status.hard");
    hard(&mut errors, new, "status.used");
    errors
}
