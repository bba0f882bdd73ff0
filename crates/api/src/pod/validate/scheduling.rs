//! The rules of where a pod may run: affinity, tolerations, spread, gates.

use serde_json::Value;

use super::{Errors, has, subdomain};
use crate::fielderror::FieldError;
use crate::{meta, selector, walk};

/// What is wrong with tolerations (`ValidateTolerations`).
pub fn tolerations(all: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let path = |field: &str| format!("{at}[{i}].{field}");
        let of = |field: &str| walk::text(toleration, field);
        let (key, operator, effect, value) = (of("key"), of("operator"), of("effect"), of("value"));
        if !key.is_empty() {
            errors.extend(meta::findings(&path("key"), key, meta::qualified_faults(key)));
        } else if operator != "Exists" {
            errors.push(FieldError::invalid(
                path("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
            let text = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(path("effect"), effect, text));
        }
        match operator {
            "" | "Equal" => {
                let faults = meta::label_value_faults(value);
                if !faults.is_empty() {
                    errors.push(FieldError::invalid(path("operator"), value, faults.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let text = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(path("operator"), value, text));
            }
            "Exists" => {}
            "Lt" | "Gt" => errors.push(FieldError::not_supported(
                path("operator"),
                operator,
                &["Equal", "Exists", "Lt", "Gt"],
            )),
            _ => errors.push(FieldError::not_supported(path("operator"), operator, &["Equal", "Exists"])),
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !effect.is_empty() && !effects.contains(&effect) {
            errors.push(FieldError::not_supported(path("effect"), effect, &effects));
        }
    }
    errors
}

/// What is wrong with a `NodeSelector` (`ValidateNodeSelector`).
pub fn node_selector(selector: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let terms = walk::list(selector, "nodeSelectorTerms");
    let at = format!("{at}.nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(at, "must have at least one node selector term"));
        return errors;
    }
    for (i, each) in terms.iter().enumerate() {
        term(&mut errors, each, true, &format!("{at}[{i}]"));
    }
    errors
}

/// One term; of what is only preferred, values are not looked at.
fn term(errors: &mut Errors, term: &Value, values: bool, at: &str) {
    const OPERATOR: &str = "not a valid selector operator";
    for (i, rule) in walk::list(term, "matchExpressions").iter().enumerate() {
        let path = |field: &str| format!("{at}.matchExpressions[{i}].{field}");
        let all = walk::list(rule, "values");
        let operator = walk::text(rule, "operator");
        match operator {
            "In" | "NotIn" if all.is_empty() => {
                let text = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(path("values"), text));
            }
            "Exists" | "DoesNotExist" if !all.is_empty() => {
                let text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(path("values"), text));
            }
            "Gt" | "Lt" if all.len() != 1 => {
                let text = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(path("values"), text));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(FieldError::invalid(path("operator"), operator, OPERATOR)),
        }
        let key = walk::text(rule, "key");
        errors.extend(meta::findings(&path("key"), key, meta::qualified_faults(key)));
        for (j, value) in all.iter().enumerate().filter(|_| values) {
            let value = value.as_str().unwrap_or("");
            errors.extend(meta::findings(
                &path(&format!("values[{j}]")),
                value,
                meta::label_value_faults(value),
            ));
        }
    }
    for (i, rule) in walk::list(term, "matchFields").iter().enumerate() {
        let path = |field: &str| format!("{at}.matchFields[{i}].{field}");
        let all = walk::list(rule, "values");
        let (operator, key) = (walk::text(rule, "operator"), walk::text(rule, "key"));
        if !matches!(operator, "In" | "NotIn") {
            errors.push(FieldError::invalid(path("operator"), operator, OPERATOR));
        } else if all.len() != 1 {
            let text = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(path("values"), text));
        }
        if key != "metadata.name" {
            errors.push(FieldError::invalid(path("key"), key, "not a valid field selector key"));
            continue;
        }
        for (j, value) in all.iter().enumerate() {
            subdomain(errors, &path(&format!("values[{j}]")), value.as_str().unwrap_or(""));
        }
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn weight(errors: &mut Errors, term: &Value, at: &str) {
    let weight = walk::int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(format!("{at}.weight"), weight, "must be in the range 1-100"));
    }
}

/// What a pod wants of nodes and of other pods.
pub(super) fn affinity(errors: &mut Errors, spec: &Value, at: &str) {
    let at = format!("{at}.affinity");
    if let Some(nodes) = walk::at(spec, "affinity.nodeAffinity") {
        let at = format!("{at}.nodeAffinity");
        if let Some(selector) = walk::at(nodes, REQUIRED) {
            errors.extend(node_selector(selector, &format!("{at}.{REQUIRED}")));
        }
        for (i, preferred) in walk::list(nodes, PREFERRED).iter().enumerate() {
            let path = format!("{at}.{PREFERRED}[{i}]");
            weight(errors, preferred, &path);
            let preference = preferred.get("preference").unwrap_or(&Value::Null);
            term(errors, preference, false, &format!("{path}.preference"));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = walk::at(spec, &format!("affinity.{kind}")) else { continue };
        let at = format!("{at}.{kind}");
        for (i, each) in walk::list(pods, REQUIRED).iter().enumerate() {
            pod_term(errors, each, &format!("{at}.{REQUIRED}[{i}]"));
        }
        for (i, preferred) in walk::list(pods, PREFERRED).iter().enumerate() {
            let path = format!("{at}.{PREFERRED}[{i}]");
            weight(errors, preferred, &path);
            let each = preferred.get("podAffinityTerm").unwrap_or(&Value::Null);
            pod_term(errors, each, &format!("{path}.podAffinityTerm"));
        }
    }
}

fn pod_term(errors: &mut Errors, term: &Value, at: &str) {
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = walk::at(term, field) {
            errors.extend(selector::validate_object(selector, &format!("{at}.{field}")));
        }
    }
    for name in walk::list(term, "namespaces") {
        let name = name.as_str().unwrap_or("");
        errors.extend(meta::findings(&format!("{at}.namespace"), name, meta::label_faults(name)));
    }
    label_keys(errors, term, at);
    let key = walk::text(term, "topologyKey");
    let path = format!("{at}.topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(&path, "can not be empty"));
    }
    errors.extend(meta::findings(&path, key, meta::qualified_faults(key)));
}

/// Keys of labels by which pods of one owner are told apart (KEP-3633, KEP-3243).
fn label_keys(errors: &mut Errors, term: &Value, at: &str) {
    let selector = walk::at(term, "labelSelector");
    let keys = |field| -> Vec<&str> { walk::list(term, field).iter().filter_map(Value::as_str).collect() };
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = keys(field);
        let path = format!("{at}.{field}");
        if !keys.is_empty() && selector.is_none() {
            let text = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(path, text));
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            errors.extend(meta::findings(&format!("{path}[{i}]"), key, meta::qualified_faults(key)));
        }
    }
    let (matching, others) = (keys("matchLabelKeys"), keys("mismatchLabelKeys"));
    if let Some(selector) = selector {
        let mut known: Vec<&str> = walk::map(selector, "matchLabels").keys().map(String::as_str).collect();
        for rule in walk::list(selector, "matchExpressions") {
            let key = walk::text(rule, "key");
            // Each key has become an expression already: a second one is the user's.
            if let Some(i) = matching.iter().rposition(|other| *other == key).filter(|_| known.contains(&key))
            {
                let text = "exists in both matchLabelKeys and labelSelector";
                errors.push(FieldError::invalid(format!("{at}[{i}]"), key, text));
            }
            known.push(key);
        }
    }
    for (i, key) in matching.iter().enumerate().filter(|(_, key)| others.contains(key)) {
        let text = "exists in both matchLabelKeys and mismatchLabelKeys";
        errors.push(FieldError::invalid(format!("{at}.matchLabelKeys[{i}]"), *key, text));
    }
}

/// How pods are spread.
pub(super) fn spread(errors: &mut Errors, spec: &Value, at: &str) {
    let all = walk::list(spec, "topologySpreadConstraints");
    for (i, rule) in all.iter().enumerate() {
        let path = format!("{at}.topologySpreadConstraints[{i}]");
        let of = |rule: &Value| {
            (walk::text(rule, "topologyKey").to_owned(), walk::text(rule, "whenUnsatisfiable").to_owned())
        };
        let (key, otherwise) = of(rule);
        let skew = walk::int(rule, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), skew, "must be greater than zero"));
        }
        if key.is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&otherwise.as_str()) {
            let path = format!("{path}.whenUnsatisfiable");
            errors.push(FieldError::not_supported(path, otherwise.as_str(), &actions));
        }
        if all[i + 1..].iter().any(|other| of(other) == of(rule)) {
            let shown = format!("{{{key}, {otherwise}}}");
            errors.push(FieldError::duplicate(format!("{path}.{{topologyKey, whenUnsatisfiable}}"), shown));
        }
        if let Some(domains) = walk::int(rule, "minDomains") {
            let path = format!("{path}.minDomains");
            if domains <= 0 {
                errors.push(FieldError::invalid(&path, domains, "must be greater than zero"));
            }
            if otherwise != "DoNotSchedule" {
                let text =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {otherwise}");
                errors.push(FieldError::invalid(path, domains, text));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            super::maybe(errors, rule, &path, field, &["Honor", "Ignore"]);
        }
        label_keys(errors, rule, &path);
        if let Some(selector) = walk::at(rule, "labelSelector") {
            errors.extend(selector::validate_object(selector, &format!("{path}.labelSelector")));
        }
    }
}

/// What holds a pod back from being scheduled.
pub(super) fn gates(errors: &mut Errors, spec: &Value, at: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, gate) in walk::list(spec, "schedulingGates").iter().enumerate() {
        let (path, name) = (format!("{at}.schedulingGates[{i}]"), walk::text(gate, "name"));
        errors.extend(meta::findings(&path, name, meta::qualified_faults(name)));
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(path, name));
        }
        seen.push(name);
    }
}
