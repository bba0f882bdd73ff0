//! Events, in the shape of the core group, which is stored, and in that of `events.k8s.io`.

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::kind::{Column, Conversion, Entry, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{duration, walk};

/// The entry of Event.
pub static EVENT: Kind = Kind::Listed(&Entry {
    group: "",
    version: "v1",
    kind: "Event",
    list_kind: "EventList",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    generation: false,
    names: NameRule::PathSegment,
    conversion: None,
    strategy: Strategy {
        default: |o| spell_out(o, ["source", "firstTimestamp", "lastTimestamp"], true),
        validate,
        validate_update: |new, _| validate(new),
        ..Strategy::PLAIN
    },
    fields: &[
        ("involvedObject.kind", |o| walk::text(o, "involvedObject.kind").to_owned()),
        ("involvedObject.namespace", |o| walk::text(o, "involvedObject.namespace").to_owned()),
        ("involvedObject.name", |o| walk::text(o, "involvedObject.name").to_owned()),
        ("involvedObject.uid", |o| walk::text(o, "involvedObject.uid").to_owned()),
        ("involvedObject.apiVersion", |o| walk::text(o, "involvedObject.apiVersion").to_owned()),
        ("involvedObject.resourceVersion", |o| walk::text(o, "involvedObject.resourceVersion").to_owned()),
        ("involvedObject.fieldPath", |o| walk::text(o, "involvedObject.fieldPath").to_owned()),
        ("reason", |o| walk::text(o, "reason").to_owned()),
        ("reportingComponent", |o| walk::text(o, "reportingComponent").to_owned()),
        ("source", |o| match walk::text(o, "source.component") {
            "" => walk::text(o, "reportingComponent").to_owned(),
            component => component.to_owned(),
        }),
        ("type", |o| walk::text(o, "type").to_owned()),
    ],
    columns: COLUMNS,
    cells,
});

const COLUMNS: &[Column] = &[
    Column::new("Last Seen", "string", "When it was last seen."),
    Column::new("Type", "string", "Normal or Warning."),
    Column::new("Reason", "string", "What happened, in one word."),
    Column::new("Object", "string", "The object this event is about."),
    Column::wide("Subobject", "string", "The part of the object."),
    Column::wide("Source", "string", "Who reports it."),
    Column::new("Message", "string", "What happened, in a sentence."),
    Column::wide("First Seen", "string", "When it was first seen."),
    Column::wide("Count", "string", "How often it was seen."),
    Column::name("Name", "Name of the event", 1),
];

/// The entry of `events.k8s.io` Event: the same objects.
pub static EVENT_OF_EVENTS: Kind = Kind::Listed(&Entry {
    short_names: &["ev"],
    strategy: Strategy {
        default: |o| {
            spell_out(o, ["deprecatedSource", "deprecatedFirstTimestamp", "deprecatedLastTimestamp"], false);
        },
        validate: |o| {
            let stored = to_core(o);
            let mut errors = validate_as(&stored, "reportingController");
            errors.extend(series(&stored));
            if walk::text(o, "eventTime").is_empty() {
                errors.push(FieldError::required("eventTime", ""));
            }
            let kind = walk::text(o, "type");
            if !matches!(kind, "Normal" | "Warning") {
                errors.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
            }
            for (field, name) in [
                ("firstTimestamp", "firstTimestamp"),
                ("lastTimestamp", "lastTimestamp"),
                ("count", "count"),
                ("source.component", "source"),
                ("source.host", "source"),
            ] {
                if walk::at(&stored, field).is_some_and(|v| *v != 0 && *v != "") {
                    errors.push(FieldError::invalid(name, "", "needs to be unset"));
                }
            }
            errors
        },
        validate_update: |new, old| {
            let (new, old) = (to_core(new), to_core(old));
            let mut errors = validate_as(&new, "reportingController");
            if new.get("series") != old.get("series") {
                errors.extend(series(&new));
            }
            for field in [
                "involvedObject",
                "reason",
                "message",
                "source",
                "firstTimestamp",
                "lastTimestamp",
                "count",
                "type",
                "eventTime",
                "action",
                "related",
                "reportingComponent",
                "reportingInstance",
            ] {
                if new.get(field) != old.get(field) {
                    let name = if field == "reportingComponent" { "reportingController" } else { field };
                    let value = new.get(field).cloned().unwrap_or_default();
                    errors.push(FieldError::invalid(name, value, "field is immutable"));
                }
            }
            errors
        },
        ..Strategy::PLAIN
    },
    fields: &[
        ("reason", |o| walk::text(o, "reason").to_owned()),
        ("regarding.kind", |o| walk::text(o, "regarding.kind").to_owned()),
        ("regarding.namespace", |o| walk::text(o, "regarding.namespace").to_owned()),
        ("regarding.name", |o| walk::text(o, "regarding.name").to_owned()),
        ("regarding.uid", |o| walk::text(o, "regarding.uid").to_owned()),
        ("regarding.apiVersion", |o| walk::text(o, "regarding.apiVersion").to_owned()),
        ("regarding.resourceVersion", |o| walk::text(o, "regarding.resourceVersion").to_owned()),
        ("regarding.fieldPath", |o| walk::text(o, "regarding.fieldPath").to_owned()),
        ("reportingController", |o| walk::text(o, "reportingController").to_owned()),
        ("type", |o| walk::text(o, "type").to_owned()),
    ],
    columns: COLUMNS,
    cells: |o, now| cells(&to_core(o), now),
    conversion: Some(Conversion { stored: &EVENT, show: from_core, keep: to_core }),
    ..Entry::of("events.k8s.io", "v1", ("Event", "EventList"), ("events", "event"))
});

/// What an Event says also where there is nothing to say: these fields have no `omitempty`.
fn spell_out(event: &mut Value, [source, first, last]: [&str; 3], reporter: bool) {
    walk::default(event, source, serde_json::json!({}));
    for time in [first, last, "eventTime"] {
        walk::default(event, time, Value::Null);
    }
    if reporter {
        walk::default(event, "reportingComponent", "");
        walk::default(event, "reportingInstance", "");
    }
}

/// Fields that the two shapes call by different names: first in the core group, then in `events.k8s.io`.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn renamed(object: &Value, version: &str, other: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Some(map) = object.as_object() else { return object.clone() };
    let mut out: serde_json::Map<String, Value> = map
        .iter()
        .map(|(key, value)| (other(key).map_or_else(|| key.clone(), String::from), value.clone()))
        .collect();
    if let Some(field) = out.get_mut("apiVersion") {
        *field = version.into();
    }
    Value::Object(out)
}

fn from_core(object: &Value) -> Value {
    let mut out = renamed(object, "events.k8s.io/v1", |key| {
        NAMES.iter().find(|(core, _)| *core == key).map(|(_, name)| *name)
    });
    for field in ["reportingController", "reportingInstance"] {
        if walk::text(&out, field).is_empty() {
            walk::remove(&mut out, field);
        }
    }
    out
}

fn to_core(object: &Value) -> Value {
    renamed(object, "v1", |key| NAMES.iter().find(|(_, name)| *name == key).map(|(core, _)| *core))
}

fn series(event: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(series) = walk::at(event, "series") {
        if walk::int(series, "count").unwrap_or(0) < 2 {
            errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
        }
        if walk::text(series, "lastObservedTime").is_empty() {
            errors.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
    errors
}

fn validate(object: &Value) -> Vec<FieldError> {
    validate_as(object, "reportingComponent")
}

/// The rules of both shapes; `controller` is how the field that names the reporter is called in the text.
fn validate_as(object: &Value, controller: &str) -> Vec<FieldError> {
    let about = walk::text(object, "involvedObject.namespace");
    let own = meta::namespace(object);
    let astray = || FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace");
    let mut errors = Vec::new();
    if walk::text(object, "eventTime").is_empty() {
        // What is about an object of no namespace is told in `default`.
        let fits = if about.is_empty() { matches!(own, "default" | "") } else { about == own };
        if !fits {
            errors.push(astray());
        }
        return errors;
    }
    if about.is_empty() && !matches!(own, "default" | "kube-system") {
        errors.push(astray());
    }
    let name = walk::text(object, "reportingComponent");
    if name.is_empty() {
        errors.push(FieldError::required(controller, ""));
    }
    errors.extend(meta::findings(controller, name, meta::qualified_faults(name)));
    for (field, path, needed, max) in [
        ("reportingInstance", "reportingInstance", true, 128),
        ("action", "action", true, 128),
        ("reason", "reason", true, 128),
        ("message", "message", false, 1024),
    ] {
        let text = walk::text(object, field);
        if needed && text.is_empty() {
            errors.push(FieldError::required(path, ""));
        }
        if text.len() > max {
            errors.push(FieldError::invalid(path, "", format!("can have at most {max} characters")));
        }
    }
    errors
}

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let first = match walk::text(object, "firstTimestamp") {
        "" => walk::text(object, "eventTime"),
        text => text,
    };
    let mut last = match walk::text(object, "lastTimestamp") {
        "" => first,
        text => text,
    };
    let mut count = walk::int(object, "count").filter(|n| *n != 0).unwrap_or(1);
    if let Some(series) = walk::at(object, "series") {
        last = walk::text(series, "lastObservedTime");
        count = walk::int(series, "count").unwrap_or(0);
    }
    let kind = walk::text(object, "involvedObject.kind").to_lowercase();
    let name = walk::text(object, "involvedObject.name");
    let about = if name.is_empty() { kind } else { format!("{kind}/{name}") };
    let or_else = |path: &str, other: &str| match walk::text(object, path) {
        "" => walk::text(object, other).to_owned(),
        text => text.to_owned(),
    };
    let mut source = or_else("source.component", "reportingComponent");
    let host = or_else("source.host", "reportingInstance");
    if !host.is_empty() {
        source = format!("{source}, {host}");
    }
    vec![
        duration::since(last, now).into(),
        walk::text(object, "type").into(),
        walk::text(object, "reason").into(),
        about.into(),
        walk::text(object, "involvedObject.fieldPath").into(),
        source.into(),
        walk::text(object, "message").trim().into(),
        duration::since(first, now).into(),
        count.into(),
        meta::name(object).into(),
    ]
}
