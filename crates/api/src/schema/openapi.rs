//! Types as OpenAPI schemas: what Kubernetes publishes of them, descriptions apart.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Field, Listing, Scalar, SchemaOr, Shape, Type, TypeRef, find};

/// Which OpenAPI it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 2.0, as `/openapi/v2` has it: no defaults.
    V2,
    /// 3.0.
    V3,
}

impl Version {
    /// A reference to a schema by its name.
    pub fn reference(self, name: &str) -> Value {
        match self {
            Version::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Version::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// The schemas of these types and of all that they hold, by name.
pub fn schemas(roots: &[TypeRef], version: Version) -> Map<String, Value> {
    let mut done: BTreeMap<String, Value> = BTreeMap::new();
    let mut todo: Vec<TypeRef> = roots.to_vec();
    while let Some(next) = todo.pop() {
        let of = next.get();
        let name = of.openapi_name();
        done.entry(name).or_insert_with(|| schema(of, version, &mut todo));
    }
    // The types with a form of their own are few: they are there if any schema names them.
    let text: String = done.values().map(Value::to_string).collect();
    for (name, schema) in SPECIALS {
        if text.contains(name) {
            let schema: Value = serde_json::from_str(schema).unwrap_or_default();
            let schema = match (version, schema.get("format").and_then(Value::as_str)) {
                (Version::V2, Some("int-or-string")) => json!({"type": "string", "format": "int-or-string"}),
                (Version::V2, None) if schema.get("oneOf").is_some() => json!({"type": "string"}),
                _ => schema,
            };
            done.insert((*name).to_owned(), schema);
        }
    }
    done.into_iter().collect()
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";
const OR_BOOL: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool";
const OR_ARRAY: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray";
const OR_STRINGS: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray";

const SPECIALS: &[(&str, &str)] = &[
    (QUANTITY, r#"{"oneOf":[{"type":"string"},{"type":"number"}]}"#),
    (INT_OR_STRING, r#"{"format":"int-or-string","oneOf":[{"type":"integer"},{"type":"string"}]}"#),
    (TIME, r#"{"type":"string","format":"date-time"}"#),
    (MICRO_TIME, r#"{"type":"string","format":"date-time"}"#),
    (FIELDS, r#"{"type":"object"}"#),
    (RAW, r#"{"type":"object"}"#),
    (JSON, "{}"),
    (OR_BOOL, "{}"),
    (OR_ARRAY, "{}"),
    (OR_STRINGS, "{}"),
];

fn special(scalar: Scalar) -> Option<&'static str> {
    Some(match scalar {
        Scalar::Quantity => QUANTITY,
        Scalar::IntOrString => INT_OR_STRING,
        Scalar::Time => TIME,
        Scalar::MicroTime => MICRO_TIME,
        Scalar::Fields => FIELDS,
        Scalar::Raw => RAW,
        Scalar::Json => JSON,
        _ => return None,
    })
}

/// The schema of one type. Types that it names go to `more`.
fn schema(of: &Type, version: Version, more: &mut Vec<TypeRef>) -> Value {
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    let fields = of.flat();
    let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name.as_str()).collect();
    if !required.is_empty() {
        out.insert("required".into(), json!(required));
    }
    if !fields.is_empty() {
        let mut sorted: Vec<&&Field> = fields.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let properties: Map<String, Value> =
            sorted.into_iter().map(|field| (field.name.clone(), property(field, version, more))).collect();
        out.insert("properties".into(), Value::Object(properties));
    }
    if let Some(kind) = group_version_kind(of) {
        out.insert("x-kubernetes-group-version-kind".into(), json!([kind]));
    }
    match of.listing {
        Listing::Atomic => drop(out.insert("x-kubernetes-map-type".into(), "atomic".into())),
        Listing::Granular => drop(out.insert("x-kubernetes-map-type".into(), "granular".into())),
        _ => {}
    }
    Value::Object(out)
}

fn property(field: &Field, version: Version, more: &mut Vec<TypeRef>) -> Value {
    let mut out = of_shape(&field.shape, version, more);
    let Value::Object(map) = &mut out else { return out };
    if version == Version::V3 {
        let zero = match &field.shape {
            Shape::Object(_) if !field.pointer => Some(json!({})),
            Shape::Scalar(scalar) if !field.omit_empty && !field.pointer => scalar_zero(*scalar),
            _ => None,
        };
        if let Some(default) = field.default.clone().or(zero) {
            map.insert("default".into(), default);
        }
    } else if let Some(default) = &field.default
        && !default.is_object()
    {
        map.insert("default".into(), default.clone());
    }
    if !field.words.is_empty() {
        let part = if map.contains_key("items") { "items" } else { "additionalProperties" };
        match map.get_mut(part).and_then(Value::as_object_mut) {
            Some(items) => items.insert("enum".into(), json!(field.words)),
            None => map.insert("enum".into(), json!(field.words)),
        };
    }
    let list = matches!(field.shape, Shape::List(_) | Shape::Strings | Shape::Scalar(Scalar::Bytes));
    match (&field.listing, list) {
        (Listing::Atomic, true) => drop(map.insert("x-kubernetes-list-type".into(), "atomic".into())),
        (Listing::Atomic, false) => drop(map.insert("x-kubernetes-map-type".into(), "atomic".into())),
        (Listing::Granular, _) => drop(map.insert("x-kubernetes-map-type".into(), "granular".into())),
        (Listing::Set, _) => drop(map.insert("x-kubernetes-list-type".into(), "set".into())),
        (Listing::Map(keys), _) => {
            map.insert("x-kubernetes-list-map-keys".into(), json!(keys));
            map.insert("x-kubernetes-list-type".into(), "map".into());
        }
        (Listing::Unsaid, _) => {}
    }
    if let Some(patch) = &field.patch {
        if !patch.key.is_empty() {
            map.insert("x-kubernetes-patch-merge-key".into(), patch.key.clone().into());
        }
        let strategies =
            [(patch.merge, "merge"), (patch.replace, "replace"), (patch.retain_keys, "retainKeys")];
        let said: Vec<&str> =
            strategies.into_iter().filter(|(says, _)| *says).map(|(_, word)| word).collect();
        map.insert("x-kubernetes-patch-strategy".into(), said.join(",").into());
    }
    out
}

/// A reference that can have a default beside it: in 3.0 nothing may stand beside `$ref`.
fn named(name: &str, version: Version) -> Value {
    match version {
        Version::V2 => version.reference(name),
        Version::V3 => json!({"allOf": [version.reference(name)]}),
    }
}

fn of_shape(shape: &Shape, version: Version, more: &mut Vec<TypeRef>) -> Value {
    match shape {
        Shape::Scalar(scalar) => match (special(*scalar), scalar) {
            (Some(name), _) => named(name, version),
            (_, Scalar::Bool) => json!({"type": "boolean"}),
            (_, Scalar::Int32) => json!({"type": "integer", "format": "int32"}),
            (_, Scalar::Int64) => json!({"type": "integer", "format": "int64"}),
            (_, Scalar::Double) => json!({"type": "number", "format": "double"}),
            (_, Scalar::Bytes) => json!({"type": "string", "format": "byte"}),
            _ => json!({"type": "string"}),
        },
        Shape::Object(inner) => {
            more.push(inner.clone());
            named(&inner.get().openapi_name(), version)
        }
        Shape::List(items) => json!({"type": "array", "items": part(items, version, more)}),
        Shape::Map(values) => json!({"type": "object", "additionalProperties": part(values, version, more)}),
        Shape::Strings => {
            json!({"type": "array", "items": part(&Shape::Scalar(Scalar::String), version, more)})
        }
        Shape::SchemaOr(or) => {
            more.extend(find("apiextensions/v1.JSONSchemaProps"));
            let name = match or {
                SchemaOr::Bool => OR_BOOL,
                SchemaOr::Array => OR_ARRAY,
                SchemaOr::Strings => OR_STRINGS,
            };
            named(name, version)
        }
        Shape::Any => json!({}),
    }
}

/// An item of a list or a value of a map: with the zero of Go for a default.
fn part(shape: &Shape, version: Version, more: &mut Vec<TypeRef>) -> Value {
    let mut out = of_shape(shape, version, more);
    let zero = match shape {
        Shape::Object(_) => Some(json!({})),
        Shape::Scalar(scalar) => scalar_zero(*scalar),
        _ => None,
    };
    if let (Version::V3, Some(zero), Value::Object(map)) = (version, zero, &mut out) {
        map.insert("default".into(), zero);
    }
    // Nothing stands beside a reference that has no default.
    match out.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
        Some([one]) if out.get("default").is_none() => one.clone(),
        _ => out,
    }
}

fn scalar_zero(scalar: Scalar) -> Option<Value> {
    Some(match scalar {
        Scalar::String => "".into(),
        Scalar::Bool => false.into(),
        Scalar::Int32 | Scalar::Int64 | Scalar::Double => 0.into(),
        _ => return None,
    })
}

/// What an object of this type says it is; none for parts of objects.
pub fn group_version_kind(of: &Type) -> Option<Value> {
    of.fields.iter().find(|field| field.name == "kind" && field.number == 0)?;
    let (package, rest) = of.name.split_once('/')?;
    let (version, kind) = rest.split_once('.')?;
    Some(json!({"group": group(package), "kind": kind, "version": version}))
}

/// The API group whose types lie in a package.
fn group(package: &str) -> String {
    match package {
        "core" | "meta" => String::new(),
        "apps" | "autoscaling" | "batch" | "policy" => package.into(),
        "flowcontrol" => "flowcontrol.apiserver.k8s.io".into(),
        "rbac" => "rbac.authorization.k8s.io".into(),
        other => format!("{other}.k8s.io"),
    }
}
