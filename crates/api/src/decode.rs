//! Strict decoding: the typed structs say which fields do not exist and which values do not fit.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;

use crate::quantity::Quantity;
use crate::walk;

/// Decodes an object as `T` and drops the result: what is of interest are the paths of fields that `T` does not have, and
/// the first value that does not fit.
pub fn strictly<T: DeserializeOwned>(object: &Value) -> Result<Vec<String>, String> {
    if ["spec", "status"].iter().any(|part| object.get(part).is_some_and(has_bad_quantity)) {
        return Err("quantities must match the regular expression \
                    '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            .into());
    }
    let mut object = Cow::Borrowed(object);
    if has_bare_quantity(&object) {
        quantities(object.to_mut());
    }
    let mut unknown = Vec::new();
    let mut note = |path: Path<'_>| unknown.push(notation(&path));
    let mut track = serde_path_to_error::Track::new();
    let inner = serde_path_to_error::Deserializer::new(&*object, &mut track);
    match T::deserialize(serde_ignored::Deserializer::new(inner, &mut note)) {
        Ok(_) => Ok(unknown),
        Err(error) => {
            let path = track.path().to_string();
            if path == "." { Err(error.to_string()) } else { Err(format!("{path}: {error}")) }
        }
    }
}

/// A path as Kubernetes writes it: `spec.ports[0].port`.
fn notation(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", notation(parent)),
        Path::Map { parent, key } => {
            let mut out = notation(parent);
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(key);
            out
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            notation(parent)
        }
    }
}

/// Brings an object into the form that is stored: nulls mean "absent" to Kubernetes, quantities are texts, empty metadata
/// says nothing.
pub fn normalize(object: &mut Value) {
    drop_nulls(object);
    quantities(object);
    if let Some(meta) = walk::at_mut(object, "metadata").and_then(Value::as_object_mut) {
        meta.retain(|key, value| match key.as_str() {
            "labels" | "annotations" => value.as_object().is_none_or(|m| !m.is_empty()),
            "finalizers" | "ownerReferences" | "managedFields" => {
                value.as_array().is_none_or(|a| !a.is_empty())
            }
            "generateName" | "namespace" | "selfLink" | "uid" | "resourceVersion" => value != "",
            _ => true,
        });
    }
}

/// A null is the zero value: what is absent, and in a map of texts the empty text.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            for (key, value) in map {
                let texts = matches!(
                    key.as_str(),
                    "labels"
                        | "annotations"
                        | "data"
                        | "selector"
                        | "matchLabels"
                        | "nodeSelector"
                        | "stringData"
                );
                let is_selector =
                    value.get("matchLabels").is_some() || value.get("matchExpressions").is_some();
                if let (true, Value::Object(inner)) = (texts && !is_selector, &mut *value) {
                    inner.values_mut().filter(|v| v.is_null()).for_each(|v| *v = "".into());
                }
                drop_nulls(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Fields whose values are quantities, each by its own name or as a map of them.
fn is_quantity(key: &str) -> bool {
    matches!(key, "sizeLimit" | "divisor" | "averageValue")
}
fn is_quantities(key: &str) -> bool {
    matches!(
        key,
        "limits"
            | "requests"
            | "capacity"
            | "allocatable"
            | "overhead"
            | "hard"
            | "used"
            | "min"
            | "max"
            | "default"
            | "defaultRequest"
            | "maxLimitRequestRatio"
    )
}

/// Whether a text that should be a quantity is none.
fn has_bad_quantity(value: &Value) -> bool {
    let bad = |value: &Value| value.as_str().is_some_and(|text| Quantity::parse(text).is_none());
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| {
            (is_quantity(key) && bad(value))
                || (is_quantities(key) && value.as_object().is_some_and(|m| m.values().any(bad)))
                || has_bad_quantity(value)
        }),
        Value::Array(items) => items.iter().any(has_bad_quantity),
        _ => false,
    }
}

/// Whether a quantity is written as a number somewhere, which Kubernetes accepts.
fn has_bare_quantity(object: &Value) -> bool {
    fn within(value: &Value) -> bool {
        match value {
            Value::Object(map) => map.iter().any(|(key, value)| {
                (is_quantity(key) && value.is_number())
                    || (is_quantities(key)
                        && value.as_object().is_some_and(|m| m.values().any(Value::is_number)))
                    || within(value)
            }),
            Value::Array(items) => items.iter().any(within),
            _ => false,
        }
    }
    ["spec", "status"].iter().any(|part| object.get(part).is_some_and(within))
}

/// Writes quantities as the one text that Kubernetes has for each: `cpu: 1` is `cpu: "1"`, `1000m` is `1`.
fn quantities(object: &mut Value) {
    fn text(value: &mut Value) {
        if value.is_number() {
            *value = Value::String(value.to_string());
        }
        if let Some(amount) = value.as_str().and_then(Quantity::parse) {
            *value = Value::String(amount.to_string());
        }
    }
    fn within(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    if is_quantity(key) {
                        text(value);
                    } else if is_quantities(key)
                        && let Value::Object(all) = value
                    {
                        all.values_mut().for_each(text);
                    }
                    within(value);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(within),
            _ => {}
        }
    }
    for part in ["spec", "status"] {
        if let Some(value) = object.get_mut(part) {
            within(value);
        }
    }
}
