//! The entries of `metadata.managedFields`, each by who wrote how.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{ANCIENT, UPDATERS};
use crate::fieldset::Set;
use crate::walk;

/// What one owner owns by one kind of write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    pub api_version: String,
    pub subresource: String,
    /// Empty if it isn't known.
    pub time: String,
    pub fields: Set,
}

impl Entry {
    pub fn new(manager: &str, operation: &str, api_version: &str, subresource: &str) -> Entry {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        Entry {
            manager: manager.into(),
            operation: operation.into(),
            api_version: api_version.into(),
            subresource: subresource.into(),
            time: String::new(),
            fields: Set::default(),
        }
    }

    /// What tells it from others, in their order (`BuildManagerIdentifier`): an applier is the same in every version.
    pub fn identity(&self) -> String {
        let mut out = Map::new();
        out.insert("manager".into(), self.manager.clone().into());
        out.insert("operation".into(), self.operation.clone().into());
        if self.operation != "Apply" {
            out.insert("apiVersion".into(), self.api_version.clone().into());
        }
        if !self.subresource.is_empty() {
            out.insert("subresource".into(), self.subresource.clone().into());
        }
        Value::Object(out).to_string()
    }

    /// As a conflict names it (`printManager`).
    pub fn describe(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == "Update" {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }

    fn read(entry: &Value) -> Option<Entry> {
        let text = |name| walk::text(entry, name);
        let well = matches!(text("operation"), "Apply" | "Update")
            && !text("apiVersion").is_empty()
            && text("fieldsType") == "FieldsV1";
        let fields = match entry.get("fieldsV1") {
            None | Some(Value::Null) => Some(Set::default()),
            Some(fields) => Set::from_value(fields),
        };
        well.then_some(Entry {
            manager: text("manager").into(),
            operation: text("operation").into(),
            api_version: text("apiVersion").into(),
            subresource: text("subresource").into(),
            time: text("time").into(),
            fields: fields?,
        })
    }

    fn to_value(&self) -> Value {
        let mut out =
            json!({"manager": self.manager, "operation": self.operation, "apiVersion": self.api_version});
        if !self.time.is_empty() {
            out["time"] = self.time.clone().into();
        }
        out["fieldsType"] = "FieldsV1".into();
        out["fieldsV1"] = self.fields.to_value();
        if !self.subresource.is_empty() {
            out["subresource"] = self.subresource.clone().into();
        }
        out
    }
}

/// All entries of an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries(pub BTreeMap<String, Entry>);

impl Entries {
    /// From a list; none if one of them can't be read.
    pub fn read(list: &[Value]) -> Option<Entries> {
        let entries = list.iter().map(Entry::read).collect::<Option<Vec<Entry>>>()?;
        Some(Entries(entries.into_iter().map(|entry| (entry.identity(), entry)).collect()))
    }

    /// Those of a stored object; what can't be read says nothing.
    pub fn stored(object: &Value) -> Entries {
        Entries::read(walk::list(object, "metadata.managedFields")).unwrap_or_default()
    }

    /// Writes them into an object, in Kubernetes' order: appliers first, then by time.
    pub fn write(&self, object: &mut Value) {
        let mut all: Vec<&Entry> = self.0.values().collect();
        all.sort_by(|a, b| {
            let key = |entry: &Entry| {
                let texts =
                    [&entry.operation, &entry.time, &entry.manager, &entry.api_version, &entry.subresource];
                texts.map(Clone::clone)
            };
            key(a).cmp(&key(b))
        });
        if all.is_empty() {
            walk::remove(object, "metadata.managedFields");
        } else {
            let list: Vec<Value> = all.into_iter().map(Entry::to_value).collect();
            walk::set(object, "metadata.managedFields", list);
        }
    }

    /// Puts the oldest of too many updaters together, by version.
    pub fn cap(&mut self) {
        let mut updaters: Vec<(String, String)> = self
            .0
            .iter()
            .filter(|(_, entry)| entry.operation == "Update")
            .map(|(identity, entry)| (entry.time.clone(), identity.clone()))
            .collect();
        updaters.sort();
        let mut count = updaters.len();
        let mut first: BTreeMap<String, String> = BTreeMap::new();
        for (_, identity) in updaters {
            if count <= UPDATERS {
                break;
            }
            let Some(version) = self.0.get(&identity).map(|entry| entry.api_version.clone()) else {
                continue;
            };
            let Some(earlier) = first.get(&version).cloned() else {
                first.insert(version, identity);
                continue;
            };
            let mut bucket = Entry::new(ANCIENT, "Update", &version, "");
            let key = bucket.identity();
            if !self.0.contains_key(&key)
                && let Some(seed) = self.0.remove(&earlier)
            {
                bucket.fields = seed.fields;
                self.0.insert(key.clone(), bucket);
            }
            if key != identity
                && let Some(entry) = self.0.remove(&identity)
                && let Some(bucket) = self.0.get_mut(&key)
            {
                bucket.fields = bucket.fields.union(&entry.fields);
                bucket.time = entry.time;
                count -= 1;
            }
        }
    }
}
