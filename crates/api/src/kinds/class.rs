//! Classes that pods name: PriorityClass and RuntimeClass.

use serde_json::Value;

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy};
use crate::{duration, meta, pod, walk};

/// The classes that every cluster has, and their values (pkg/apis/scheduling/v1/helpers.go).
pub const SYSTEM_PRIORITIES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// The entry of PriorityClass.
pub static PRIORITY_CLASS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    short_names: &["pc"],
    generation: true,
    strategy: Strategy {
        default: |o| {
            walk::default(o, "value", 0);
            walk::default(o, "preemptionPolicy", "PreemptLowerPriority");
        },
        validate: validate_priority,
        validate_update: |new, old| {
            let mut errors = Vec::new();
            if walk::int(new, "value") != walk::int(old, "value") {
                errors.push(FieldError::forbidden("value", "may not be changed in an update."));
            }
            let policy = walk::text(new, "preemptionPolicy");
            if policy != walk::text(old, "preemptionPolicy") {
                errors.push(FieldError::invalid("preemptionPolicy", policy, "field is immutable"));
            }
            errors
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Value", "integer", "The priority: the greater goes first."),
        Column::new("Global-Default", "boolean", "Whether pods that name no class are of this one."),
        Column::new("Age", "string", AGE),
        Column::new("PreemptionPolicy", "string", "Whether such pods may drive others out."),
    ],
    cells: |o, now| {
        vec![
            meta::name(o).into(),
            walk::int(o, "value").unwrap_or(0).into(),
            walk::flag(o, "globalDefault").unwrap_or(false).into(),
            duration::age(o, now).into(),
            walk::text(o, "preemptionPolicy").into(),
        ]
    },
    ..Entry::of(
        "scheduling.k8s.io",
        "v1",
        ("PriorityClass", "PriorityClassList"),
        ("priorityclasses", "priorityclass"),
    )
});

fn validate_priority(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (name, value) = (meta::name(object), walk::int(object, "value").unwrap_or(0));
    if name.starts_with("system-") {
        let why = match SYSTEM_PRIORITIES.iter().find(|(known, ..)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, known, _)) if *known != value => {
                Some(format!("value of {name} PriorityClass must be {known}"))
            }
            Some(_) if walk::flag(object, "globalDefault") == Some(true) => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        errors.extend(why.map(|why| {
            let text = "priority class names with 'system-' prefix are reserved for system use only. error: ";
            FieldError::forbidden("metadata.name", format!("{text}{why}"))
        }));
    } else if value > 1_000_000_000 {
        let text = "maximum allowed value of a user defined priority is 1000000000";
        errors.push(FieldError::forbidden("value", text));
    }
    let policy = walk::text(object, "preemptionPolicy");
    if !matches!(policy, "PreemptLowerPriority" | "Never") {
        errors.push(FieldError::not_supported(
            "preemptionPolicy",
            policy,
            &["PreemptLowerPriority", "Never"],
        ));
    }
    errors
}

/// The entry of RuntimeClass.
pub static RUNTIME_CLASS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    strategy: Strategy {
        validate: validate_runtime,
        validate_update: |new, old| {
            let mut errors = validate_runtime(new);
            let handler = walk::text(new, "handler");
            if handler != walk::text(old, "handler") {
                errors.push(FieldError::invalid("handler", handler, "field is immutable"));
            }
            errors
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Handler", "string", "What runs such pods."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| vec![meta::name(o).into(), walk::text(o, "handler").into(), duration::age(o, now).into()],
    ..Entry::of("node.k8s.io", "v1", ("RuntimeClass", "RuntimeClassList"), ("runtimeclasses", "runtimeclass"))
});

fn validate_runtime(object: &Value) -> Vec<FieldError> {
    let mut errors = match walk::text(object, "handler") {
        "" => vec![FieldError::required("handler", "")],
        handler => meta::findings("handler", handler, meta::label_faults(handler)),
    };
    if let Some(overhead) = walk::at(object, "overhead") {
        let fixed = overhead.get("podFixed").unwrap_or(&Value::Null);
        errors.extend(pod::overhead(fixed, "overhead"));
    }
    let selector = walk::map(object, "scheduling.nodeSelector");
    errors.extend(meta::validate_labels(selector, "scheduling.nodeSelector"));
    const TOLERATIONS: &str = "scheduling.tolerations";
    let tolerations = walk::list(object, TOLERATIONS);
    errors.extend(pod::tolerations(tolerations, TOLERATIONS));
    let key = |toleration: &Value| {
        ["key", "operator", "value", "effect"].map(|field| walk::text(toleration, field).to_owned())
    };
    for (i, toleration) in tolerations.iter().enumerate() {
        if tolerations[..i].iter().any(|other| key(other) == key(toleration)) {
            errors.push(FieldError::duplicate(format!("{TOLERATIONS}[{i}]"), toleration.clone()));
        }
    }
    errors
}
