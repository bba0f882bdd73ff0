//! Walks over an object with its type: which fields it has, how two differ, what one becomes under the other, what is left
//! without some (structured-merge-diff v6 `typed`).

use serde_json::{Map, Value};

use crate::fieldset::{Atom, Element, Set};
use crate::schema::{Listing, Scalar, Shape, Type};

static ANY: Shape = Shape::Any;
static UNSAID: Listing = Listing::Unsaid;

/// A place in an object: what may stand there, and how it is owned.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// The object itself.
    Root(&'a Type),
    /// A field, an item or a value.
    Within(&'a Shape, &'a Listing),
}

/// How what stands in a place is taken apart.
enum Parts<'a> {
    /// Not at all.
    Leaf,
    /// A list of which each value is there once.
    Set,
    /// A list whose items are told apart by some of their fields.
    Keyed(&'a [String], &'a Shape),
    /// The fields of a type.
    Fields(&'a Type),
    /// A map.
    Values(&'a Shape),
}

impl<'a> Place<'a> {
    /// An object of this type.
    pub fn root(of: &'a Type) -> Place<'a> {
        Place::Root(of)
    }

    fn item(shape: &'a Shape) -> Place<'a> {
        Place::Within(shape, &UNSAID)
    }

    fn parts(self, value: Option<&Value>) -> Parts<'a> {
        let (shape, listing) = match self {
            Place::Root(of) => return Parts::Fields(of),
            Place::Within(shape, listing) => (shape, listing),
        };
        match (shape, listing) {
            (_, Listing::Atomic) => Parts::Leaf,
            (Shape::Object(inner), listing) => {
                let inner = inner.get();
                if inner.listing == Listing::Atomic && *listing != Listing::Granular {
                    Parts::Leaf
                } else {
                    Parts::Fields(inner)
                }
            }
            (Shape::Map(values), _) => Parts::Values(values),
            (Shape::List(_), Listing::Set) => Parts::Set,
            (Shape::List(items), Listing::Map(keys)) => Parts::Keyed(keys, items),
            (Shape::Any, _) if value.is_some_and(Value::is_object) => Parts::Values(&ANY),
            _ => Parts::Leaf,
        }
    }
}

impl<'a> Parts<'a> {
    /// A field or value by its name, and whether it is one that the type names.
    fn child(&self, name: &str) -> (Place<'a>, bool) {
        match self {
            Parts::Fields(of) => match of.field(name) {
                Some(field) => (Place::Within(&field.shape, &field.listing), true),
                None => (Place::item(&ANY), false),
            },
            Parts::Values(shape) => (Place::item(shape), false),
            _ => (Place::item(&ANY), false),
        }
    }

    fn item(&self) -> Place<'a> {
        match self {
            Parts::Keyed(_, items) => Place::item(items),
            _ => Place::item(&ANY),
        }
    }

    /// The step to an item of a list, or why there is none.
    fn element(&self, item: &Value) -> Result<Element, String> {
        let Parts::Keyed(keys, shape) = self else {
            return match item {
                Value::Object(_) => {
                    Err("associative list without keys has an element that's a map type".into())
                }
                Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
                Value::Null => {
                    Err("associative list without keys has an element that's an explicit null".into())
                }
                value => Ok(Element::Value(Atom(value.clone()))),
            };
        };
        let map = match item {
            Value::Object(map) => map,
            Value::Null => return Err("associative list with keys may not have a null element".into()),
            _ => return Err("associative list with keys may not have non-map elements".into()),
        };
        let default = |name: &str| match shape {
            Shape::Object(inner) => {
                let field = inner.get().field(name)?;
                // A number or text that must be there has its zero for a default in OpenAPI.
                field.default.clone().or_else(|| match field.shape {
                    _ if !field.required || field.omit_empty => None,
                    Shape::Scalar(Scalar::String) => Some("".into()),
                    Shape::Scalar(Scalar::Int32 | Scalar::Int64) => Some(0.into()),
                    _ => None,
                })
            }
            _ => None,
        };
        let mut key: Vec<(String, Atom)> = keys
            .iter()
            .filter_map(|name| Some((name.clone(), Atom(map.get(name).cloned().or_else(|| default(name))?))))
            .collect();
        if key.is_empty() {
            let quoted: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values \
                 for any key fields)",
                quoted.join(" ")
            ));
        }
        key.sort();
        Ok(Element::Key(key))
    }
}

fn name(key: &str) -> Element {
    Element::Field(key.into())
}

/// The items of a list by their steps, each with all that share it.
fn indexed<'v>(parts: &Parts<'_>, list: Option<&'v Value>) -> Vec<(Element, Vec<&'v Value>)> {
    let mut out: Vec<(Element, Vec<&Value>)> = Vec::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        let Ok(element) = parts.element(item) else { continue };
        match out.iter_mut().find(|(other, _)| *other == element) {
            Some((_, items)) => items.push(item),
            None => out.push((element, vec![item])),
        }
    }
    out
}

/// Whether there is something to take apart: not null, and not empty.
fn filled(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    }
}

/// Says what of a configuration its type doesn't have, by path.
pub(super) fn check(place: Place<'_>, value: &Value) -> Result<(), String> {
    fn within(place: Place<'_>, value: &Value, path: &str, errors: &mut Vec<String>) {
        let mut complain = |text: String| errors.push(format!("{path}: {text}"));
        let parts = place.parts(Some(value));
        if let Place::Within(shape, _) = place {
            let expected = match (shape, value) {
                (_, Value::Null) | (Shape::Any, _) => None,
                (Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double), Value::Number(_))
                | (Shape::Scalar(Scalar::Bool), Value::Bool(_))
                | (
                    Shape::Scalar(Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime),
                    Value::String(_),
                )
                | (
                    Shape::Scalar(Scalar::Quantity | Scalar::IntOrString),
                    Value::String(_) | Value::Number(_),
                ) => None,
                (Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double), other) => {
                    Some(format!("expected numeric (int or float), got {}", go_type(other)))
                }
                (Shape::Scalar(Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime), other) => {
                    Some(format!(
                        "expected string, got &value.valueUnstructured{{Value:{}}}",
                        go_syntax(other)
                    ))
                }
                (Shape::Scalar(Scalar::Bool), other) => Some(format!("expected boolean, got {other}")),
                (Shape::Object(_) | Shape::Map(_), other) if !other.is_object() => {
                    Some(format!("expected map, got &{{{}}}", bare_text(other)))
                }
                (Shape::List(_), other) if !other.is_array() => {
                    Some(format!("expected list, got &{{{}}}", bare_text(other)))
                }
                _ => None,
            };
            if let Some(text) = expected {
                complain(text);
                return;
            }
        }
        let atomic = |shape: &Shape| match shape {
            Shape::List(items) => Some(items.clone()),
            _ => None,
        };
        match (&parts, value) {
            (Parts::Fields(_) | Parts::Values(_), Value::Object(map)) => {
                for (key, value) in map {
                    let path = format!("{path}.{key}");
                    if let Parts::Fields(of) = &parts
                        && !of.open
                        && of.field(key).is_none()
                    {
                        errors.push(format!("{path}: field not declared in schema"));
                        continue;
                    }
                    within(parts.child(key).0, value, &path, errors);
                }
            }
            (Parts::Leaf, Value::Object(map)) => {
                if let Place::Within(Shape::Object(inner), _) = place {
                    let parts = Parts::Fields(inner.get());
                    for (key, value) in map {
                        let path = format!("{path}.{key}");
                        if !inner.get().open && inner.get().field(key).is_none() {
                            errors.push(format!("{path}: field not declared in schema"));
                            continue;
                        }
                        within(parts.child(key).0, value, &path, errors);
                    }
                }
            }
            (Parts::Set | Parts::Keyed(..), Value::Array(items)) => {
                let mut seen: Vec<Element> = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let element = match parts.element(item) {
                        Ok(element) => element,
                        Err(why) => {
                            errors.push(format!("{path}: element {index}: {why}"));
                            return;
                        }
                    };
                    if seen.contains(&element) {
                        errors.push(format!("{path}: duplicate entries for key {element}"));
                    }
                    within(parts.item(), item, &format!("{path}{element}"), errors);
                    seen.push(element);
                }
            }
            (Parts::Leaf, Value::Array(items)) => {
                if let Place::Within(shape, _) = place
                    && let Some(inner) = atomic(shape)
                {
                    for (index, item) in items.iter().enumerate() {
                        within(Place::item(&inner), item, &format!("{path}[{index}]"), errors);
                    }
                }
            }
            _ => {}
        }
    }
    let mut errors = Vec::new();
    within(place, value, "", &mut errors);
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        all => {
            Err(format!("errors:\n{}", all.iter().map(|e| format!("  {e}")).collect::<Vec<_>>().join("\n")))
        }
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Null => "<nil>",
    }
}

/// As Go's `%#v` writes it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k:?}:{}", go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", parts.join(", "))
        }
        other => other.to_string(),
    }
}

fn bare_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The fields of an object.
pub(super) fn fields(place: Place<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    fill(place, value, &mut set);
    set
}

/// Adds what lies below, and says whether the place itself is a field.
fn fill(place: Place<'_>, value: &Value, into: &mut Set) -> bool {
    let parts = place.parts(Some(value));
    match (&parts, value) {
        (Parts::Leaf, _) => return true,
        (Parts::Fields(_) | Parts::Values(_), Value::Object(map)) => {
            for (key, value) in map {
                let (child, named) = parts.child(key);
                let mut below = Set::default();
                let own = fill(child, value, &mut below);
                if own || !named || value.is_null() || value.as_object().is_some_and(Map::is_empty) {
                    into.members.insert(name(key));
                }
                into.put(name(key), below);
            }
        }
        (Parts::Set | Parts::Keyed(..), _) => {
            for (element, items) in indexed(&parts, Some(value)) {
                if let [item] = items.as_slice() {
                    let mut below = Set::default();
                    fill(parts.item(), item, &mut below);
                    into.put(element.clone(), below);
                }
                into.members.insert(element);
            }
        }
        _ => {}
    }
    false
}

/// How an object differs from an older one.
#[derive(Default)]
pub(super) struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    /// Takes out what is there or below.
    pub fn filter(&mut self, without: &Set) {
        if !without.is_empty() {
            self.removed = self.removed.without(without);
            self.modified = self.modified.without(without);
            self.added = self.added.without(without);
        }
    }

    /// Compares what lies one step below.
    fn step(&mut self, element: Element, place: Place<'_>, old: Option<&Value>, new: Option<&Value>) {
        let mut below = Comparison::default();
        let own = differ(place, old, new, &mut below);
        self.removed.put_all(element.clone(), below.removed);
        self.modified.put_all(element.clone(), below.modified);
        self.added.put_all(element.clone(), below.added);
        match own {
            Own::Same => false,
            Own::Removed => self.removed.members.insert(element),
            Own::Modified => self.modified.members.insert(element),
            Own::Added => self.added.members.insert(element),
        };
    }
}

#[derive(Clone, Copy)]
enum Own {
    Same,
    Removed,
    Modified,
    Added,
}

/// How `new` differs from `old`.
pub(super) fn compare(place: Place<'_>, old: &Value, new: &Value) -> Comparison {
    let mut out = Comparison::default();
    differ(place, Some(old), Some(new), &mut out);
    out
}

fn differ(place: Place<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) -> Own {
    let parts = place.parts(new.or(old));
    let gone_or_new = match (old, new) {
        (None, Some(_)) => Own::Added,
        (Some(_), None) => Own::Removed,
        _ => Own::Same,
    };
    // A place that holds a map in one and something else in the other is taken whole.
    let mixed = match (old, new) {
        (Some(old), Some(new)) => {
            !old.is_null()
                && !new.is_null()
                && (old.is_object() != new.is_object() || old.is_array() != new.is_array())
        }
        _ => false,
    };
    if matches!(parts, Parts::Leaf) || mixed || (!filled(old) && !filled(new)) {
        return match (old, new) {
            (Some(old), Some(new)) if !same(old, new) => Own::Modified,
            _ => gone_or_new,
        };
    }
    match parts {
        Parts::Fields(_) | Parts::Values(_) => {
            let empty = Map::new();
            let a = old.and_then(Value::as_object).unwrap_or(&empty);
            let b = new.and_then(Value::as_object).unwrap_or(&empty);
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                out.step(name(key), parts.child(key).0, a.get(key), b.get(key));
            }
        }
        _ => {
            let (a, b) = (indexed(&parts, old), indexed(&parts, new));
            let find = |list: &[(Element, Vec<&Value>)], element: &Element| {
                list.iter().find(|(other, _)| other == element).map(|(_, items)| items.len()).unwrap_or(0)
            };
            let items = |list: &[(Element, Vec<&'_ Value>)], element: &Element| -> Vec<Value> {
                let found = list.iter().find(|(other, _)| other == element);
                found.map(|(_, items)| items.iter().map(|item| (*item).clone()).collect()).unwrap_or_default()
            };
            let all: Vec<Element> = a
                .iter()
                .chain(b.iter().filter(|(element, _)| find(&a, element) == 0))
                .map(|(element, _)| element.clone())
                .collect();
            for element in all {
                let (left, right) = (items(&a, &element), items(&b, &element));
                match (left.len(), right.len()) {
                    (0 | 1, 0 | 1) => {
                        out.step(element, parts.item(), left.first(), right.first());
                    }
                    (2.., 2..) => {
                        if left != right {
                            out.modified.members.insert(element);
                        }
                    }
                    (2.., _) => {
                        if let Some(new) = right.first() {
                            out.step(element.clone(), parts.item(), None, Some(new));
                        }
                        out.removed.members.insert(element);
                    }
                    _ => {
                        if let Some(old) = left.first() {
                            out.step(element.clone(), parts.item(), Some(old), None);
                        }
                        out.added.members.insert(element);
                    }
                }
            }
        }
    }
    gone_or_new
}

/// Whether two values are the same: numbers by what they count.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a, b), (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64())
}

/// What `old` becomes when `config` is laid over it.
pub(super) fn merge(place: Place<'_>, old: &Value, config: &Value) -> Result<Value, String> {
    Ok(lay(place, Some(old), Some(config))?.unwrap_or_default())
}

fn lay(place: Place<'_>, old: Option<&Value>, new: Option<&Value>) -> Result<Option<Value>, String> {
    let parts = place.parts(new.or(old));
    let whole = || new.or(old).cloned();
    let fits = |value: Option<&Value>| match (&parts, value) {
        (_, None | Some(Value::Null)) => true,
        (Parts::Fields(_) | Parts::Values(_), Some(value)) => value.is_object(),
        (_, Some(value)) => value.is_array(),
    };
    if matches!(parts, Parts::Leaf) || (!filled(old) && !filled(new)) || !fits(old) || !fits(new) {
        return Ok(whole());
    }
    if let Parts::Fields(_) | Parts::Values(_) = parts {
        let empty = Map::new();
        let a = old.and_then(Value::as_object).unwrap_or(&empty);
        let b = new.and_then(Value::as_object).unwrap_or(&empty);
        let mut out = Map::new();
        for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
            if let Some(value) = lay(parts.child(key).0, a.get(key), b.get(key))? {
                out.insert(key.clone(), value);
            }
        }
        return Ok((!out.is_empty()).then_some(Value::Object(out)));
    }
    lay_list(&parts, old, new)
}

/// Lists: the new order for what the configuration names; the rest stays where it was, before what came after it.
fn lay_list(parts: &Parts<'_>, old: Option<&Value>, new: Option<&Value>) -> Result<Option<Value>, String> {
    let steps = |list: Option<&Value>| -> Result<Vec<(Element, Value)>, String> {
        let items = list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let element = parts.element(item).map_err(|why| format!("element {index}: {why}"))?;
                Ok((element, item.clone()))
            })
            .collect()
    };
    let (left, right) = (steps(old)?, steps(new)?);
    for (index, (element, _)) in right.iter().enumerate() {
        if right[..index].iter().any(|(other, _)| other == element) {
            return Err(format!("duplicate entries for key {element}"));
        }
    }
    let in_right = |element: &Element| right.iter().find(|(other, _)| other == element).map(|(_, item)| item);
    // What is there twice has no value that could be merged with.
    let in_left = |element: &Element| {
        let mut found = left.iter().filter(|(other, _)| other == element);
        let first = found.next();
        if found.next().is_some() { None } else { first.map(|(_, item)| item) }
    };
    let known = |element: &Element| left.iter().any(|(other, _)| other == element);
    let mut shared = right.iter().map(|(element, _)| element).filter(|element| known(element));
    let mut next_shared = shared.next();
    let mut merged: Vec<&Element> = Vec::new();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            let element = &left[l].0;
            if *element == right[r].0 {
                merged.push(element);
                out.extend(lay(parts.item(), in_left(element), in_right(element))?);
                (l, r) = (l + 1, r + 1);
                next_shared = shared.next();
                continue;
            }
            if in_right(element).is_some() && next_shared.is_some_and(|next| next != element) {
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            let (element, item) = &left[l];
            if in_right(element).is_none() {
                out.extend(lay(parts.item(), Some(item), None)?);
                l += 1;
                continue;
            }
            if merged.contains(&element) {
                l += 1;
            }
        }
        if r < right.len() {
            let (element, item) = &right[r];
            merged.push(element);
            out.extend(lay(parts.item(), in_left(element), Some(item))?);
            r += 1;
            if next_shared == Some(element) {
                next_shared = shared.next();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

/// What is left of a value without some fields; null if nothing is.
pub(super) fn remove(place: Place<'_>, value: &Value, without: &Set) -> Value {
    let parts = place.parts(Some(value));
    match (&parts, value) {
        (Parts::Fields(_) | Parts::Values(_), Value::Object(map)) => {
            let mut out = Map::new();
            for (key, value) in map {
                let element = name(key);
                if without.members.contains(&element) {
                    continue;
                }
                let left = match without.children.get(&element) {
                    Some(below) => remove(parts.child(key).0, value, below),
                    None => value.clone(),
                };
                out.insert(key.clone(), left);
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        (Parts::Set | Parts::Keyed(..), Value::Array(items)) => {
            let mut out = Vec::new();
            for item in items {
                let element = parts.element(item).ok();
                if element.as_ref().is_some_and(|element| without.members.contains(element)) {
                    continue;
                }
                match element.and_then(|element| without.children.get(&element)) {
                    Some(below) => out.push(remove(parts.item(), item, below)),
                    None => out.push(item.clone()),
                }
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        (Parts::Leaf, Value::Object(_) | Value::Array(_)) => Value::Null,
        (Parts::Leaf, scalar) => scalar.clone(),
        _ => Value::Null,
    }
}

/// The set with each named field of a type that has something below it.
pub(super) fn named_too(place: Place<'_>, set: &Set) -> Set {
    let shape = match place {
        Place::Root(of) => return named_of(Some(of), None, set),
        Place::Within(shape, _) => shape,
    };
    match shape {
        Shape::Object(inner) => named_of(Some(inner.get()), None, set),
        Shape::List(items) | Shape::Map(items) => named_of(None, Some(items), set),
        _ => named_of(None, None, set),
    }
}

fn named_of(of: Option<&Type>, values: Option<&Shape>, set: &Set) -> Set {
    let mut out = Set { members: set.members.clone(), ..Set::default() };
    for (element, below) in &set.children {
        let field = match (element, of) {
            (Element::Field(name), Some(of)) => of.field(name),
            _ => None,
        };
        if field.is_some() {
            out.members.insert(element.clone());
        }
        let shape = field.map(|field| &field.shape).or(values).unwrap_or(&ANY);
        out.put(element.clone(), named_too(Place::item(shape), below));
    }
    out
}
