//! Objects brought into the form that a structural schema gives them: what it doesn't know goes, nulls go where there may
//! be none, defaults come (apiextensions-apiserver `schema/pruning`, `schema/defaulting`, `schema/objectmeta`).

use serde_json::{Map, Value};

use crate::fielderror::FieldError;
use crate::meta::{self, NameRule};
use crate::schema::{self, go};
use crate::{strict, walk};

static NOTHING: Value = Value::Null;

fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

fn is_open(schema: &Value) -> bool {
    walk::flag(schema, "x-kubernetes-preserve-unknown-fields") == Some(true)
}

fn is_embedded(schema: &Value) -> bool {
    walk::flag(schema, "x-kubernetes-embedded-resource") == Some(true)
}

/// The schema of a map's values: none if the schema has no such, null if it says nothing of them.
fn values(schema: &Value) -> Option<&Value> {
    walk::at(schema, "additionalProperties").map(|of| if of.is_object() { of } else { &NOTHING })
}

fn items(schema: &Value) -> &Value {
    walk::at(schema, "items").unwrap_or(&NOTHING)
}

/// The schema of a field or of a value; null if nothing is said of it.
fn part<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    walk::map(schema, "properties").get(name).or_else(|| values(schema))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Drops what the schema doesn't know, and gives its paths in order. Of a whole resource (`root`), what all objects have is
/// let be.
pub fn prune(value: &mut Value, schema: &Value, root: bool) -> Vec<String> {
    let mut unknown = Vec::new();
    within(value, schema, (root || is_embedded(schema), is_open(schema)), "", &mut unknown);
    unknown.sort();
    unknown
}

/// `resource`: it has metadata of its own. `open`: what isn't known stays.
fn within(
    value: &mut Value,
    schema: &Value,
    (resource, open): (bool, bool),
    path: &str,
    unknown: &mut Vec<String>,
) {
    match value {
        Value::Object(map) => map.retain(|name, value| {
            if resource && is_meta(name) {
                return true;
            }
            let place = join(path, name);
            match part(schema, name) {
                Some(of) => {
                    within(value, of, (is_embedded(of), is_open(of)), &place, unknown);
                    true
                }
                None if open => true,
                None => {
                    if !is_meta(name) || !path.is_empty() {
                        unknown.push(place);
                    }
                    false
                }
            }
        }),
        Value::Array(list) => {
            let of = items(schema);
            for (index, item) in list.iter_mut().enumerate() {
                let place = format!("{path}[{index}]");
                within(item, of, (is_embedded(of), open || is_open(of)), &place, unknown);
            }
        }
        _ => {}
    }
}

fn is_nullable(schema: &Value) -> bool {
    walk::flag(schema, "nullable") == Some(true)
}

/// Drops nulls where the schema has none, unless a default will take their place.
pub fn drop_nulls(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => map.retain(|name, value| {
            let of = part(schema, name).unwrap_or(&NOTHING);
            if value.is_null() && of.is_object() && !is_nullable(of) && of.get("default").is_none() {
                return false;
            }
            drop_nulls(value, of);
            true
        }),
        Value::Array(list) => list.iter_mut().for_each(|item| drop_nulls(item, items(schema))),
        _ => {}
    }
}

/// Fills in what the schema has defaults for.
pub fn default(value: &mut Value, schema: &Value) {
    let misplaced = |value: &Value, of: &Value| value.is_null() && of.is_object() && !is_nullable(of);
    match value {
        Value::Object(map) => {
            let properties = walk::map(schema, "properties");
            for (name, of) in properties {
                let Some(default) = of.get("default") else { continue };
                if map.get(name).is_none_or(|value| misplaced(value, of)) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in map {
                let Some(of) = part(schema, name) else { continue };
                if !properties.contains_key(name) && misplaced(value, of) {
                    *value = of.get("default").cloned().unwrap_or_default();
                }
                self::default(value, of);
            }
        }
        Value::Array(list) => {
            let of = items(schema);
            for item in list {
                if misplaced(item, of) {
                    *item = of.get("default").cloned().unwrap_or_default();
                }
                self::default(item, of);
            }
        }
        _ => {}
    }
}

/// Brings the metadata of a resource into the form that all have, and gives the paths of what it doesn't know.
pub fn metadata(resource: &mut Map<String, Value>, path: &str) -> Result<Vec<String>, String> {
    let Some(found) = resource.get_mut("metadata") else { return Ok(Vec::new()) };
    let Some(of) = schema::find("meta/v1.ObjectMeta") else { return Ok(Vec::new()) };
    if found.is_null() {
        *found = Value::Object(Map::new());
    }
    let findings = strict::check(found, &of);
    if let Some(why) = findings.misfit {
        return Err(why);
    }
    if let Value::Object(map) = found {
        go::prune_fields(map, of.get());
        go::settle(map, of.get());
    }
    let prefix = join(path, "metadata");
    Ok(findings.unknown.into_iter().map(|place| format!("{prefix}.{place}")).collect())
}

/// The same of all resources that lie inside of an object.
pub fn embedded(value: &mut Value, schema: &Value, path: &str) -> Result<Vec<String>, FieldError> {
    let mut unknown = Vec::new();
    match value {
        Value::Object(map) => {
            if is_embedded(schema) {
                for name in ["apiVersion", "kind"] {
                    if let Some(value) = map.get(name).filter(|value| !value.is_string()) {
                        return Err(FieldError::invalid(join(path, name), value.clone(), "must be a string"));
                    }
                }
                let found = metadata(map, path).map_err(|why| {
                    FieldError::invalid(join(path, "metadata"), map["metadata"].clone(), why)
                })?;
                unknown.extend(found);
            }
            for (name, value) in map {
                let named = walk::map(schema, "properties").contains_key(name);
                let place = if named { join(path, name) } else { format!("{path}[{name}]") };
                if let Some(of) = part(schema, name) {
                    unknown.extend(embedded(value, of, &place)?);
                }
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter_mut().enumerate() {
                unknown.extend(embedded(item, items(schema), &format!("{path}[{index}]"))?);
            }
        }
        _ => {}
    }
    unknown.sort();
    Ok(unknown)
}

/// What is wrong with the resources that lie inside of an object.
pub fn validate_embedded(value: &Value, schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match value {
        Value::Object(map) => {
            if is_embedded(schema) {
                errors.extend(resource(map, value, path));
            }
            for (name, value) in map {
                let named = walk::map(schema, "properties").contains_key(name);
                let place = if named { join(path, name) } else { format!("{path}[{name}]") };
                if let Some(of) = part(schema, name) {
                    errors.extend(validate_embedded(value, of, &place));
                }
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                errors.extend(validate_embedded(item, items(schema), &format!("{path}[{index}]")));
            }
        }
        _ => {}
    }
    errors
}

fn resource(map: &Map<String, Value>, value: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for name in ["apiVersion", "kind"] {
        let place = join(path, name);
        match map.get(name) {
            None => errors.push(FieldError::required(place, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(place, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "kind" => {
                let faults = meta::dns_1035_faults(&text.to_lowercase());
                if !faults.is_empty() {
                    let why =
                        format!("may have mixed case, but should otherwise match: {}", faults.join(","));
                    errors.push(FieldError::invalid(place, text.as_str(), why));
                }
            }
            Some(Value::String(text)) if text.matches('/').count() > 1 => {
                let why = format!("unexpected GroupVersion string: {text}");
                errors.push(FieldError::invalid(place, text.as_str(), why));
            }
            Some(Value::String(_)) => {}
            Some(other) => errors.push(FieldError::invalid(place, other.clone(), "must be a string")),
        }
    }
    if map.contains_key("metadata") {
        let mut named = value.clone();
        if meta::name(&named).is_empty() {
            walk::set(&mut named, "metadata.name", "fakename");
        }
        let namespaced = !meta::namespace(&named).is_empty();
        errors.extend(meta::validate(&named, namespaced, NameRule::PathSegment).into_iter().map(
            |mut error| {
                error.path = join(path, &error.path);
                error
            },
        ));
    }
    errors
}
