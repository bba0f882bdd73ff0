//! Whether a schema is structural: what it says of values, it says of the values' shape first (apiextensions-apiserver
//! `schema/validation.go`, `schema/complete.go`, `schema/convert.go`).

use serde_json::{Map, Value, json};

use crate::fielderror::FieldError;
use crate::walk;

/// Where in an object a schema stands.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

fn flag(schema: &Value, name: &str) -> bool {
    walk::flag(schema, name) == Some(true)
}

/// What of JSON schema can't be had at all.
pub fn unsupported(schema: &Value) -> Option<String> {
    let map = schema.as_object()?;
    let fields = [
        ("id", "id"),
        ("$schema", "schema"),
        ("$ref", "$ref"),
        ("patternProperties", "patternProperties"),
        ("dependencies", "dependencies"),
        ("additionalItems", "additionalItems"),
        ("definitions", "definitions"),
    ];
    for (field, name) in fields {
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if map.get(field).is_some_and(|value| !empty(value)) {
            return Some(format!("OpenAPIV3Schema '{name}' is not supported"));
        }
    }
    if walk::flag(schema, "x-kubernetes-preserve-unknown-fields") == Some(false) {
        return Some(
            "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".into(),
        );
    }
    if map.get("items").is_some_and(Value::is_array) {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
    }
    children(schema).into_iter().find_map(unsupported)
}

/// All schemas right below one.
pub fn children(schema: &Value) -> Vec<&Value> {
    let mut all: Vec<&Value> = Vec::new();
    for name in ["items", "not", "additionalProperties"] {
        all.extend(walk::at(schema, name).filter(|of| of.is_object()));
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        all.extend(walk::list(schema, name));
    }
    all.extend(walk::map(schema, "properties").values());
    all
}

/// Whether a schema or one in it is so.
pub fn any(schema: &Value, is: &dyn Fn(&Value) -> bool) -> bool {
    is(schema) || children(schema).into_iter().any(|child| any(child, is))
}

/// What keeps a schema from being structural, in order.
pub fn validate(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, Some(schema), path, path, &mut errors);
    errors.sort_by_key(ToString::to_string);
    errors
}

fn int_or_string(any_of: Option<&Value>) -> bool {
    any_of == Some(&json!([{"type": "integer"}, {"type": "string"}]))
}

fn invariants(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let r#type = walk::text(schema, "type");
    let items = walk::at(schema, "items");
    if r#type == "array" && items.is_none() {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    }
    if let Some(items) = items {
        invariants(items, Level::Item, &format!("{path}.items"), errors);
    }
    let properties = walk::map(schema, "properties");
    for (name, of) in properties {
        invariants(of, Level::Field, &format!("{path}.properties[{name}]"), errors);
    }
    let values = walk::at(schema, "additionalProperties");
    if let Some(values) = values {
        let place = format!("{path}.additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(&place, "must not be used at the root"));
        }
        if values.is_object() {
            invariants(values, Level::Field, &place, errors);
        }
    }
    let (number_or_text, open) =
        (flag(schema, "x-kubernetes-int-or-string"), flag(schema, "x-kubernetes-preserve-unknown-fields"));
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    for (set, name) in
        [(open, "x-kubernetes-preserve-unknown-fields"), (embedded, "x-kubernetes-embedded-resource")]
    {
        if number_or_text && set {
            let why = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(format!("{path}.{name}"), true, why));
        }
    }
    let all_of = walk::list(schema, "allOf");
    let skip_any = int_or_string(schema.get("anyOf"));
    let skip_all = all_of.first().is_some_and(|first| int_or_string(first.get("anyOf")));
    values_of(schema, skip_any, skip_all, level, path, errors);
    let place = format!("{path}.type");
    if embedded && r#type != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match r#type {
            "" => FieldError::required(place, why),
            other => FieldError::invalid(place, other, why),
        });
    } else if r#type.is_empty() && !number_or_text && !open {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(place, why));
    }
    if embedded && values.is_some() {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
    }
    if level == Level::Root && !matches!(r#type, "" | "object") {
        errors.push(FieldError::invalid(format!("{path}.type"), r#type, "must be object at the root"));
    }
    let checked = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        let its_type = properties.get(name).map(|of| walk::text(of, "type"));
        if let Some(other) = its_type.filter(|its_type| checked && *its_type != "string") {
            errors.push(FieldError::invalid(
                format!("{path}.properties[{name}].type"),
                other,
                "must be string",
            ));
        }
    }
    if let Some(metadata) = properties.get("metadata") {
        let place = format!("{path}.properties[metadata]");
        let its_type = walk::text(metadata, "type");
        if checked && its_type != "object" {
            errors.push(FieldError::invalid(format!("{place}.type"), its_type, "must be object"));
        }
        if level == Level::Root && says_more_than_names(metadata) {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(place, why));
        }
    }
    if embedded && !open && properties.is_empty() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                   x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(format!("{path}.properties"), why));
    }
}

fn says_more_than_names(metadata: &Value) -> bool {
    let mut rest: Map<String, Value> = metadata.as_object().cloned().unwrap_or_default();
    rest.shift_remove("type");
    rest.shift_remove("default");
    let names_alone = rest.get("properties").and_then(Value::as_object).is_some_and(|p| {
        !p.is_empty() && p.keys().all(|name| matches!(name.as_str(), "name" | "generateName"))
    });
    if names_alone {
        rest.shift_remove("properties");
    }
    !rest.is_empty()
}

/// What a schema says of values.
fn values_of(
    schema: &Value,
    skip_any: bool,
    skip_first_all: bool,
    level: Level,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if !skip_any {
        for (index, one) in walk::list(schema, "anyOf").iter().enumerate() {
            nested(one, false, level, &format!("{path}.anyOf[{index}]"), errors);
        }
    }
    for (index, one) in walk::list(schema, "allOf").iter().enumerate() {
        nested(one, skip_first_all && index == 0, level, &format!("{path}.allOf[{index}]"), errors);
    }
    for (index, one) in walk::list(schema, "oneOf").iter().enumerate() {
        nested(one, false, level, &format!("{path}.oneOf[{index}]"), errors);
    }
    if let Some(not) = walk::at(schema, "not") {
        nested(not, false, level, &format!("{path}.not"), errors);
    }
    let pattern = walk::text(schema, "pattern");
    if !pattern.is_empty()
        && let Err(error) = regex::Regex::new(pattern)
    {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let why = format!(
            "must be a valid regular expression, but isn't: error parsing regexp: {last}: `{pattern}`"
        );
        errors.push(FieldError::invalid(format!("{path}.pattern"), pattern, why));
    }
}

/// What a schema says below `allOf` and its like: of values alone.
fn nested(schema: &Value, skip_any: bool, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    values_of(schema, skip_any, false, level, path, errors);
    if let Some(items) = walk::at(schema, "items") {
        nested(items, false, level, &format!("{path}.items"), errors);
    }
    for (name, of) in walk::map(schema, "properties") {
        nested(of, false, Level::Field, &format!("{path}.properties[{name}]"), errors);
    }
    let set = |name: &str| match schema.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    let forbidden = [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (name, why) in forbidden {
        if set(name) {
            errors.push(FieldError::forbidden(format!("{path}.{name}"), why));
        }
    }
    if walk::map(schema, "properties").contains_key("metadata") {
        let why = "must not be specified in a nested context";
        errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), why));
    }
}

/// That what is said of a value's parts has a shape to stand on.
fn complete(values: &Value, shape: Option<&Value>, path: &str, said: &str, errors: &mut Vec<FieldError>) {
    if let Some(not) = walk::at(values, "not") {
        complete_nested(not, shape, path, &format!("{said}.not"), errors);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, one) in walk::list(values, name).iter().enumerate() {
            complete_nested(one, shape, path, &format!("{said}.{name}[{index}]"), errors);
        }
    }
}

fn complete_nested(
    values: &Value,
    shape: Option<&Value>,
    path: &str,
    said: &str,
    errors: &mut Vec<FieldError>,
) {
    let Some(shape) = shape else {
        errors.push(FieldError::required(path, format!("because it is defined in {said}")));
        return;
    };
    complete(values, Some(shape), path, said, errors);
    if let Some(items) = walk::at(values, "items") {
        let (path, said) = (format!("{path}.items"), format!("{said}.items"));
        complete_nested(items, walk::at(shape, "items"), &path, &said, errors);
    }
    let properties = walk::map(shape, "properties");
    for (name, of) in walk::map(values, "properties") {
        let (path, said) = (format!("{path}.properties[{name}]"), format!("{said}.properties[{name}]"));
        complete_nested(of, properties.get(name), &path, &said, errors);
    }
}
