//! Sets of fields of an object, as server-side apply counts them: who owns which. The form in JSON is `FieldsV1`; order,
//! texts and algebra are those of structured-merge-diff v6 (`fieldpath`).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// A value without parts, with an order: numbers, texts, truth values, the rest.
#[derive(Clone, Debug)]
pub struct Atom(pub Value);

impl Atom {
    fn rank(&self) -> u8 {
        match &self.0 {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            _ => 3,
        }
    }
}

impl Ord for Atom {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default()),
            },
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()).then_with(|| self.0.to_string().cmp(&other.0.to_string())),
        }
    }
}

impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Atom {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Atom {}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field, or a key of a map.
    Field(String),
    /// An item of a list by its keys, in the order of their names.
    Key(Vec<(String, Atom)>),
    /// An item of a set.
    Value(Atom),
    /// An item of a list by its place.
    Index(i64),
}

impl Element {
    /// As it stands in `FieldsV1`.
    fn encode(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(keys) => {
                let keys: Map<String, Value> =
                    keys.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect();
                format!("k:{}", Value::Object(keys))
            }
            Element::Value(value) => format!("v:{}", value.0),
            Element::Index(index) => format!("i:{index}"),
        }
    }

    fn decode(text: &str) -> Option<Element> {
        let (sort, rest) = text.split_once(':')?;
        match sort {
            "f" => Some(Element::Field(rest.into())),
            "v" => Some(Element::Value(Atom(serde_json::from_str(rest).ok()?))),
            "i" => Some(Element::Index(rest.parse().ok()?)),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).ok()?;
                let mut keys: Vec<_> = keys.into_iter().map(|(name, value)| (name, Atom(value))).collect();
                keys.sort();
                Some(Element::Key(keys))
            }
            _ => None,
        }
    }
}

/// As error texts write it: `.spec`, `[name="a"]`, `[="b"]`, `[3]`.
impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Key(keys) => {
                let parts: Vec<String> =
                    keys.iter().map(|(name, value)| format!("{name}={}", value.0)).collect();
                write!(f, "[{}]", parts.join(","))
            }
            Element::Value(value) => write!(f, "[={}]", value.0),
            Element::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The paths of one step.
    pub members: BTreeSet<Element>,
    /// The longer ones by their first step. None of them is empty.
    pub children: BTreeMap<Element, Set>,
}

impl Set {
    /// Whether it has no path.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Adds what lies below a step.
    pub fn put(&mut self, element: Element, below: Set) {
        if !below.is_empty() {
            self.children.insert(element, below);
        }
    }

    /// Adds what lies below a step to what is there.
    pub fn put_all(&mut self, element: Element, below: Set) {
        let below = match self.children.get(&element) {
            Some(there) => there.union(&below),
            None => below,
        };
        self.put(element, below);
    }

    /// Adds a path of field names.
    pub fn insert(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(Element::Field((*last).into()));
            }
            [first, rest @ ..] => {
                self.children.entry(Element::Field((*first).into())).or_default().insert(rest)
            }
        }
    }

    /// Whether it has the path.
    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|below| below.has(rest)),
        }
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Set) -> Set {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, below) in &other.children {
            let merged = out.children.get(element).map_or_else(|| below.clone(), |mine| mine.union(below));
            out.children.insert(element.clone(), merged);
        }
        out
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let mut out = Set { members: &self.members & &other.members, children: BTreeMap::new() };
        for (element, below) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                out.put(element.clone(), below.intersection(theirs));
            }
        }
        out
    }

    /// What is here and not there.
    #[must_use]
    pub fn difference(&self, other: &Set) -> Set {
        let mut out = Set { members: &self.members - &other.members, children: BTreeMap::new() };
        for (element, below) in &self.children {
            match other.children.get(element) {
                Some(theirs) => out.put(element.clone(), below.difference(theirs)),
                None => out.put(element.clone(), below.clone()),
            }
        }
        out
    }

    /// What is here, and neither there nor below what is there.
    #[must_use]
    pub fn without(&self, other: &Set) -> Set {
        let mut out = Set { members: &self.members - &other.members, children: BTreeMap::new() };
        for (element, below) in self.children.iter().filter(|(element, _)| !other.members.contains(element)) {
            match other.children.get(element) {
                Some(theirs) => out.put(element.clone(), below.without(theirs)),
                None => out.put(element.clone(), below.clone()),
            }
        }
        out
    }

    /// Every path: first those of one step, then the longer ones, each in order.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut out: Vec<Vec<Element>> = self.members.iter().map(|element| vec![element.clone()]).collect();
        for (element, below) in &self.children {
            for mut path in below.paths() {
                path.insert(0, element.clone());
                out.push(path);
            }
        }
        out
    }

    /// As `FieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        let all: BTreeSet<&Element> = self.members.iter().chain(self.children.keys()).collect();
        for element in all {
            let mut below = self.children.get(element).map_or_else(|| json!({}), Set::to_value);
            if let (true, true, Value::Object(map)) =
                (self.members.contains(element), self.children.contains_key(element), &mut below)
            {
                map.shift_insert(0, ".".into(), json!({}));
            }
            out.insert(element.encode(), below);
        }
        Value::Object(out)
    }

    /// From `FieldsV1`; none if it is malformed.
    pub fn from_value(fields: &Value) -> Option<Set> {
        let mut out = Set::default();
        for (key, below) in fields.as_object()? {
            if key == "." {
                continue;
            }
            let element = Element::decode(key)?;
            let parts = below.as_object()?;
            if parts.is_empty() || parts.contains_key(".") {
                out.members.insert(element.clone());
            }
            out.put(element, Set::from_value(below)?);
        }
        Some(out)
    }
}

/// A path as error texts write it: `.spec.ports[port=80,protocol="TCP"].nodePort`.
pub fn path_text(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_written_as_kubernetes_writes_them() {
        let fields = json!({
            "f:metadata": {"f:finalizers": {".": {}, "v:\"a/b\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}},
        });
        let set = Set::from_value(&fields).unwrap();
        assert_eq!(set.to_value(), fields);
        let texts: Vec<String> = set.paths().iter().map(|path| path_text(path)).collect();
        assert_eq!(
            texts,
            [
                ".metadata.finalizers",
                ".metadata.finalizers[=\"a/b\"]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port"
            ]
        );
        assert_eq!(Set::from_value(&json!({"x": {}})), None);
    }

    #[test]
    fn what_lies_below_a_member_goes_with_it_only_where_asked() {
        let set = Set::from_value(&json!({"f:status": {".": {}, "f:phase": {}}, "f:spec": {}})).unwrap();
        let mut status = Set::default();
        status.insert(&["status"]);
        assert_eq!(set.without(&status).to_value(), json!({"f:spec": {}}));
        assert_eq!(set.difference(&status).to_value(), json!({"f:spec": {}, "f:status": {"f:phase": {}}}));
    }

    fn sets() -> impl Strategy<Value = Set> {
        let path = prop::collection::vec("[abc]", 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let mut set = Set::default();
            for path in &paths {
                set.insert(&path.iter().map(String::as_str).collect::<Vec<_>>());
            }
            set
        })
    }

    proptest! {
        #[test]
        fn the_algebra_is_that_of_sets_of_paths(a in sets(), b in sets()) {
            let of = |set: &Set| set.paths().into_iter().collect::<BTreeSet<_>>();
            prop_assert_eq!(of(&a.union(&b)), &of(&a) | &of(&b));
            prop_assert_eq!(of(&a.intersection(&b)), &of(&a) & &of(&b));
            prop_assert_eq!(of(&a.difference(&b)), &of(&a) - &of(&b));
            prop_assert_eq!(Set::from_value(&a.to_value()), Some(a));
        }
    }
}
