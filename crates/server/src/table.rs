//! Objects in the forms that only show a part of them: tables, and metadata alone.

use jiff::Timestamp;
use portolan_api::Kind;
use portolan_api::kinds::pod::POD;
use serde_json::{Value, json};

use crate::negotiate::Meta;

/// Which object a table's row carries (`?includeObject=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// None.
    None,
    /// Its metadata, as Kubernetes does by default.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the parameter.
    pub(crate) fn parse(text: Option<&str>) -> Include {
        match text {
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        }
    }
}

/// The columns of a kind.
pub(crate) fn columns(kind: &Kind) -> Value {
    kind.columns()
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.r#type, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect()
}

/// The row of an object.
pub(crate) fn row(meta: Meta, kind: &Kind, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells = kind.cells(object, now);
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => metadata(meta, object),
        Include::Object => object.clone(),
    };
    let mut row = json!({"cells": cells, "object": shown});
    if let Some(condition) = ended(kind, object) {
        row["conditions"] = json!([condition]);
    }
    row
}

/// What the row of a pod that has ended says, so that clients can set it back.
fn ended(kind: &Kind, object: &Value) -> Option<Value> {
    let phase = object["status"]["phase"].as_str().filter(|_| *kind == POD)?;
    let message = match phase {
        "Succeeded" => "The pod has completed successfully.",
        "Failed" => "The pod failed.",
        _ => return None,
    };
    Some(json!({"type": "Completed", "status": "True", "reason": phase, "message": message}))
}

/// A table of rows; all but the first table of a watch have null for `columns`.
pub(crate) fn table(meta: Meta, columns: Option<Value>, metadata: Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table", "apiVersion": meta.api_version(), "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

/// An object's metadata alone.
pub(crate) fn metadata(meta: Meta, object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": meta.api_version(), "metadata": object["metadata"]})
}
