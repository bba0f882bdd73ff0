//! The structural schema of a custom resource, as a type.

use std::sync::Arc;

use serde_json::Value;

use super::{Field, Listing, Scalar, Shape, Type, TypeRef, find};
use crate::walk;

/// The type of a version's objects: what its schema says, and the metadata that all objects have.
pub(super) fn root(schema: &Value) -> TypeRef {
    let mut made = object(schema);
    for name in ["apiVersion", "kind"] {
        made.fields.retain(|field| field.name != name);
        made.fields.push(field(name, Shape::Scalar(Scalar::String), Listing::Unsaid));
    }
    made.fields.retain(|field| field.name != "metadata");
    if let Some(meta) = find("meta/v1.ObjectMeta") {
        made.fields.push(field("metadata", Shape::Object(meta), Listing::Unsaid));
    }
    TypeRef::Own(Arc::new(made))
}

fn field(name: &str, shape: Shape, listing: Listing) -> Field {
    Field {
        name: name.into(),
        number: 0,
        shape,
        omit_empty: false,
        omit_zero: false,
        pointer: true,
        required: false,
        listing,
        default: None,
        patch: None,
        words: Vec::new(),
    }
}

fn object(schema: &Value) -> Type {
    let open = walk::flag(schema, "x-kubernetes-preserve-unknown-fields") == Some(true);
    let fields = walk::map(schema, "properties").iter().map(|(name, part)| Field {
        default: part.get("default").cloned(),
        ..field(name, shape(part), listing(part))
    });
    let fields: Vec<Field> = fields.collect();
    // An object of which nothing is said is whatever it is.
    let open = open || fields.is_empty();
    Type { name: String::new(), listing: listing(schema), fields, open }
}

fn listing(schema: &Value) -> Listing {
    match (walk::text(schema, "x-kubernetes-list-type"), walk::text(schema, "x-kubernetes-map-type")) {
        ("set", _) => Listing::Set,
        ("map", _) => {
            let keys = walk::list(schema, "x-kubernetes-list-map-keys").iter();
            Listing::Map(keys.filter_map(Value::as_str).map(str::to_owned).collect())
        }
        ("atomic", _) | (_, "atomic") => Listing::Atomic,
        (_, "granular") => Listing::Granular,
        _ => Listing::Unsaid,
    }
}

fn shape(schema: &Value) -> Shape {
    if walk::flag(schema, "x-kubernetes-int-or-string") == Some(true) {
        return Shape::Scalar(Scalar::IntOrString);
    }
    if walk::flag(schema, "x-kubernetes-embedded-resource") == Some(true) {
        return Shape::Object(root(schema));
    }
    match walk::text(schema, "type") {
        "string" => Shape::Scalar(Scalar::String),
        "boolean" => Shape::Scalar(Scalar::Bool),
        "integer" => Shape::Scalar(Scalar::Int64),
        "number" => Shape::Scalar(Scalar::Double),
        "array" => Shape::List(Arc::new(walk::at(schema, "items").map_or(Shape::Any, shape))),
        "object" => match walk::at(schema, "additionalProperties") {
            Some(values) if values.is_object() => Shape::Map(Arc::new(shape(values))),
            _ => Shape::Object(TypeRef::Own(Arc::new(object(schema)))),
        },
        _ => Shape::Any,
    }
}
