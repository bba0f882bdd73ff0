//! One object as it is kept in memory: its JSON, and the little that selectors ask for.

use std::sync::Arc;

use bytes::Bytes;
use portolan_api::{FieldSelector, Kind, LabelSelector, meta};
use serde_json::{Map, Value};

/// An object at a revision.
pub(crate) struct Object {
    /// Its key in the store.
    pub key: Arc<str>,
    /// The revision it carries as `resourceVersion`.
    pub revision: u64,
    labels: Map<String, Value>,
    /// The values of the kind's selectable fields, in the table's order.
    fields: Box<[String]>,
    /// The whole object as JSON, with its resource version. Kept as text: a tree of values takes several times the room,
    /// and most readers want the text.
    pub bytes: Bytes,
    /// Where in it the members behind `kind` and `apiVersion` begin.
    rest: usize,
}

impl Object {
    /// Makes an object of what the store holds.
    pub(crate) fn decode(kind: &Kind, key: &Arc<str>, value: &Bytes, revision: u64) -> Option<Object> {
        Some(Object::new(kind, key.clone(), &stored(kind, value, revision)?, revision))
    }

    fn new(kind: &Kind, key: Arc<str>, value: &Value, revision: u64) -> Object {
        let head = serde_json::json!({"kind": kind.kind(), "apiVersion": kind.api_version()});
        let mut bytes = head.to_string().into_bytes();
        bytes.pop();
        let members = value.as_object().into_iter().flatten();
        // An object has metadata, so that a comma follows.
        let rest = bytes.len() + 1;
        for (name, value) in members.filter(|(name, _)| !matches!(name.as_str(), "kind" | "apiVersion")) {
            bytes.push(b',');
            let _ = serde_json::to_writer(&mut bytes, name);
            bytes.push(b':');
            let _ = serde_json::to_writer(&mut bytes, value);
        }
        bytes.push(b'}');
        Object {
            key,
            revision,
            labels: meta::labels(value).clone(),
            fields: kind.selectable(value).into(),
            bytes: bytes.into(),
            rest,
        }
    }

    /// Appends the object as an item of a list: there, kind and version are those of the list, and not said again.
    pub(crate) fn write_item(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        out.extend_from_slice(&self.bytes[self.rest..]);
    }

    /// The same object under another resource version (a deletion carries its own).
    pub(crate) fn at(&self, kind: &Kind, revision: u64) -> Object {
        let mut value = self.value();
        meta::set_resource_version(&mut value, revision);
        Object::new(kind, self.key.clone(), &value, revision)
    }

    /// The object as a tree.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The object's name: the last part of its key.
    pub(crate) fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// The object's namespace, empty if the kind has none.
    pub(crate) fn namespace(&self, kind: &Kind) -> &str {
        if kind.namespaced() { self.key.rsplit('/').nth(1).unwrap_or_default() } else { "" }
    }
}

/// The tree of what the store holds under a key, with its revision as `resourceVersion`.
pub(crate) fn stored(kind: &Kind, value: &Bytes, revision: u64) -> Option<Value> {
    let value: Value = serde_json::from_slice(value).ok()?;
    if !value.is_object() {
        return None;
    }
    let mut value = kind.show(value);
    meta::set_resource_version(&mut value, revision);
    Some(value)
}

/// What the store holds of an object: its JSON in the kind's stored shape, without the version that the store gives.
pub(crate) fn bare(kind: &Kind, object: &Value) -> Bytes {
    let mut object = kind.keep(object);
    meta::clear_resource_version(&mut object);
    serde_json::to_vec(&object).unwrap_or_default().into()
}

/// What a list or a watch asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Selection {
    /// Whether everything is selected.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub(crate) fn matches(&self, object: &Object, kind: &Kind) -> bool {
        if !self.labels.matches(&object.labels) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        // The common demands are decided by the key alone.
        if self.fields.requires("metadata.name").is_some_and(|name| name != object.name()) {
            return false;
        }
        if self
            .fields
            .requires("metadata.namespace")
            .is_some_and(|namespace| namespace != object.namespace(kind))
        {
            return false;
        }
        let demanded =
            |(field, have): (&str, &String)| self.fields.requires(field).is_none_or(|value| have == value);
        kind.fields().into_iter().zip(&object.fields).all(demanded)
            && self.fields.matches(&object.value(), kind)
    }
}
