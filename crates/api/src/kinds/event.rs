//! Events.

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::kind::{Column, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{decode, duration, walk};

/// The entry of Event.
pub static EVENT: Kind = Kind {
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
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::core::v1::Event>,
    strategy: Strategy { validate, validate_update: |new, _| validate(new), ..Strategy::PLAIN },
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
    columns: &[
        Column::new("Last Seen", "string", "When it was last seen."),
        Column::new("Type", "string", "Normal or Warning."),
        Column::new("Reason", "string", "What happened, in one word."),
        Column::new("Object", "string", "The object this event is about."),
        Column::wide("Subobject", "string", "The part of the object."),
        Column::wide("Source", "string", "Who reports it."),
        Column::new("Message", "string", "What happened, in a sentence."),
        Column::wide("First Seen", "string", "When it was first seen."),
        Column::wide("Count", "string", "How often it was seen."),
        Column { format: "name", ..Column::wide("Name", "string", "Name of the event") },
    ],
    cells,
};

fn validate(object: &Value) -> Vec<FieldError> {
    let about = walk::text(object, "involvedObject.namespace");
    let own = meta::namespace(object);
    // What is about an object of no namespace is told in `default` (or, by older clients, in `kube-system`).
    let fits = if about.is_empty() { matches!(own, "default" | "kube-system" | "") } else { about == own };
    if fits {
        Vec::new()
    } else {
        vec![FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace")]
    }
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
        count = walk::int(series, "count").unwrap_or(count);
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
