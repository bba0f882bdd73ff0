//! What a definition's schema may say (apiextensions-apiserver `ValidateCustomResourceDefinitionOpenAPISchema`,
//! `schema/defaulting/validation.go`).

use serde_json::{Value, json};

use super::validate::{self, Patterns};
use super::{definition, shape, structural};
use crate::fielderror::FieldError;
use crate::walk;

/// Which rules hold: what an older definition breaks already, a newer one may.
pub struct Rules {
    structural: bool,
    types: bool,
    pruned_defaults: bool,
    atomic_sets: bool,
    keys: bool,
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

fn flag(schema: &Value, name: &str) -> bool {
    walk::flag(schema, name) == Some(true)
}

fn has_default(schema: &Value) -> bool {
    schema.get("default").is_some_and(|default| !default.is_null())
}

impl Rules {
    /// Those for a change from `old`, or for something new.
    pub fn of(old: Option<&Value>) -> Rules {
        let schemas: Vec<&Value> = old
            .map(definition::versions)
            .unwrap_or_default()
            .iter()
            .filter_map(|version| walk::at(version, "schema.openAPIV3Schema"))
            .collect();
        let none = |broken: &dyn Fn(&Value) -> bool| !schemas.iter().any(|schema| broken(schema));
        let is_type = |schema: &Value| {
            let word = walk::text(schema, "type");
            !word.is_empty() && !TYPES.contains(&word)
        };
        Rules {
            structural: none(&|schema| {
                structural::unsupported(schema).is_some() || !structural::validate(schema, "").is_empty()
            }),
            types: none(&|schema| structural::any(schema, &is_type)),
            pruned_defaults: none(&|schema| structural::any(schema, &|of| !has_pruned_default(of))),
            atomic_sets: none(&|schema| structural::any(schema, &|of| set_fault(of, "").is_some())),
            keys: none(&|schema| structural::any(schema, &|of| !key_faults(of, "").is_empty())),
        }
    }
}

/// The fields that a root may have beside its status' own schema, in Go's words and in JSON's.
const AT_ROOT: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XValidations", "x-kubernetes-validations"),
];

/// What is wrong with a version's schema.
pub fn validation(version: &Value, status: bool, path: &str, rules: &Rules) -> Vec<FieldError> {
    let Some(schema) = walk::at(version, "schema.openAPIV3Schema") else { return Vec::new() };
    let mut errors = Vec::new();
    let root = format!("{path}.openAPIV3Schema");
    if status {
        let r#type = walk::text(schema, "type");
        let more = schema.as_object().into_iter().flatten().find(|(name, value)| {
            let said = !value.is_null() && **value != json!(false) && **value != json!("");
            said && !AT_ROOT.iter().any(|(_, known)| known == name)
        });
        if !matches!(r#type, "" | "object") {
            let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            errors.push(FieldError::invalid(format!("{root}.type"), r#type, why));
        } else if more.is_some() {
            let names: Vec<&str> = AT_ROOT.iter().map(|(name, _)| *name).collect();
            let why = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                names.join(" ")
            );
            errors.push(FieldError::invalid(&root, schema.clone(), why));
        }
    }
    if flag(schema, "nullable") {
        errors.push(FieldError::forbidden(format!("{root}.nullable"), "nullable cannot be true at the root"));
    }
    let mut unsupported = None;
    if rules.structural {
        unsupported = structural::unsupported(schema);
        if unsupported.is_none() {
            let found = structural::validate(schema, &root);
            if found.is_empty() {
                errors.extend(defaults(schema, true, false, &root, rules));
            } else {
                errors.extend(found);
            }
        }
    }
    let place = Place { root: true, no_default: None, in_metadata: false };
    errors.extend(schema_errors(schema, &root, &place, rules));
    if let Some(why) = unsupported.filter(|_| errors.is_empty()) {
        errors.push(FieldError::invalid(root, "", why));
    }
    errors
}

#[derive(Clone)]
struct Place {
    root: bool,
    /// Why there may be no default.
    no_default: Option<String>,
    in_metadata: bool,
}

fn schema_errors(schema: &Value, path: &str, place: &Place, rules: &Rules) -> Vec<FieldError> {
    let mut errors = own_errors(schema, path, place, rules);
    if flag(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{path}.uniqueItems"), why));
    }
    let inner = Place { root: false, ..place.clone() };
    let properties = walk::map(schema, "properties");
    if let Some(values) = walk::at(schema, "additionalProperties") {
        let place = format!("{path}.additionalProperties");
        if !properties.is_empty() && *values != json!(true) {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(&place, why));
        }
        if values.is_object() {
            let mut inner = inner.clone();
            if inner.in_metadata {
                inner.no_default = Some("inside additionalProperties applying to object metadata".into());
            }
            errors.extend(schema_errors(values, &place, &inner, rules));
        }
    }
    for (name, of) in properties {
        let mut inner = inner.clone();
        let embedded = flag(schema, "x-kubernetes-embedded-resource");
        if (place.root || embedded) && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            inner.in_metadata = true;
            if place.root {
                inner.no_default = Some(format!("in top-level {name}"));
            }
        }
        errors.extend(schema_errors(of, &format!("{path}.properties[{name}]"), &inner, rules));
    }
    if let Some(not) = walk::at(schema, "not") {
        errors.extend(schema_errors(not, &format!("{path}.not"), &inner, rules));
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (index, one) in walk::list(schema, name).iter().enumerate() {
            errors.extend(schema_errors(one, &format!("{path}.{name}[{index}]"), &inner, rules));
        }
    }
    for (name, of) in walk::map(schema, "definitions") {
        errors.extend(schema_errors(of, &format!("{path}.definitions[{name}]"), &inner, rules));
    }
    if let Some(items) = walk::at(schema, "items") {
        let place = format!("{path}.items");
        match items {
            Value::Array(list) => {
                for (index, of) in list.iter().enumerate() {
                    errors.extend(schema_errors(of, &format!("{place}[{index}]"), &inner, rules));
                }
            }
            items => errors.extend(schema_errors(items, &place, &inner, rules)),
        }
    }
    errors.extend(extension_errors(schema, path, rules));
    errors
}

/// What can't be had of JSON schema.
fn own_errors(schema: &Value, path: &str, place: &Place, rules: &Rules) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = |name: &str| format!("{path}.{name}");
    let r#type = walk::text(schema, "type");
    if rules.types && !r#type.is_empty() && !TYPES.contains(&r#type) {
        errors.push(FieldError::not_supported(at("type"), r#type, &TYPES));
    }
    if let Some(why) = place.no_default.as_ref().filter(|_| has_default(schema)) {
        errors.push(FieldError::forbidden(at("default"), format!("must not be set {why}")));
    }
    for name in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let empty = |value: &&Value| match value {
            Value::String(text) => text.is_empty() && name == "id",
            Value::Object(map) => map.is_empty() && name != "additionalItems",
            _ => false,
        };
        if walk::at(schema, name).filter(|value| !empty(value)).is_some() {
            errors.push(FieldError::forbidden(at(name), format!("{name} is not supported")));
        }
    }
    if r#type == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(at("type"), why));
    }
    if walk::at(schema, "items").and_then(Value::as_array).is_some_and(|items| !items.is_empty()) {
        let why = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(at("items"), why));
    }
    if place.in_metadata && flag(schema, "x-kubernetes-embedded-resource") {
        let why = "must not be used inside of resource meta";
        errors.push(FieldError::forbidden(at("x-kubernetes-embedded-resource"), why));
    }
    errors
}

/// That a set's items can be compared as wholes.
fn set_fault(schema: &Value, path: &str) -> Option<FieldError> {
    let items = walk::at(schema, "items").filter(|items| items.is_object())?;
    if walk::text(schema, "x-kubernetes-list-type") != "set" {
        return None;
    }
    let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let said = |name: &str| walk::at(items, name).cloned();
    let list_type = || said("x-kubernetes-list-type").unwrap_or_default();
    let fault = |name: &str| FieldError::invalid(format!("{path}.items.{name}"), list_type(), why);
    match walk::text(items, "type") {
        "array" if said("x-kubernetes-list-type").is_some_and(|said| said != "atomic") => {
            Some(fault("x-kubernetes-list-type"))
        }
        "object" if said("x-kubernetes-map-type").is_none_or(|said| said != "atomic") => {
            Some(fault("x-kubernetes-map-type"))
        }
        _ => None,
    }
}

/// That the keys of a list are always there.
fn key_faults(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list_type = walk::text(schema, "x-kubernetes-list-type");
    let Some(items) = walk::at(schema, "items").filter(|items| items.is_object()) else { return errors };
    if !matches!(list_type, "set" | "map") {
        return errors;
    }
    if flag(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(format!("{path}.items.nullable"), why));
    }
    if list_type == "set" {
        return errors;
    }
    let required = walk::list(items, "required");
    for key in walk::list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str) {
        let Some(of) = walk::map(items, "properties").get(key) else { continue };
        let place = format!("{path}.items.properties[{key}]");
        if !required.iter().any(|name| *name == *key) && !has_default(of) {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(format!("{place}.default"), why));
        }
        if flag(of, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(format!("{place}.nullable"), why));
        }
    }
    errors
}

/// Kubernetes' own words in a schema.
fn extension_errors(schema: &Value, path: &str, rules: &Rules) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = |name: &str| format!("{path}.{name}");
    if walk::flag(schema, "x-kubernetes-preserve-unknown-fields") == Some(false) {
        let place = at("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(place, false, "must be true or undefined"));
    }
    let r#type = walk::text(schema, "type");
    let typed = |wanted: &str, name: &str| {
        let why = format!("must be {wanted} if {name} is specified");
        match r#type {
            "" => FieldError::required(at("type"), why),
            other => FieldError::invalid(at("type"), other, why),
        }
    };
    let map_type = walk::at(schema, "x-kubernetes-map-type").and_then(Value::as_str);
    if let Some(map_type) = map_type {
        if r#type != "object" {
            errors.push(typed("object", "x-kubernetes-map-type"));
        }
        let known = ["atomic", "granular"];
        if !known.contains(&map_type) {
            errors.push(FieldError::not_supported(at("x-kubernetes-map-type"), map_type, &known));
        }
    }
    let list_type = walk::at(schema, "x-kubernetes-list-type").and_then(Value::as_str);
    if list_type.is_some() && r#type != "array" {
        errors.push(typed("array", "x-kubernetes-list-type"));
    } else if rules.atomic_sets {
        errors.extend(set_fault(schema, path));
    }
    let known = ["atomic", "set", "map"];
    if let Some(other) = list_type.filter(|list_type| !known.contains(list_type)) {
        errors.push(FieldError::not_supported(at("x-kubernetes-list-type"), other, &known));
    }
    let keys = walk::list(schema, "x-kubernetes-list-map-keys");
    if !keys.is_empty() && list_type != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match list_type {
            None => FieldError::required(at("x-kubernetes-list-type"), why),
            Some(other) => FieldError::invalid(at("x-kubernetes-list-type"), other, why),
        });
    }
    if list_type == Some("map") {
        errors.extend(map_list(schema, keys, path));
    }
    if rules.keys {
        errors.extend(key_faults(schema, path));
    }
    for (index, rule) in walk::list(schema, "x-kubernetes-validations").iter().enumerate() {
        errors.extend(rule_errors(rule, &format!("{path}.x-kubernetes-validations[{index}]")));
    }
    errors
}

fn map_list(schema: &Value, keys: &[Value], path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = |name: &str| format!("{path}.{name}");
    let place = at("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(FieldError::required(&place, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = walk::at(schema, "items") else {
        errors.push(FieldError::required(at("items"), "must have a schema if x-kubernetes-list-type is map"));
        return errors;
    };
    if items.is_array() {
        let why = "must only have a single schema if x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(at("items"), items.clone(), why));
        return errors;
    }
    let its_type = walk::text(items, "type");
    if its_type != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(at("items.type"), its_type, why));
        return errors;
    }
    for (index, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        match walk::map(items, "properties").get(name).map(|of| walk::text(of, "type")) {
            None => {
                let why = "entries must all be names of item properties";
                errors.push(FieldError::invalid(&place, keys.to_vec(), why));
            }
            Some("array" | "object") => {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid(
                    at(&format!("items.properties[{name}].type")),
                    its_type,
                    why,
                ));
            }
            Some(_) => {}
        }
        if keys[..index].contains(key) {
            errors.push(FieldError::invalid(&place, keys.to_vec(), "must not contain duplicate entries"));
        }
    }
    errors
}

fn rule_errors(rule: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |name: &str| walk::text(rule, name);
    let at = |name: &str| format!("{path}.{name}");
    let lines = |text: &str| text.contains(['\n', '\r']);
    let (body, message) = (text("rule").trim(), text("message").trim());
    if body.is_empty() {
        errors.push(FieldError::required(at("rule"), "rule is not specified"));
    } else if !text("message").is_empty() && message.is_empty() {
        errors.push(FieldError::invalid(at("message"), text("message"), "must be non-empty if specified"));
    } else if lines(message) {
        errors.push(FieldError::invalid(at("message"), text("message"), "must not contain line breaks"));
    } else if lines(body) && message.is_empty() {
        let why = "message must be specified if rule contains line breaks";
        errors.push(FieldError::required(at("message"), why));
    }
    if !text("messageExpression").is_empty() && text("messageExpression").trim().is_empty() {
        let why = "messageExpression must be non-empty if specified";
        errors.push(FieldError::required(at("messageExpression"), why));
    }
    let reasons = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    if let Some(reason) = walk::at(rule, "reason").and_then(Value::as_str).filter(|r| !reasons.contains(r)) {
        errors.push(FieldError::not_supported(at("reason"), reason, &reasons));
    }
    let place = text("fieldPath");
    if !place.is_empty() && place.trim().is_empty() {
        errors.push(FieldError::invalid(at("fieldPath"), place, "must be non-empty if specified"));
    }
    if lines(place) {
        errors.push(FieldError::invalid(at("fieldPath"), place, "must not contain line breaks"));
    }
    errors
}

fn has_pruned_default(schema: &Value) -> bool {
    let Some(default) = schema.get("default").filter(|default| !default.is_null()) else { return true };
    let mut pruned = default.clone();
    shape::prune(&mut pruned, schema, flag(schema, "x-kubernetes-embedded-resource"));
    pruned == *default
}

/// That defaults are such as an object may have.
fn defaults(schema: &Value, resource: bool, in_metadata: bool, path: &str, rules: &Rules) -> Vec<FieldError> {
    let resource = resource || flag(schema, "x-kubernetes-embedded-resource");
    let in_metadata = in_metadata && !resource;
    let mut errors = Vec::new();
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let place = format!("{path}.default");
        if !in_metadata && rules.pruned_defaults && !has_pruned_default(schema) {
            errors.push(FieldError::invalid(&place, default.clone(), "must not have unknown fields"));
        }
        let mut coerced = default.clone();
        match shape::embedded(&mut coerced, schema, &place) {
            Err(error) => errors.push(error),
            Ok(_) => {
                let found = shape::validate_embedded(&coerced, schema, &place);
                let patterns = Patterns::of(schema);
                errors.extend(match found.is_empty() {
                    true => validate::validate(schema, default, &patterns, &place),
                    false => found,
                });
            }
        }
    }
    if let Some(items) = walk::at(schema, "items") {
        errors.extend(defaults(items, false, in_metadata, &format!("{path}.items"), rules));
    }
    for (name, of) in walk::map(schema, "properties") {
        let inner = in_metadata || (resource && matches!(name.as_str(), "metadata" | "apiVersion" | "kind"));
        errors.extend(defaults(of, false, inner, &format!("{path}.properties[{name}]"), rules));
    }
    errors
}
