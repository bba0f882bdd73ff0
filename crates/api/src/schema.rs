//! What each type is made of: the fields of every Kubernetes type with their numbers in protobuf, when they are left out of
//! JSON, how their lists are keyed and merged. One table for all that walks objects by type: protobuf bodies, patches,
//! server-side apply, OpenAPI.
//!
//! The table, `schema/kubernetes.txt`, is made by `.ci/schema.py` from the Go types' tags and the OpenAPI documents that
//! Kubernetes publishes; it holds facts alone, no texts. A line that begins at the margin names a type (`atomic` if it is
//! owned whole); a line below it is a field: its name (`-` if its own fields stand in its place in JSON, and not in protobuf),
//! its number, its type (`[]` a list, `{}` a map from texts), and marks:
//!
//! - `omitempty`, `omitzero`, `pointer`: Go's rules of what is left out;
//! - `required`, `default=`, `enum=` (`|` between the words, `~` for a space): as in OpenAPI;
//! - `map=KEYS`, `set`, `atomic`, `granular`: `x-kubernetes-list-type` and `x-kubernetes-map-type`;
//! - `patch=STRATEGIES:KEY`: `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

use crate::kind::Kind;

pub mod go;
pub mod openapi;
mod structural;

static FACTS: &str = include_str!("schema/kubernetes.txt");

/// A value without parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A text.
    String,
    /// A truth value.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number.
    Double,
    /// Bytes, in base64.
    Bytes,
    /// A `resource.Quantity`.
    Quantity,
    /// A `meta.v1.Time`: whole seconds.
    Time,
    /// A `meta.v1.MicroTime`.
    MicroTime,
    /// A `util.intstr.IntOrString`.
    IntOrString,
    /// A `meta.v1.FieldsV1`: a tree owned whole.
    Fields,
    /// A `runtime.RawExtension`: any object, owned whole.
    Raw,
    /// Any JSON (`apiextensions.k8s.io`'s `JSON`), owned whole.
    Json,
}

/// What a value may be.
#[derive(Clone, Debug)]
pub enum Shape {
    /// A value without parts.
    Scalar(Scalar),
    /// An object with known fields.
    Object(TypeRef),
    /// A list.
    List(Arc<Shape>),
    /// An object from texts to values of one shape.
    Map(Arc<Shape>),
    /// A list that is a message of its own in protobuf (`Verbs`, `ExtraValue`).
    Strings,
    /// A schema, or one of the things that JSON schema allows in its place (`apiextensions.k8s.io`).
    SchemaOr(SchemaOr),
    /// Whatever it is: maps field by field, lists whole.
    Any,
}

/// What may stand in a schema's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaOr {
    /// A truth value.
    Bool,
    /// A list of schemas.
    Array,
    /// A list of texts.
    Strings,
}

impl SchemaOr {
    /// What a value in this place is, if it has parts.
    pub fn shape(self, value: &Value) -> Option<Shape> {
        let schema = || find("apiextensions/v1.JSONSchemaProps").map(Shape::Object);
        match (value, self) {
            (Value::Object(_), _) => schema(),
            (Value::Array(_), SchemaOr::Array) => schema().map(|schema| Shape::List(Arc::new(schema))),
            (Value::Array(_), SchemaOr::Strings) => Some(Shape::Strings),
            _ => None,
        }
    }
}

/// A type of the table, or one of a custom resource.
#[derive(Clone, Debug)]
pub enum TypeRef {
    /// A row of the table.
    Listed(usize),
    /// A type that a CustomResourceDefinition describes.
    Own(Arc<Type>),
}

impl TypeRef {
    /// The type itself.
    pub fn get(&self) -> &Type {
        match self {
            TypeRef::Listed(index) => &TABLE.types[*index],
            TypeRef::Own(own) => own,
        }
    }
}

/// How the items of a list are told apart, or whether a list or map is owned whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Nothing is said.
    Unsaid,
    /// Owned whole.
    Atomic,
    /// Owned part by part, whatever the type says.
    Granular,
    /// Items are the same if they are equal.
    Set,
    /// Items are the same if these fields are.
    Map(Vec<String>),
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Merges instead of replacing.
    pub merge: bool,
    /// Replaces, where an object would merge.
    pub replace: bool,
    /// Keeps what `$retainKeys` names alone.
    pub retain_keys: bool,
    /// The field by which items of a list are told apart; empty for texts and numbers.
    pub key: String,
}

/// A field of a type.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name in JSON; empty if its own fields stand in its place.
    pub name: String,
    /// Its number in protobuf, 0 if it isn't there.
    pub number: u32,
    /// What it holds.
    pub shape: Shape,
    /// Left out of JSON when empty.
    pub omit_empty: bool,
    /// Left out of JSON when zero.
    pub omit_zero: bool,
    /// Zero is not absent.
    pub pointer: bool,
    /// OpenAPI's `required`.
    pub required: bool,
    /// How it is owned.
    pub listing: Listing,
    /// OpenAPI's `default`.
    pub default: Option<Value>,
    /// How it is patched.
    pub patch: Option<Patch>,
    /// The texts that it, or an item of it, may be; empty if any.
    pub words: Vec<String>,
}

/// An object with known fields.
#[derive(Clone, Debug)]
pub struct Type {
    /// `core/v1.Service`; empty for one of a custom resource.
    pub name: String,
    /// How it is owned where its field says nothing.
    pub listing: Listing,
    /// Its fields in Go's order.
    pub fields: Vec<Field>,
    /// Whether fields beside these are kept (`x-kubernetes-preserve-unknown-fields`).
    pub open: bool,
}

struct Table {
    types: Vec<Type>,
    names: HashMap<&'static str, usize>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| read(FACTS));

impl Type {
    /// The field of this name, one of an embedded type included.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let mut embedded = None;
        for field in &self.fields {
            if field.name == name {
                return Some(field);
            }
            if let (true, Shape::Object(inner), None) = (field.name.is_empty(), &field.shape, &embedded) {
                embedded = inner.get().field(name);
            }
        }
        embedded
    }

    /// All fields as they stand in JSON.
    pub fn flat(&self) -> Vec<&Field> {
        let mut all = Vec::new();
        for field in &self.fields {
            match &field.shape {
                Shape::Object(inner) if field.name.is_empty() => all.extend(inner.get().flat()),
                _ => all.push(field),
            }
        }
        all
    }

    /// The name in OpenAPI documents: `io.k8s.api.core.v1.Service`.
    pub fn openapi_name(&self) -> String {
        let dotted = self.name.replace('/', ".");
        let package = self.name.split('/').next().unwrap_or_default();
        match package {
            "meta" => format!("io.k8s.apimachinery.pkg.apis.{dotted}"),
            "apiextensions" => format!("io.k8s.apiextensions-apiserver.pkg.apis.{dotted}"),
            "apiregistration" => format!("io.k8s.kube-aggregator.pkg.apis.{dotted}"),
            _ => format!("io.k8s.api.{dotted}"),
        }
    }

    /// The last part of the name, as Go says it: `ServiceSpec`.
    pub fn go_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// The type of this name (`core/v1.Service`).
pub fn find(name: &str) -> Option<TypeRef> {
    TABLE.names.get(name).copied().map(TypeRef::Listed)
}

/// All types of the table.
pub fn all() -> &'static [Type] {
    &TABLE.types
}

/// The type behind an `apiVersion` and a `kind`. Groups lie in packages named by their first word.
pub fn of(api_version: &str, kind: &str) -> Option<TypeRef> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let package = group.split('.').next().unwrap_or_default();
    // The types that all groups share.
    let shared = matches!(kind, "DeleteOptions" | "Status");
    let package = if shared { "meta" } else { package };
    let version = if shared { "v1" } else { version };
    find(&format!("{package}/{version}.{kind}"))
}

/// The type of a kind.
pub fn of_kind(kind: &Kind) -> Option<TypeRef> {
    of(&kind.api_version(), kind.kind())
}

/// The shape of a custom resource's objects, from the schema of its version.
pub fn of_custom(schema: &Value) -> TypeRef {
    structural::root(schema)
}

fn read(text: &'static str) -> Table {
    let margin = |line: &&str| !line.starts_with(' ') && !line.is_empty();
    let heads = || text.lines().filter(margin).filter_map(|line| line.split(' ').next());
    let names: HashMap<&str, usize> = heads().enumerate().map(|(index, name)| (name, index)).collect();
    let mut types: Vec<Type> = Vec::with_capacity(names.len());
    for line in text.lines() {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let Some(name) = words.next() else { continue };
        if !line.starts_with(' ') {
            let listing = words.next().map_or(Listing::Unsaid, listing);
            types.push(Type { name: name.into(), listing, fields: Vec::new(), open: false });
            continue;
        }
        let number = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
        let shape = words.next().map_or(Shape::Any, |word| shape(word, &names));
        let mut field = Field {
            name: if name == "-" { String::new() } else { name.into() },
            number,
            shape,
            omit_empty: false,
            omit_zero: false,
            pointer: false,
            required: false,
            listing: Listing::Unsaid,
            default: None,
            patch: None,
            words: Vec::new(),
        };
        for mark in words {
            match mark {
                "omitempty" => field.omit_empty = true,
                "omitzero" => field.omit_zero = true,
                "pointer" => field.pointer = true,
                "required" => field.required = true,
                _ => match mark.split_once('=') {
                    Some(("default", json)) => field.default = serde_json::from_str(json).ok(),
                    Some(("patch", how)) => field.patch = Some(patch(how)),
                    Some(("enum", words)) => {
                        field.words = words.split('|').map(|word| word.replace('~', " ")).collect();
                    }
                    _ => field.listing = listing(mark),
                },
            }
        }
        if let Some(last) = types.last_mut() {
            last.fields.push(field);
        }
    }
    Table { types, names }
}

fn listing(mark: &str) -> Listing {
    match mark.split_once('=') {
        Some(("map", keys)) => Listing::Map(keys.split(',').map(str::to_owned).collect()),
        _ => match mark {
            "atomic" => Listing::Atomic,
            "granular" => Listing::Granular,
            "set" => Listing::Set,
            _ => Listing::Unsaid,
        },
    }
}

fn patch(how: &str) -> Patch {
    let (strategies, key) = how.split_once(':').unwrap_or((how, ""));
    let says = |word| strategies.split(',').any(|strategy| strategy == word);
    Patch { merge: says("merge"), replace: says("replace"), retain_keys: says("retainKeys"), key: key.into() }
}

fn shape(word: &str, names: &HashMap<&str, usize>) -> Shape {
    if let Some(items) = word.strip_prefix("[]") {
        return Shape::List(Arc::new(shape(items, names)));
    }
    if let Some(values) = word.strip_prefix("{}") {
        return Shape::Map(Arc::new(shape(values, names)));
    }
    Shape::Scalar(match word {
        "string" => Scalar::String,
        "bool" => Scalar::Bool,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "double" => Scalar::Double,
        "bytes" => Scalar::Bytes,
        "quantity" => Scalar::Quantity,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "intorstring" => Scalar::IntOrString,
        "fields" => Scalar::Fields,
        "raw" => Scalar::Raw,
        "json" => Scalar::Json,
        "strings" => return Shape::Strings,
        "schemaorbool" => return Shape::SchemaOr(SchemaOr::Bool),
        "schemaorarray" => return Shape::SchemaOr(SchemaOr::Array),
        "schemaorstrings" => return Shape::SchemaOr(SchemaOr::Strings),
        name => return names.get(name).map_or(Shape::Any, |index| Shape::Object(TypeRef::Listed(*index))),
    })
}

#[cfg(test)]
mod tests;
