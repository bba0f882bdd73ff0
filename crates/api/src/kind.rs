//! A kind is one table entry and pure functions: how it is named, decoded, defaulted, checked, selected and shown; or it is one
//! that a CustomResourceDefinition names.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use crate::custom::Custom;
use crate::fielderror::FieldError;
use crate::meta::NameRule;
use crate::schema;
use crate::schema::TypeRef;
use crate::{kinds, meta, strict, walk, workload};

/// One column of a Table (`meta.k8s.io/v1 TableColumnDefinition`).
#[derive(Clone, Debug)]
pub struct Column {
    /// The heading; kubectl prints it in capitals.
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `boolean`, `date`.
    pub r#type: Cow<'static, str>,
    /// `name` for the first column, else empty.
    pub format: Cow<'static, str>,
    /// What the column shows.
    pub description: Cow<'static, str>,
    /// 0 is shown always, more only with `-o wide`.
    pub priority: i32,
}

impl Column {
    const fn of(
        name: &'static str,
        r#type: &'static str,
        format: &'static str,
        description: &'static str,
        priority: i32,
    ) -> Self {
        Self {
            name: Cow::Borrowed(name),
            r#type: Cow::Borrowed(r#type),
            format: Cow::Borrowed(format),
            description: Cow::Borrowed(description),
            priority,
        }
    }

    /// A column that is always shown.
    pub const fn new(name: &'static str, r#type: &'static str, description: &'static str) -> Self {
        Self::of(name, r#type, "", description, 0)
    }

    /// A column that is shown with `-o wide`.
    pub const fn wide(name: &'static str, r#type: &'static str, description: &'static str) -> Self {
        Self::of(name, r#type, "", description, 1)
    }

    /// A column of names: shown always with priority 0, with `-o wide` else.
    pub const fn name(name: &'static str, description: &'static str, priority: i32) -> Self {
        Self::of(name, "string", "name", description, priority)
    }

    /// The first column of every kind.
    pub const fn object_name() -> Self {
        Self::name("Name", "Name of the object", 0)
    }
}

/// What is particular to a kind on its way into the store. What all kinds share ([`meta`]) is not here.
#[derive(Clone, Copy)]
pub struct Strategy {
    /// Fills in what the client left out.
    pub default: fn(&mut Value),
    /// Makes a decoded, defaulted object ready to be checked and created: wipes what a client may not set.
    pub prepare_create: fn(&mut Value),
    /// The same for an update of the main resource.
    pub prepare_update: fn(new: &mut Value, old: &Value),
    /// The same for an update through `/status`.
    pub prepare_status_update: fn(new: &mut Value, old: &Value),
    /// The rules an object must keep at any time (metadata apart).
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// The rules of a change, those of `validate` included (so that a kind can excuse what is stored already).
    pub validate_update: fn(new: &Value, old: &Value) -> Vec<FieldError>,
    /// The rules of a change through `/status`.
    pub validate_status_update: fn(new: &Value, old: &Value) -> Vec<FieldError>,
    /// What goes into `Warning:` headers: of a new object, or of one that was changed.
    pub warnings: fn(new: &Value, old: Option<&Value>) -> Vec<String>,
    /// The same of a written status.
    pub status_warnings: fn(&Value) -> Vec<String>,
}

fn nothing(_: &mut Value) {}
fn no_finding(_: &Value) -> Vec<FieldError> {
    Vec::new()
}
fn no_change_finding(_: &Value, _: &Value) -> Vec<FieldError> {
    Vec::new()
}
fn no_warning(_: &Value, _: Option<&Value>) -> Vec<String> {
    Vec::new()
}
fn no_status_warning(_: &Value) -> Vec<String> {
    Vec::new()
}
fn as_is(_: &mut Value, _: &Value) {}

/// Drops `status` from a new object: only `/status` writes it.
pub fn wipe_status(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.shift_remove("status");
    }
}

/// Keeps the stored `status` in an update of the main resource.
pub fn keep_status(new: &mut Value, old: &Value) {
    keep(new, old, "status");
}

/// Keeps the desired state in an update through `/status`. What clients own of metadata may change there, as in Kubernetes.
pub fn keep_all_but_status(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
}

/// The same for kinds whose `/status` leaves metadata alone (`ResetObjectMetaForStatus`).
pub fn keep_all_but_status_itself(new: &mut Value, old: &Value) {
    keep_all_but_status(new, old);
    for field in ["labels", "annotations", "finalizers", "ownerReferences", "generation", "deletionTimestamp"]
    {
        keep_meta(new, old, field);
    }
}

/// Keeps a field of metadata too: what some kinds don't let `/status` change.
pub fn keep_meta(new: &mut Value, old: &Value, field: &str) {
    let before = old.get("metadata").and_then(|meta| meta.get(field)).cloned();
    let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match before {
        Some(value) => {
            meta.insert(field.into(), value);
        }
        None => {
            meta.shift_remove(field);
        }
    }
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    if let Some(map) = new.as_object_mut() {
        match old.get(field) {
            Some(value) => {
                map.insert(field.into(), value.clone());
            }
            None => {
                map.shift_remove(field);
            }
        }
    }
}

impl Strategy {
    /// A kind with no rules of its own and no status.
    pub const PLAIN: Strategy = Strategy {
        default: nothing,
        prepare_create: nothing,
        prepare_update: as_is,
        prepare_status_update: as_is,
        validate: no_finding,
        validate_update: no_change_finding,
        validate_status_update: no_change_finding,
        warnings: no_warning,
        status_warnings: no_status_warning,
    };

    /// A kind whose `status` is written through `/status` alone.
    pub const WITH_STATUS: Strategy = Strategy {
        prepare_create: wipe_status,
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        ..Self::PLAIN
    };
}

/// A field that a field selector may name: its label and how its value is read.
pub type SelectableField = (&'static str, fn(&Value) -> String);

/// One kind of object: cheap to clone, and the same as another if group, version and plural are.
#[derive(Clone)]
pub enum Kind {
    /// One of the table.
    Listed(&'static Entry),
    /// One that a CustomResourceDefinition names.
    Custom(Arc<Custom>),
}

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        (self.group(), self.version(), self.plural()) == (other.group(), other.version(), other.plural())
    }
}

/// An entry of the table.
pub struct Entry {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// The name of the kind: `Service`.
    pub kind: &'static str,
    /// The name of a list of it: `ServiceList`.
    pub list_kind: &'static str,
    /// The name in paths: `services`.
    pub plural: &'static str,
    /// What kubectl accepts for one.
    pub singular: &'static str,
    /// Abbreviations: `svc`.
    pub short_names: &'static [&'static str],
    /// Groups of kinds: `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// `status`, `scale`, `log`, `eviction`, `binding`, `finalize`, `exec`, `attach`, `portforward`, `proxy`.
    pub subresources: &'static [&'static str],
    /// Whether `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// What a name must look like.
    pub names: NameRule,
    /// What is particular to the kind on its way into the store.
    pub strategy: Strategy,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`.
    pub fields: &'static [SelectableField],
    /// The columns of a Table.
    pub columns: &'static [Column],
    /// The cells of an object's row.
    pub cells: fn(&Value, now: jiff::Timestamp) -> Vec<Value>,
    /// Set if the objects are those of another kind, seen in another shape.
    pub conversion: Option<Conversion>,
}

/// One object in two shapes: an Event of the core group is an Event of `events.k8s.io`. It is stored in one of them.
#[derive(Clone, Copy)]
pub struct Conversion {
    /// The kind that is stored.
    pub stored: &'static Kind,
    /// A stored object in this kind's shape.
    pub show: fn(&Value) -> Value,
    /// An object of this kind in the stored shape.
    pub keep: fn(&Value) -> Value,
}

/// What kube-apiserver shows of kinds that have no columns of their own (`NewDefaultTableConvertor`).
const NAME_AND_BIRTH: &[Column] =
    &[Column::object_name(), Column::new("Created At", "date", "When the object was made.")];

impl Entry {
    /// A namespaced kind without anything particular: the base that table entries change with `..`.
    pub const fn of(
        group: &'static str,
        version: &'static str,
        (kind, list_kind): (&'static str, &'static str),
        (plural, singular): (&'static str, &'static str),
    ) -> Entry {
        Entry {
            group,
            version,
            kind,
            list_kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            subresources: &[],
            generation: false,
            names: NameRule::Subdomain,
            strategy: Strategy::PLAIN,
            fields: &[],
            columns: NAME_AND_BIRTH,
            cells: |o, _| vec![meta::name(o).into(), walk::text(o, "metadata.creationTimestamp").into()],
            conversion: None,
        }
    }
}

impl Kind {
    /// API group, empty for the core group.
    pub fn group(&self) -> &str {
        match self {
            Kind::Listed(entry) => entry.group,
            Kind::Custom(custom) => &custom.group,
        }
    }

    /// API version.
    pub fn version(&self) -> &str {
        match self {
            Kind::Listed(entry) => entry.version,
            Kind::Custom(custom) => &custom.version,
        }
    }

    /// The name of the kind: `Service`.
    pub fn kind(&self) -> &str {
        match self {
            Kind::Listed(entry) => entry.kind,
            Kind::Custom(custom) => &custom.kind,
        }
    }

    /// The name of a list of it: `ServiceList`.
    pub fn list_kind(&self) -> &str {
        match self {
            Kind::Listed(entry) => entry.list_kind,
            Kind::Custom(custom) => &custom.list_kind,
        }
    }

    /// The name in paths: `services`.
    pub fn plural(&self) -> &str {
        match self {
            Kind::Listed(entry) => entry.plural,
            Kind::Custom(custom) => &custom.plural,
        }
    }

    /// What kubectl accepts for one.
    pub fn singular(&self) -> &str {
        match self {
            Kind::Listed(entry) => entry.singular,
            Kind::Custom(custom) => &custom.singular,
        }
    }

    /// Abbreviations: `svc`.
    pub fn short_names(&self) -> Vec<&str> {
        match self {
            Kind::Listed(entry) => entry.short_names.to_vec(),
            Kind::Custom(custom) => custom.short_names.iter().map(String::as_str).collect(),
        }
    }

    /// Groups of kinds: `all`.
    pub fn categories(&self) -> Vec<&str> {
        match self {
            Kind::Listed(entry) => entry.categories.to_vec(),
            Kind::Custom(custom) => custom.categories.iter().map(String::as_str).collect(),
        }
    }

    /// Whether objects live in a namespace.
    pub fn namespaced(&self) -> bool {
        match self {
            Kind::Listed(entry) => entry.namespaced,
            Kind::Custom(custom) => custom.namespaced,
        }
    }

    /// `status`, `scale`, `log`, `eviction`, `binding`, `finalize`, `exec`, `attach`, `portforward`, `proxy`.
    pub fn subresources(&self) -> &[&'static str] {
        match self {
            Kind::Listed(entry) => entry.subresources,
            Kind::Custom(custom) => &custom.subresources,
        }
    }

    /// Field selectors beyond `metadata.name` and `metadata.namespace`.
    pub fn fields(&self) -> Vec<&str> {
        match self {
            Kind::Listed(entry) => entry.fields.iter().map(|(name, _)| *name).collect(),
            Kind::Custom(custom) => custom.fields.iter().map(|(name, _)| name.as_str()).collect(),
        }
    }

    /// What an object has in the fields that can be selected by, in their order.
    pub fn selectable(&self, object: &Value) -> Vec<String> {
        match self {
            Kind::Listed(entry) => entry.fields.iter().map(|(_, read)| read(object)).collect(),
            Kind::Custom(custom) => custom.selectable(object),
        }
    }

    /// The columns of a Table.
    pub fn columns(&self) -> &[Column] {
        match self {
            Kind::Listed(entry) => entry.columns,
            Kind::Custom(custom) => &custom.columns,
        }
    }

    /// The cells of an object's row.
    pub fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        match self {
            Kind::Listed(entry) => (entry.cells)(object, now),
            Kind::Custom(custom) => custom.cells(object, now),
        }
    }

    /// What a CustomResourceDefinition says of it, if it is one's.
    pub fn custom(&self) -> Option<&Arc<Custom>> {
        match self {
            Kind::Listed(_) => None,
            Kind::Custom(custom) => Some(custom),
        }
    }

    /// The kind whose objects are stored: itself, if it isn't another kind's second shape.
    pub fn stored(&self) -> &Kind {
        match self {
            Kind::Listed(entry) => entry.conversion.map_or(self, |conversion| conversion.stored),
            Kind::Custom(_) => self,
        }
    }

    /// A stored object in this kind's shape.
    pub fn show(&self, object: Value) -> Value {
        match self {
            Kind::Listed(Entry { conversion: Some(conversion), .. }) => (conversion.show)(&object),
            Kind::Listed(_) => object,
            Kind::Custom(custom) => custom.show(object),
        }
    }

    /// An object of this kind in the shape that is stored.
    pub fn keep(&self, object: &Value) -> Value {
        match self {
            Kind::Listed(Entry { conversion: Some(conversion), .. }) => (conversion.keep)(object),
            Kind::Listed(_) => object.clone(),
            Kind::Custom(custom) => custom.keep(object),
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// `services` or `deployments.apps`, as error texts name it.
    pub fn resource(&self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    /// `Service` or `Deployment.apps`, as the text of an invalid object names it.
    pub fn qualified(&self) -> String {
        match self.group() {
            "" => self.kind().to_owned(),
            group => format!("{}.{group}", self.kind()),
        }
    }

    /// Whether the kind serves this subresource.
    pub fn has(&self, subresource: &str) -> bool {
        self.subresources().contains(&subresource)
    }

    /// What its objects are made of.
    pub fn schema(&self) -> Option<TypeRef> {
        match self {
            Kind::Listed(_) => schema::of_kind(self),
            Kind::Custom(custom) => Some(custom.of.clone()),
        }
    }

    /// Decodes strictly what a client sent: what the kind doesn't know and what is null is dropped. The paths of unknown
    /// fields, or what does not fit its type.
    pub fn read(&self, object: &mut Value) -> Result<Vec<String>, String> {
        if let Kind::Custom(custom) = self {
            return custom.read(object);
        }
        let Some(of) = self.schema() else { return Ok(Vec::new()) };
        let found = strict::check(object, &of);
        if let Some(map) = object.as_object_mut() {
            // A null says as little as what is left out.
            schema::go::drop_null_fields(map, of.get());
            schema::go::prune_fields(map, of.get());
        }
        found.misfit.map_or(Ok(found.unknown), Err)
    }

    /// Fills in `apiVersion` and `kind`, drops nulls, fills in defaults.
    pub fn default(&self, object: &mut Value) {
        let entry = match self {
            Kind::Listed(entry) => entry,
            Kind::Custom(custom) => return custom.default(object),
        };
        // What is empty is there or not as in Go's structs.
        if let (Some(of), Some(map)) = (self.schema(), object.as_object_mut()) {
            schema::go::settle(map, of.get());
        }
        if let Some(map) = object.as_object_mut() {
            map.entry("kind").or_insert_with(|| self.kind().into());
            map.entry("apiVersion").or_insert_with(|| self.api_version().into());
        }
        (entry.strategy.default)(object);
    }

    /// Everything between decoding and checking of a new object, except allocation: defaults, wiped fields, generation.
    pub fn prepare_create(&self, object: &mut Value) {
        let entry = match self {
            Kind::Listed(entry) => entry,
            Kind::Custom(custom) => return custom.prepare_create(object),
        };
        self.default(object);
        (entry.strategy.prepare_create)(object);
        if entry.generation {
            meta::set_generation(object, Some(1));
        }
    }

    /// Everything between decoding and checking of a changed object, except allocation. Kept from the stored object are
    /// the metadata that clients do not own, and `status`.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        match self {
            Kind::Listed(entry) => {
                self.default(new);
                meta::keep_system_fields(new, old);
                self.place(new);
                (entry.strategy.prepare_update)(new, old);
            }
            Kind::Custom(custom) => custom.prepare_update(new, old),
        }
        self.count_generation(new, old);
    }

    /// The same through `/status`: only the status (and labels, annotations, finalizers) may change.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        match self {
            Kind::Listed(entry) => {
                self.default(new);
                meta::keep_system_fields(new, old);
                self.place(new);
                (entry.strategy.prepare_status_update)(new, old);
            }
            Kind::Custom(custom) => custom.prepare_status_update(new, old),
        }
    }

    /// Objects of the whole cluster are in no namespace, whatever they say.
    fn place(&self, object: &mut Value) {
        if !self.namespaced() {
            walk::remove(object, "metadata.namespace");
        }
    }

    /// Counts `metadata.generation` up when the desired state differs. Also to be called after an allocation has changed
    /// the object; calling it twice counts once, and what a kind's own rules have counted stays counted.
    pub fn count_generation(&self, new: &mut Value, old: &Value) {
        let differs = match self {
            Kind::Listed(entry) if !entry.generation => return,
            Kind::Listed(_) => kinds::desired_differs(self, new, old),
            Kind::Custom(custom) => custom.desired_differs(new, old),
        };
        let before = meta::generation(old);
        let counted = differs || meta::generation(new) > before;
        meta::set_generation(new, Some(if counted { before + 1 } else { before }));
    }

    /// What is wrong with a new object, metadata included.
    pub fn check_create(&self, object: &Value) -> Vec<FieldError> {
        match self {
            Kind::Listed(entry) => {
                let own = (entry.strategy.validate)(object);
                // Some kinds' rules leave metadata out, which is then asked only where theirs are kept (`rest.BeforeCreate`).
                let alone =
                    matches!((entry.group, entry.kind), ("", "Event") | ("policy", "PodDisruptionBudget"));
                if alone && !own.is_empty() {
                    return own;
                }
                let mut errors = meta::validate(object, entry.namespaced, entry.names);
                // Nor do these rules ask for the domain of a finalizer, which findings with an index are about.
                let bare = alone || matches!(entry.kind, "Lease" | "RuntimeClass");
                errors.retain(|error| !bare || !error.path.starts_with("metadata.finalizers["));
                match (entry.group, entry.kind) {
                    // The base of its name is asked nothing: the name that is made of it is.
                    ("", "ReplicationController") => {
                        errors.retain(|error| error.path != "metadata.generateName");
                    }
                    ("batch", "Job") if workload::has_made_labels(object) => {
                        errors.retain(|error| error.path != "metadata.labels");
                    }
                    _ => {}
                }
                errors.extend(own);
                errors
            }
            Kind::Custom(custom) => custom.check_create(object),
        }
    }

    /// What is wrong with a changed object, metadata included.
    pub fn check_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Kind::Listed(entry) => {
                let mut errors = meta::validate_update(new, old);
                let bare = matches!(
                    (entry.group, entry.kind),
                    ("", "Event") | ("policy", "PodDisruptionBudget") | ("coordination.k8s.io", "Lease")
                );
                errors.retain(|error| !bare || !error.path.starts_with("metadata.finalizers["));
                errors.extend((entry.strategy.validate_update)(new, old));
                errors
            }
            Kind::Custom(custom) => custom.check_update(new, old),
        }
    }

    /// What is wrong with a change through `/status`.
    pub fn check_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Kind::Listed(entry) => {
                let mut errors = meta::validate_update(new, old);
                errors.extend((entry.strategy.validate_status_update)(new, old));
                errors
            }
            Kind::Custom(custom) => custom.check_status_update(new, old),
        }
    }

    /// What goes into `Warning:` headers.
    pub fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        match self {
            Kind::Listed(entry) => (entry.strategy.warnings)(new, old),
            Kind::Custom(custom) => custom.warnings(new, old),
        }
    }

    /// The same of a written status.
    pub fn status_warnings(&self, object: &Value) -> Vec<String> {
        match self {
            Kind::Listed(entry) => (entry.strategy.status_warnings)(object),
            Kind::Custom(_) => Vec::new(),
        }
    }
}

pub use crate::kinds::KINDS;

/// The kind behind a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().copied().find(|k| k.group() == group && k.version() == version && k.plural() == plural)
}

/// The kind that an object says it is.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    KINDS.iter().copied().find(|k| k.group() == group && k.version() == version && k.kind() == kind)
}
