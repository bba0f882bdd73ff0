//! HorizontalPodAutoscalers, in the shape of `autoscaling/v2`, which is stored, and of `autoscaling/v1`. They are kept as
//! data: nothing here measures load.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Conversion, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::quantity::Quantity;
use crate::{duration, meta, pod, walk};

const COLUMNS: &[Column] = &[
    Column::object_name(),
    Column::new("Reference", "string", "What is scaled."),
    Column::new("Targets", "string", "What is measured, and what it should be."),
    Column::new("MinPods", "string", "The least number of pods."),
    Column::new("MaxPods", "string", "The greatest number of pods."),
    Column::new("Replicas", "string", "How many pods there are."),
    Column::new("Age", "string", AGE),
];

const STRATEGY: Strategy = Strategy {
    default: default_v2,
    prepare_create: |o| walk::set(o, "status", json!({"desiredReplicas": 0, "currentMetrics": null})),
    prepare_update: keep_status,
    prepare_status_update: keep_all_but_status,
    validate,
    validate_update: |new, _| validate(new),
    validate_status_update: |new, _| validate_status(new),
    ..Strategy::PLAIN
};

/// The entry of `autoscaling/v2`.
pub static V2: Kind = Kind::Listed(&Entry {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &["status"],
    strategy: STRATEGY,
    columns: COLUMNS,
    cells,
    ..Entry::of(
        "autoscaling",
        "v2",
        ("HorizontalPodAutoscaler", "HorizontalPodAutoscalerList"),
        ("horizontalpodautoscalers", "horizontalpodautoscaler"),
    )
});

/// The entry of `autoscaling/v1`.
pub static V1: Kind = Kind::Listed(&Entry {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &["status"],
    strategy: Strategy {
        default: default_v1,
        prepare_create: |o| walk::set(o, "status", json!({"currentReplicas": 0, "desiredReplicas": 0})),
        validate: |o| validate(&to_v2(o)),
        validate_update: |new, _| validate(&to_v2(new)),
        ..STRATEGY
    },
    columns: COLUMNS,
    cells: |o, now| cells(&to_v2(o), now),
    conversion: Some(Conversion { stored: &V2, show: to_v1, keep: to_v2 }),
    ..Entry::of(
        "autoscaling",
        "v1",
        ("HorizontalPodAutoscaler", "HorizontalPodAutoscalerList"),
        ("horizontalpodautoscalers", "horizontalpodautoscaler"),
    )
});

/// Eighty percent of what the pods ask for: the default target (`DefaultCPUUtilization`).
const UTILIZATION: i64 = 80;

fn cpu(utilization: i64) -> Value {
    json!({"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": utilization}}})
}

fn default_v2(object: &mut Value) {
    let _ = walk::map_mut(object, "spec");
    walk::default(object, "spec.minReplicas", 1);
    if walk::list(object, "spec.metrics").is_empty() {
        walk::set(object, "spec.metrics", json!([cpu(UTILIZATION)]));
    }
    if walk::at(object, "spec.behavior").is_some() {
        let policy = |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
        walk::default(object, "spec.behavior.scaleUp.stabilizationWindowSeconds", 0);
        let rows = [
            ("scaleUp", json!([policy("Pods", 4), policy("Percent", 100)])),
            ("scaleDown", json!([policy("Percent", 100)])),
        ];
        for (way, policies) in rows {
            walk::default(object, &format!("spec.behavior.{way}.selectPolicy"), "Max");
            walk::default(object, &format!("spec.behavior.{way}.policies"), policies);
        }
    }
}

fn default_v1(object: &mut Value) {
    walk::default(object, "spec.minReplicas", 1);
    if meta::annotation(object, METRICS).is_none() {
        walk::default(object, "spec.targetCPUUtilizationPercentage", UTILIZATION);
    }
}

/// What `autoscaling/v1` has no field for travels in annotations.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn utilization(metric: &Value) -> Option<i64> {
    let cpu = walk::text(metric, "type") == "Resource" && walk::text(metric, "resource.name") == "cpu";
    cpu.then(|| walk::int(metric, "resource.target.averageUtilization")).flatten()
}

fn annotate(object: &mut Value, key: &str, value: Value) {
    if let Some(annotations) = walk::map_mut(object, "metadata.annotations") {
        annotations.insert(key.into(), value.to_string().into());
    }
}

fn to_v1(object: &Value) -> Value {
    let mut out = object.clone();
    walk::set(&mut out, "apiVersion", "autoscaling/v1");
    let metrics = walk::list(object, "spec.metrics");
    let first = metrics.iter().find_map(utilization);
    let others: Vec<Value> = metrics.iter().filter(|m| utilization(m).is_none()).cloned().collect();
    walk::remove(&mut out, "spec.metrics");
    if let Some(percent) = first {
        walk::set(&mut out, "spec.targetCPUUtilizationPercentage", percent);
    }
    if !others.is_empty() {
        annotate(&mut out, METRICS, others.into());
    }
    if let Some(behavior) = walk::remove(&mut out, "spec.behavior") {
        annotate(&mut out, BEHAVIOR, behavior);
    }
    for (field, key) in [("currentMetrics", CURRENT), ("conditions", CONDITIONS)] {
        if let Some(value) = walk::remove(&mut out, &format!("status.{field}")).filter(|v| !v.is_null()) {
            annotate(&mut out, key, value);
        }
    }
    if walk::at(&out, "status").is_some() {
        walk::default(&mut out, "status.currentReplicas", 0);
    }
    out
}

fn to_v2(object: &Value) -> Value {
    let mut out = object.clone();
    walk::set(&mut out, "apiVersion", "autoscaling/v2");
    let mut taken = |key: &str| -> Option<Value> {
        let text = walk::map_mut(&mut out, "metadata")?
            .get_mut("annotations")?
            .as_object_mut()?
            .shift_remove(key)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let (more, behavior) = (taken(METRICS), taken(BEHAVIOR));
    let (current, conditions) = (taken(CURRENT), taken(CONDITIONS));
    if walk::at(&out, "metadata.annotations").is_some_and(|a| a.as_object().is_some_and(|m| m.is_empty())) {
        walk::remove(&mut out, "metadata.annotations");
    }
    let mut metrics = more.and_then(|m| m.as_array().cloned()).unwrap_or_default();
    match walk::remove(&mut out, "spec.targetCPUUtilizationPercentage").and_then(|n| n.as_i64()) {
        Some(percent) => metrics.push(cpu(percent)),
        None if metrics.is_empty() => metrics.push(cpu(UTILIZATION)),
        None => {}
    }
    if walk::at(&out, "spec").is_some() {
        walk::set(&mut out, "spec.metrics", metrics);
        if let Some(behavior) = behavior {
            walk::set(&mut out, "spec.behavior", behavior);
        }
    }
    if walk::at(&out, "status").is_some() {
        walk::set(&mut out, "status.currentMetrics", current.unwrap_or(Value::Null));
        if let Some(conditions) = conditions {
            walk::set(&mut out, "status.conditions", conditions);
        }
    }
    out
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (min, max) =
        (walk::int(object, "spec.minReplicas"), walk::int(object, "spec.maxReplicas").unwrap_or(0));
    if let Some(n) = min.filter(|n| *n < 1) {
        errors.push(FieldError::invalid("spec.minReplicas", n, "must be greater than or equal to 1"));
    }
    if max == 0 {
        errors.push(FieldError::required("spec.maxReplicas", "must be set and greater than 0"));
    } else if max < 0 {
        errors.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than or equal to 1"));
    }
    if min.is_some_and(|min| max < min) {
        let text = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid("spec.maxReplicas", max, text));
    }
    for field in ["kind", "name"] {
        let path = format!("spec.scaleTargetRef.{field}");
        match walk::text(object, &path) {
            "" => errors.push(FieldError::required(path, "")),
            text => errors.extend(meta::findings(&path, text, meta::path_segment_faults(text))),
        }
    }
    const VERSION: &str = "spec.scaleTargetRef.apiVersion";
    let version = walk::text(object, VERSION);
    if !version.contains('/') {
        errors.push(FieldError::invalid(VERSION, version, "apiVersion must specify API group"));
    }
    let metrics = walk::list(object, "spec.metrics");
    for (i, each) in metrics.iter().enumerate() {
        metric(&mut errors, each, &format!("spec.metrics[{i}]"));
    }
    let outside = |each: &Value| matches!(walk::text(each, "type"), "Object" | "External");
    if min == Some(0) && !metrics.iter().any(outside) {
        let text = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(FieldError::forbidden("spec.metrics", text));
    }
    for direction in ["scaleUp", "scaleDown"] {
        let path = format!("spec.behavior.{direction}");
        if let Some(rules) = walk::at(object, &path) {
            scaling(&mut errors, rules, &path);
        }
    }
    errors
}

const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

/// One metric: what is measured, and what it should be.
fn metric(errors: &mut Vec<FieldError>, metric: &Value, at: &str) {
    let kinds = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    let kind = walk::text(metric, "type");
    let path = format!("{at}.type");
    if kind.is_empty() {
        errors.push(FieldError::required(&path, "must specify a metric source type"));
    }
    let known = kinds.contains(&kind);
    if !known {
        errors.push(FieldError::not_supported(&path, kind, &kinds));
    }
    let present: Vec<&str> =
        SOURCES.iter().map(|(_, field)| *field).filter(|field| walk::at(metric, field).is_some()).collect();
    if let Some(field) = present.first() {
        source(errors, walk::at(metric, field).unwrap_or(&Value::Null), field, &format!("{at}.{field}"));
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, field)| *field);
    match expected {
        Some(field) if !present.contains(&field) => {
            let text = "must populate information for the given metric source";
            errors.push(FieldError::required(format!("{at}.{field}"), text));
        }
        Some(_) => {}
        None => errors.push(FieldError::not_supported(&path, kind, &kinds)),
    }
    for field in present.iter().filter(|field| present.len() != 1 && Some(**field) != expected) {
        errors.push(FieldError::forbidden(
            format!("{at}.{field}"),
            "must populate the given metric source only",
        ));
    }
}

fn source(errors: &mut Vec<FieldError>, source: &Value, kind: &str, at: &str) {
    let has = |field: &str| walk::at(source, &format!("target.{field}")).is_some();
    let name = walk::text(source, "name");
    match kind {
        "object" => {
            let object = source.get("describedObject").unwrap_or(&Value::Null);
            for field in ["kind", "name"] {
                let (path, text) = (format!("{at}.describedObject.{field}"), walk::text(object, field));
                match text {
                    "" => errors.push(FieldError::required(path, "")),
                    text => errors.extend(meta::findings(&path, text, meta::path_segment_faults(text))),
                }
            }
        }
        "resource" | "containerResource" if name.is_empty() => {
            errors.push(FieldError::required(format!("{at}.name"), "must specify a resource name"));
        }
        "containerResource" => {
            errors.extend(meta::findings(&format!("{at}.name"), name, pod::container_resource_faults(name)));
        }
        _ => {}
    }
    if kind == "containerResource" {
        let (path, container) = (format!("{at}.container"), walk::text(source, "container"));
        match container {
            "" => errors.push(FieldError::required(path, "must specify a container")),
            container => errors.extend(meta::findings(&path, container, meta::label_faults(container))),
        }
    }
    if matches!(kind, "object" | "external" | "pods") {
        let (path, name) = (format!("{at}.metric.name"), walk::text(source, "metric.name"));
        match name {
            "" => errors.push(FieldError::required(path, "must specify a metric name")),
            name => errors.extend(meta::findings(&path, name, meta::path_segment_faults(name))),
        }
    }
    target_rules(errors, source.get("target").unwrap_or(&Value::Null), &format!("{at}.target"));
    let (value, average, share) = (has("value"), has("averageValue"), has("averageUtilization"));
    let mut need = |wanting: bool, field: &str, text: &str| {
        if wanting {
            errors.push(FieldError::required(format!("{at}.target.{field}"), text));
        }
    };
    match kind {
        "object" => {
            need(!value && !average, "averageValue", "must set either a target value or averageValue")
        }
        "external" => {
            let text = "must set either a target value for metric or a per-pod target";
            need(!value && !average, "averageValue", text);
            if value && average {
                let text = "may not set both a target value for metric and a per-pod target";
                errors.push(FieldError::forbidden(format!("{at}.target.value"), text));
            }
        }
        "pods" => need(!average, "averageValue", "must specify a positive target averageValue"),
        _ => {
            let text = "must set either a target raw value or a target utilization";
            need(!share && !average, "averageUtilization", text);
            if share && average {
                let text = "may not set both a target raw value and a target utilization";
                errors.push(FieldError::forbidden(format!("{at}.target.averageValue"), text));
            }
        }
    }
}

fn target_rules(errors: &mut Vec<FieldError>, target: &Value, at: &str) {
    let kind = walk::text(target, "type");
    if kind.is_empty() {
        errors.push(FieldError::required(format!("{at}.type"), "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let text = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(format!("{at}.type"), kind, text));
    }
    for field in ["value", "averageValue"] {
        let amount = walk::at(target, field).and_then(Value::as_str).and_then(Quantity::parse);
        if let Some(amount) = amount.filter(|amount| *amount <= Quantity::ZERO) {
            errors.push(FieldError::invalid(format!("{at}.{field}"), amount.to_string(), "must be positive"));
        }
    }
    if let Some(n) = walk::int(target, "averageUtilization").filter(|n| *n < 1) {
        errors.push(FieldError::invalid(format!("{at}.averageUtilization"), n, "must be greater than 0"));
    }
}

fn scaling(errors: &mut Vec<FieldError>, rules: &Value, at: &str) {
    const WINDOW: &str = "stabilizationWindowSeconds";
    if let Some(n) = walk::int(rules, WINDOW) {
        if n < 0 {
            let text = "must be greater than or equal to zero";
            errors.push(FieldError::invalid(format!("{at}.{WINDOW}"), n, text));
        } else if n > 3600 {
            errors.push(FieldError::invalid(
                format!("{at}.{WINDOW}"),
                n,
                "must be less than or equal to 3600",
            ));
        }
    }
    if let Some(policy) = walk::at(rules, "selectPolicy").and_then(Value::as_str)
        && !["Disabled", "Max", "Min"].contains(&policy)
    {
        let path = format!("{at}.selectPolicy");
        errors.push(FieldError::not_supported(path, policy, &["Disabled", "Max", "Min"]));
    }
    let policies = walk::list(rules, "policies");
    if policies.is_empty() {
        errors.push(FieldError::required(format!("{at}.policies"), "must specify at least one Policy"));
    }
    for (i, policy) in policies.iter().enumerate() {
        let path = |field: &str| format!("{at}.policies[{i}].{field}");
        let kind = walk::text(policy, "type");
        if !["Percent", "Pods"].contains(&kind) {
            errors.push(FieldError::not_supported(path("type"), kind, &["Percent", "Pods"]));
        }
        for field in ["value", "periodSeconds"] {
            let n = walk::int(policy, field).unwrap_or(0);
            if n <= 0 {
                errors.push(FieldError::invalid(path(field), n, "must be greater than zero"));
            }
            if field == "periodSeconds" && n > 1800 {
                errors.push(FieldError::invalid(path(field), n, "must be less than or equal to 1800"));
            }
        }
    }
    let tolerance = walk::at(rules, "tolerance").and_then(Value::as_str).and_then(Quantity::parse);
    if let Some(amount) = tolerance.filter(Quantity::is_negative) {
        let text = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(format!("{at}.tolerance"), amount.to_string(), text));
    }
}

fn validate_status(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["currentReplicas", "desiredReplicas"] {
        crate::workload::not_negative(&mut errors, new, &format!("status.{field}"));
    }
    errors
}

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let of = |path: &str| walk::text(object, path);
    let metrics = walk::list(object, "spec.metrics");
    let current = walk::list(object, "status.currentMetrics");
    let mut shown: Vec<String> =
        metrics.iter().enumerate().map(|(i, metric)| target(metric, current.get(i))).collect();
    let more = shown.len().saturating_sub(2);
    shown.truncate(2);
    let mut targets = if shown.is_empty() { "<none>".into() } else { shown.join(", ") };
    if more > 0 {
        targets = format!("{targets} + {more} more...");
    }
    vec![
        meta::name(object).into(),
        format!("{}/{}", of("spec.scaleTargetRef.kind"), of("spec.scaleTargetRef.name")).into(),
        targets.into(),
        walk::int(object, "spec.minReplicas").map_or_else(|| "<unset>".into(), |n| n.to_string()).into(),
        walk::int(object, "spec.maxReplicas").unwrap_or(0).into(),
        walk::int(object, "status.currentReplicas").unwrap_or(0).into(),
        duration::age(object, now).into(),
    ]
}

/// What is measured of one metric, and what it should be: `cpu: 12%/80%`.
fn target(metric: &Value, current: Option<&Value>) -> String {
    let (source, label) = match walk::text(metric, "type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".into(),
    };
    let now = |field: &str| {
        current.and_then(|c| walk::at(c, &format!("{source}.current.{field}"))).map_or_else(
            || "<unknown>".to_owned(),
            |v| v.as_str().map_or_else(|| v.to_string(), String::from),
        )
    };
    let goal = |field: &str| walk::at(metric, &format!("{source}.target.{field}"));
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    let head =
        if label { format!("{}: ", walk::text(metric, &format!("{source}.name"))) } else { String::new() };
    if let Some(average) = goal("averageValue") {
        let tail = if matches!(source, "object" | "external") { " (avg)" } else { "" };
        return format!("{head}{}/{}{tail}", now("averageValue"), text(average));
    }
    if label {
        let goal = goal("averageUtilization").map_or_else(|| "<auto>".into(), |n| format!("{}%", text(n)));
        let now = match now("averageUtilization") {
            unknown if unknown.starts_with('<') => unknown,
            percent => format!("{percent}%"),
        };
        return format!("{head}{now}/{goal}");
    }
    format!("{head}{}/{}", now("value"), goal("value").map_or_else(|| "0".into(), text))
}
