//! Kinds that a CustomResourceDefinition names: what the table says of others, its versions say of these.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub mod definition;
mod formats;
mod lists;
pub mod names;
mod openapi;
mod path;
mod shape;
mod structural;
mod validate;

use path::Path;
use validate::Patterns;

use crate::fielderror::FieldError;
use crate::kind::Column;
use crate::kinds::AGE;
use crate::meta::{self, NameRule};
use crate::schema::{self, TypeRef};
use crate::{duration, walk};

/// What a version says of its objects.
#[derive(Debug)]
struct Version {
    schema: Value,
    patterns: Patterns,
    /// Whether unknown fields stay everywhere (`spec.preserveUnknownFields`).
    open: bool,
}

/// A version of a custom kind.
#[derive(Debug)]
pub struct Custom {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    pub(crate) subresources: Vec<&'static str>,
    pub(crate) of: TypeRef,
    pub(crate) columns: Vec<Column>,
    cells: Vec<Option<Path>>,
    pub(crate) fields: Vec<(String, Path)>,
    scale: Option<Value>,
    storage: String,
    /// All versions: what is stored may be of any.
    versions: Arc<BTreeMap<String, Version>>,
    deprecation: Option<String>,
    terminating: bool,
}

fn texts(value: &Value, path: &str) -> Vec<String> {
    walk::list(value, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Custom {
    /// The kinds that a definition serves, the newest version first.
    pub fn all(definition: &Value) -> Vec<Custom> {
        let text = |path: &str| walk::text(definition, path).to_owned();
        let versions = definition::versions(definition);
        let open = walk::flag(definition, "spec.preserveUnknownFields") == Some(true);
        let schemas = versions.iter().map(|version| {
            let schema = walk::at(version, "schema.openAPIV3Schema").cloned().unwrap_or_default();
            let patterns = Patterns::of(&schema);
            (walk::text(version, "name").to_owned(), Version { schema, patterns, open })
        });
        let schemas: Arc<BTreeMap<String, Version>> = Arc::new(schemas.collect());
        let stored = versions.iter().find(|version| walk::flag(version, "storage") == Some(true));
        let storage = stored.map(|version| walk::text(version, "name")).unwrap_or_default();
        let served = versions.iter().filter(|version| walk::flag(version, "served") == Some(true));
        let mut all: Vec<Custom> = served
            .map(|version| {
                let name = walk::text(version, "name");
                let (columns, cells) = columns(version);
                let subresources: Vec<&str> = ["status", "scale"]
                    .into_iter()
                    .filter(|name| walk::at(version, &format!("subresources.{name}")).is_some())
                    .collect();
                let fields = walk::list(version, "selectableFields").iter().filter_map(|field| {
                    let text = walk::text(field, "jsonPath");
                    Some((text.strip_prefix('.')?.to_owned(), Path::parse(text)?))
                });
                Custom {
                    group: text("spec.group"),
                    version: name.to_owned(),
                    kind: text("status.acceptedNames.kind"),
                    list_kind: text("status.acceptedNames.listKind"),
                    plural: text("status.acceptedNames.plural"),
                    singular: text("status.acceptedNames.singular"),
                    short_names: texts(definition, "status.acceptedNames.shortNames"),
                    categories: texts(definition, "status.acceptedNames.categories"),
                    namespaced: walk::text(definition, "spec.scope") == "Namespaced",
                    subresources,
                    of: schema::of_custom(schemas.get(name).map_or(&Value::Null, |version| &version.schema)),
                    columns,
                    cells,
                    fields: fields.collect(),
                    scale: walk::at(version, "subresources.scale").cloned(),
                    storage: storage.to_owned(),
                    versions: schemas.clone(),
                    deprecation: deprecation(definition, version),
                    terminating: names::is(definition, "Terminating"),
                }
            })
            .collect();
        all.sort_by_key(|one| std::cmp::Reverse(precedence(&one.version)));
        all
    }

    /// What becomes of an object when it is stored and read again: what only this version knows is gone.
    pub fn through_store(&self, object: Value) -> Value {
        if self.storage == self.version {
            return object;
        }
        let kept = self.keep(&object);
        self.show(kept)
    }

    fn own(&self) -> Option<&Version> {
        self.versions.get(&self.version)
    }

    fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// The schema of its objects; null if there is none.
    pub fn schema(&self) -> &Value {
        self.own().map_or(&Value::Null, |version| &version.schema)
    }

    /// What is said with every answer about a version that is on its way out.
    pub fn deprecation(&self) -> Option<&str> {
        self.deprecation.as_deref()
    }

    /// Whether its definition is going: nothing new is made then.
    pub fn is_terminating(&self) -> bool {
        self.terminating
    }

    /// Brings what a client sent into the schema's form: the paths of what it doesn't know, or what can't be read.
    pub(crate) fn read(&self, object: &mut Value) -> Result<Vec<String>, String> {
        self.coerce(object, &self.version)
    }

    fn coerce(&self, object: &mut Value, version: &str) -> Result<Vec<String>, String> {
        let none = Value::Null;
        let (schema, open) =
            self.versions.get(version).map_or((&none, false), |version| (&version.schema, version.open));
        let Value::Object(map) = object else { return Ok(Vec::new()) };
        let mut unknown = shape::metadata(map, "")?;
        if !open {
            unknown.extend(shape::prune(object, schema, true));
            shape::drop_nulls(object, schema);
        }
        // The root's own metadata has been looked at.
        unknown.extend(shape::embedded(object, schema, "").map_err(|error| error.to_string())?);
        Ok(unknown)
    }

    /// Says what it is and fills in defaults.
    pub(crate) fn default(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.entry("kind").or_insert_with(|| self.kind.clone().into());
            map.entry("apiVersion").or_insert_with(|| self.api_version().into());
            let _ = shape::metadata(map, "");
        }
        shape::default(object, self.schema());
    }

    /// An object as it is stored, in this version.
    pub(crate) fn show(&self, mut object: Value) -> Value {
        let stored = walk::text(&object, "apiVersion").rsplit('/').next().unwrap_or_default().to_owned();
        if let Some(version) = self.versions.get(&stored) {
            let _ = self.coerce(&mut object, &stored);
            shape::default(&mut object, &version.schema);
        }
        if meta::generation(&object) == 0 {
            meta::set_generation(&mut object, Some(1));
        }
        if stored != self.version {
            walk::set(&mut object, "apiVersion", self.api_version());
            let _ = self.coerce(&mut object, &self.version);
        }
        object
    }

    /// An object of this version as it is stored.
    pub(crate) fn keep(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if self.storage != self.version {
            walk::set(&mut object, "apiVersion", format!("{}/{}", self.group, self.storage));
            let _ = self.coerce(&mut object, &self.storage);
        }
        object
    }

    fn has_status(&self) -> bool {
        self.subresources.contains(&"status")
    }

    pub(crate) fn prepare_create(&self, object: &mut Value) {
        self.default(object);
        if self.has_status() {
            crate::kind::wipe_status(object);
        }
        meta::set_generation(object, Some(1));
    }

    pub(crate) fn prepare_update(&self, new: &mut Value, old: &Value) {
        self.default(new);
        meta::keep_system_fields(new, old);
        if self.has_status() {
            crate::kind::keep_status(new, old);
        }
    }

    /// Through `/status` nothing but the status changes, and who owns it.
    pub(crate) fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        self.default(new);
        let mut made = old.clone();
        for path in ["status", "metadata.managedFields"] {
            match walk::at(new, path).cloned() {
                Some(value) => walk::set(&mut made, path, value),
                None => drop(walk::remove(&mut made, path)),
            }
        }
        *new = made;
    }

    /// Whether two objects differ in more than metadata.
    pub(crate) fn desired_differs(&self, new: &Value, old: &Value) -> bool {
        let bare = |object: &Value| {
            let mut map: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
            map.shift_remove("metadata");
            map
        };
        bare(new) != bare(old)
    }

    fn of_type(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let version = self.api_version();
        for (field, wanted) in [("kind", &self.kind), ("apiVersion", &version)] {
            let said = walk::text(object, field);
            if said != wanted {
                errors.push(FieldError::invalid(field, said, format!("must be {wanted}")));
            }
        }
        errors
    }

    pub(crate) fn check_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = self.of_type(object);
        if !errors.is_empty() {
            return errors;
        }
        errors.extend(meta::validate(object, self.namespaced, NameRule::Subdomain));
        errors.retain(|error| error.detail != meta::UNQUALIFIED);
        if let Some(own) = self.own() {
            errors.extend(validate::validate(&own.schema, object, &own.patterns, ""));
        }
        errors.extend(self.scale_spec(object));
        errors.extend(self.scale_status(object));
        errors.extend(self.embedded(object));
        errors.extend(lists::validate(self.schema(), object));
        errors
    }

    pub(crate) fn check_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.of_type(new);
        if !errors.is_empty() {
            return errors;
        }
        errors.extend(meta::validate_update(new, old));
        errors.retain(|error| error.detail != meta::UNQUALIFIED);
        if let Some(own) = self.own() {
            errors.extend(validate::validate_update(&own.schema, new, old, &own.patterns, ""));
        }
        errors.extend(self.scale_spec(new));
        errors.extend(self.scale_status(new));
        errors.extend(self.embedded(new));
        errors.extend(self.new_twice(new, old));
        errors
    }

    pub(crate) fn check_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.of_type(new);
        if !errors.is_empty() {
            return errors;
        }
        errors.extend(meta::validate_update(new, old));
        errors.retain(|error| error.detail != meta::UNQUALIFIED);
        let of = self.own().and_then(|own| Some((walk::map(&own.schema, "properties").get("status")?, own)));
        if let (Some((of, own)), Some(status)) = (of, new.get("status")) {
            let before = old.get("status").unwrap_or(&Value::Null);
            errors.extend(validate::validate_update(of, status, before, &own.patterns, "status"));
        }
        errors.extend(self.scale_status(new));
        errors.extend(self.new_twice(new, old));
        errors
    }

    fn embedded(&self, object: &Value) -> Vec<FieldError> {
        shape::validate_embedded(object, self.schema(), "")
    }

    /// What is in lists twice, if nothing was before.
    fn new_twice(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        if lists::validate(self.schema(), old).is_empty() {
            return lists::validate(self.schema(), new);
        }
        Vec::new()
    }

    fn scale_path(&self, name: &str) -> Option<&str> {
        self.scale.as_ref().map(|scale| walk::text(scale, name)).filter(|path| !path.is_empty())
    }

    fn scale_spec(&self, object: &Value) -> Vec<FieldError> {
        self.scale_path("specReplicasPath").map(|path| replicas_errors(object, path)).unwrap_or_default()
    }

    fn scale_status(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = self
            .scale_path("statusReplicasPath")
            .map(|path| replicas_errors(object, path))
            .unwrap_or_default();
        if let Some(path) = self.scale_path("labelSelectorPath")
            && let Some(other) = in_the_way(object, path)
        {
            let why = accessor_error(path, other, "map[string]interface{}");
            errors.push(FieldError::invalid(path, "", why));
        } else if let Some(path) = self.scale_path("labelSelectorPath")
            && let Some(other) = place(object, path).filter(|value| !value.is_string())
        {
            errors.push(FieldError::invalid(path, "", accessor_error(path, other, "string")));
        }
        errors
    }

    /// The `Scale` of an object, or why it has none.
    pub fn to_scale(&self, object: &Value) -> Result<Value, String> {
        let number = |name: &str| -> Result<Option<i64>, String> {
            let Some(path) = self.scale_path(name) else { return Ok(None) };
            match place(object, path) {
                None => Ok(None),
                Some(value) => value.as_i64().map(Some).ok_or_else(|| accessor_error(path, value, "int64")),
            }
        };
        let replicas = number("specReplicasPath")?.ok_or_else(|| {
            let path = self.scale_path("specReplicasPath").unwrap_or_default();
            format!("the spec replicas field {path:?} does not exist")
        })?;
        let mut status = json!({"replicas": number("statusReplicasPath")?.unwrap_or(0)});
        let selector = self.scale_path("labelSelectorPath").and_then(|path| place(object, path));
        if let Some(selector) = selector.and_then(Value::as_str).filter(|selector| !selector.is_empty()) {
            walk::set(&mut status, "selector", selector);
        }
        Ok(crate::scale::scale(object, replicas, status))
    }

    /// Writes the number of a Scale into the object that it scales.
    pub fn apply_scale(&self, object: &mut Value, replicas: i64) {
        if let Some(path) = self.scale_path("specReplicasPath") {
            walk::set(object, path.strip_prefix('.').unwrap_or(path), replicas);
        }
    }

    /// What goes into `Warning:` headers: of finalizers that weren't there before.
    pub(crate) fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut said = Vec::new();
        let before = old.map(meta::finalizers).unwrap_or_default();
        for finalizer in meta::finalizers(object).into_iter().filter(|name| !before.contains(name)) {
            let head = format!("metadata.finalizers: {}: ", crate::fielderror::quote(finalizer));
            said.extend(meta::qualified_faults(finalizer).into_iter().map(|fault| format!("{head}{fault}")));
            let ours = matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
            if !finalizer.contains('/') && !ours {
                let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
                said.push(format!(
                    "{head}prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer \
                     writers"
                ));
            }
        }
        said
    }

    /// What an object has in the fields that can be selected by.
    pub(crate) fn selectable(&self, object: &Value) -> Vec<String> {
        let text = |path: &Path| match path.find(object).first() {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        self.fields.iter().map(|(_, path)| text(path)).collect()
    }

    /// The cells of an object's row.
    pub(crate) fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![meta::name(object).into()];
        for (column, path) in self.columns.iter().skip(1).zip(&self.cells) {
            let found = path.as_ref().map(|path| path.find(object)).unwrap_or_default();
            cells.push(found.first().map_or(Value::Null, |value| cell(&column.r#type, value, now)));
        }
        cells
    }
}

/// The value at a path like `.spec.replicas`.
fn place<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    walk::at(object, path.strip_prefix('.').unwrap_or(path))
}

/// The value on the way to a path that has no fields.
fn in_the_way<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    let mut here = object;
    for part in path.strip_prefix('.').unwrap_or(path).split('.') {
        match here {
            Value::Object(map) => here = map.get(part)?,
            Value::Null => return None,
            other => return Some(other),
        }
    }
    None
}

/// What a value of the wrong type is to `unstructured`'s accessors.
fn accessor_error(path: &str, value: &Value, wanted: &str) -> String {
    let dotted = path.strip_prefix('.').unwrap_or(path);
    let word = match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    let shown = match value.as_f64().filter(|_| !value.is_i64()) {
        Some(number) => validate::go_number(number),
        None => crate::fielderror::go_value(value),
    };
    format!(".{dotted} accessor error: {shown} is of the type {word}, expected {wanted}")
}

fn replicas_errors(object: &Value, path: &str) -> Vec<FieldError> {
    if let Some(other) = in_the_way(object, path) {
        return vec![FieldError::invalid(path, 0, accessor_error(path, other, "map[string]interface{}"))];
    }
    let why = match place(object, path) {
        None => return Vec::new(),
        Some(value) => match value.as_i64() {
            None => return vec![FieldError::invalid(path, 0, accessor_error(path, value, "int64"))],
            Some(n) if n < 0 => (n, "should be a non-negative integer".to_owned()),
            Some(n) if n > i64::from(i32::MAX) => {
                (n, format!("should be less than or equal to {}", i32::MAX))
            }
            Some(_) => return Vec::new(),
        },
    };
    vec![FieldError::invalid(path, why.0, why.1)]
}

fn columns(version: &Value) -> (Vec<Column>, Vec<Option<Path>>) {
    let mut columns = vec![Column::object_name()];
    let own = walk::list(version, "additionalPrinterColumns");
    if own.is_empty() {
        columns.push(Column::new("Age", "date", AGE));
        return (columns, vec![Path::parse(".metadata.creationTimestamp")]);
    }
    let mut cells = Vec::new();
    for column in own {
        let text = |field: &str| walk::text(column, field).to_owned();
        let path = text("jsonPath");
        let description = match walk::text(column, "description") {
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            said => said.to_owned(),
        };
        cells.push(Path::parse(&path));
        columns.push(Column {
            name: text("name").into(),
            r#type: text("type").into(),
            format: text("format").into(),
            description: description.into(),
            priority: walk::int(column, "priority").and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
        });
    }
    (columns, cells)
}

/// What a column of a type shows of a value.
fn cell(r#type: &str, value: &Value, now: Timestamp) -> Value {
    match (r#type, value) {
        ("string", Value::String(_)) => value.clone(),
        ("string", Value::Null) => Value::Null,
        ("string", value) => value.to_string().into(),
        ("integer", Value::Number(number)) => {
            number.as_i64().or_else(|| number.as_f64().map(|n| n as i64)).map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(_) => duration::since(text, now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

/// How new a version is: `v2` before `v1`, `v1` before `v1beta2` before `v1beta1` before `v1alpha1`, all before others
/// (apimachinery `version.CompareKubeAwareVersionStrings`).
pub fn precedence(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let others = || (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| !text.starts_with(['0', '+']));
    let Some(rest) = version.strip_prefix('v') else { return others() };
    let none = std::cmp::Reverse(String::new());
    for (word, rank) in [("alpha", 1), ("beta", 2)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return match (number(major), number(minor)) {
                (Some(major), Some(minor)) => (rank, major, minor, none),
                _ => others(),
            };
        }
    }
    number(rest).map_or_else(others, |major| (3, major, 0, none))
}

fn deprecation(definition: &Value, version: &Value) -> Option<String> {
    if walk::flag(version, "deprecated") != Some(true) {
        return None;
    }
    if let Some(said) = walk::at(version, "deprecationWarning").and_then(Value::as_str) {
        return Some(said.to_owned());
    }
    let (group, kind) = (walk::text(definition, "spec.group"), walk::text(definition, "spec.names.kind"));
    let name = walk::text(version, "name");
    let newer = definition::versions(definition).iter().filter(|other| {
        walk::flag(other, "served") == Some(true) && walk::flag(other, "deprecated") != Some(true)
    });
    let newest = newer
        .map(|other| walk::text(other, "name"))
        .filter(|other| precedence(other) > precedence(name))
        .max_by_key(|other| precedence(other));
    let better = newest.map(|other| format!("; use {group}/{other} {kind}")).unwrap_or_default();
    Some(format!("{group}/{name} {kind} is deprecated{better}"))
}

#[cfg(test)]
mod tests;
