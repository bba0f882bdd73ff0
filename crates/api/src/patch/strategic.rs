//! The merge itself: objects field by field, lists by their merge key, and the directives that say otherwise.

use serde_json::{Map, Value};

use super::PatchError;
use crate::fielderror::go_value;
use crate::schema::{Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// What becomes of an object under a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Gone,
}

/// What is known of the fields of an object.
#[derive(Clone, Copy)]
pub(super) enum Ground<'a> {
    /// They are those of a type.
    Type(&'a Type),
    /// All are of one shape.
    Values(&'a Shape),
    /// Nothing: objects merge field by field, lists are replaced.
    Bare,
}

/// How a field merges, if it isn't just replaced.
#[derive(Clone, Copy)]
enum Rule<'a> {
    /// An object, field by field.
    Map(Ground<'a>),
    /// A list of objects that are the same if this field is.
    List(&'a str, Ground<'a>),
    /// A list of texts that is a set.
    Set,
    /// Whole, whatever it is.
    Whole,
}

impl<'a> Ground<'a> {
    fn of(shape: &'a Shape) -> Ground<'a> {
        match shape {
            Shape::Object(inner) => Ground::Type(inner.get()),
            Shape::Map(values) => Ground::Values(values),
            _ => Ground::Bare,
        }
    }

    fn rule(self, name: &str) -> Option<Rule<'a>> {
        let (shape, patch) = match self {
            Ground::Bare => return None,
            Ground::Values(shape) => (shape, None),
            Ground::Type(known) => {
                let field = known.field(name)?;
                (&field.shape, field.patch.as_ref())
            }
        };
        match (shape, patch) {
            (_, Some(patch)) if patch.replace => Some(Rule::Whole),
            (Shape::List(items), Some(patch)) if patch.merge && !patch.key.is_empty() => {
                Some(Rule::List(&patch.key, Ground::of(items)))
            }
            (Shape::List(_), Some(patch)) if patch.merge => Some(Rule::Set),
            (Shape::List(_), _) => None,
            (shape, _) => Some(Rule::Map(Ground::of(shape))),
        }
    }
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

fn broken(text: String) -> PatchError {
    PatchError::Unexpected(text)
}

/// The type that Go gives a value of which nothing is known.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn directive(patch: &Map<String, Value>) -> Result<Option<&str>, PatchError> {
    match patch.get(DIRECTIVE) {
        None => Ok(None),
        Some(Value::String(word)) if matches!(word.as_str(), "merge" | "replace" | "delete") => {
            Ok(Some(word))
        }
        Some(other) => Err(broken(format!(
            "unknown patch type: {} in map: {}",
            go_value(other),
            go_value(&Value::Object(patch.clone()))
        ))),
    }
}

/// A value that a patch adds where nothing of its sort was: taken as it is, without the objects in it that are words to the
/// merge, and without nulls in objects (strategicpatch's `removeDirectives` and `discardNullValuesFromPatch`).
fn undirected(value: &Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let fields = map.iter().filter(|(_, field)| !field.is_null());
            Some(fields.filter_map(|(name, field)| Some((name.clone(), undirected(field)?))).collect())
        }
        Value::Array(items) => Some(items.iter().filter_map(undirected).collect()),
        other => Some(other.clone()),
    }
}

/// Merges a patch into an object.
pub(super) fn merge_map(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    shape: Ground<'_>,
) -> Result<Fate, PatchError> {
    match directive(patch)? {
        // Where there is an object to delete, Kubernetes leaves an empty one.
        Some("delete") => {
            target.clear();
            return Ok(Fate::Gone);
        }
        Some("replace") => {
            target.clear();
            for (key, value) in patch.iter().filter(|(key, _)| *key != DIRECTIVE) {
                target.insert(key.clone(), value.clone());
            }
            return Ok(Fate::Kept);
        }
        _ => {}
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        let keep: Vec<&str> = keep
            .as_array()
            .ok_or_else(|| malformed(format!("{RETAIN_KEYS} must be a list of field names")))?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for (key, value) in patch {
            if !key.starts_with('$') && !value.is_null() && !keep.contains(&key.as_str()) {
                // A field that is set is not among those that are kept.
                return Err(malformed("invalid patch format of retainKeys".to_owned()));
            }
        }
        target.retain(|key, _| keep.contains(&key.as_str()));
    }
    // What is to be put in order has to be a list, there and in the patch.
    for field in patch.keys().filter_map(|key| key.strip_prefix(ORDER)) {
        let both = [target.get(field), patch.get(field)];
        if let Some(other) = both.into_iter().flatten().find(|value| !value.is_array()) {
            return Err(broken(format!("expected a []interface {{}}, but received a {}", go_kind(other))));
        }
    }
    if let (Ground::Type(known), false) = (shape, target.is_empty())
        && let Some(field) =
            patch.keys().filter_map(|key| key.strip_prefix(ORDER)).find(|field| known.field(field).is_none())
    {
        let name = known.name.rsplit(['/', '.']).next().unwrap_or_default();
        return Err(broken(format!(
            "unable to find api field in struct {name} for the json field {field:?}"
        )));
    }
    // An order is about the list as it was and as it will be.
    let ordered = patch.keys().filter_map(|key| key.strip_prefix(ORDER));
    let before: Map<String, Value> =
        ordered.filter_map(|field| Some((field.to_owned(), target.get(field)?.clone()))).collect();
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(ORDER) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            let gone = value.as_array().ok_or_else(|| malformed(format!("{key} must be a list")))?;
            if let Some(Value::Array(items)) = target.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        let rule = shape.rule(key);
        match (target.get_mut(key), value) {
            (_, Value::Null) => {
                target.shift_remove(key);
            }
            (Some(Value::Object(there)), Value::Object(patch)) if !matches!(rule, Some(Rule::Whole)) => {
                let shape = match rule {
                    Some(Rule::Map(shape)) => shape,
                    _ => Ground::Bare,
                };
                merge_map(there, patch, shape)?;
            }
            (Some(Value::Array(there)), Value::Array(patch)) => match rule {
                Some(Rule::List(merge_key, shape)) => merge_list(there, patch, merge_key, shape)?,
                Some(Rule::Set) => merge_set(there, patch),
                _ => *there = patch.clone(),
            },
            (_, value) => match undirected(value) {
                Some(value) => {
                    target.insert(key.clone(), value);
                }
                None => {
                    target.shift_remove(key);
                }
            },
        }
    }
    for (key, order) in patch {
        let Some(field) = key.strip_prefix(ORDER) else { continue };
        let order = order.as_array().ok_or_else(|| malformed(format!("{key} must be a list")))?;
        let patched = patch.get(field).and_then(Value::as_array);
        if let Some(Value::Array(items)) = target.get_mut(field) {
            let merge_key = match shape.rule(field) {
                Some(Rule::List(merge_key, _)) => Some(merge_key),
                _ => None,
            };
            check_order(order, patched, merge_key)?;
            let before = before.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            arrange(items, order, before, merge_key);
        }
    }
    Ok(Fate::Kept)
}

fn merge_set(target: &mut Vec<Value>, patch: &[Value]) {
    let before = target.clone();
    for item in patch {
        if !target.contains(item) {
            target.push(item.clone());
        }
    }
    arrange(target, patch, &before, None);
}

fn merge_list(
    target: &mut Vec<Value>,
    patch: &[Value],
    merge_key: &str,
    shape: Ground<'_>,
) -> Result<(), PatchError> {
    let mut items = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(map) = item else {
            let (there, patch) = (Value::Array(target.clone()), Value::Array(patch.to_vec()));
            return Err(broken(format!(
                "list element types are not identical: [{} {}]",
                go_value(&there),
                go_value(&patch)
            )));
        };
        let word = directive(map)?;
        // In an item, the word is about the whole list, and the item is no more than its bearer.
        if word == Some("replace") {
            replace = true;
            continue;
        }
        let Some(id) = map.get(merge_key) else {
            let item = go_value(item);
            let text = format!("map: {item} does not contain declared merge key: {merge_key}");
            return Err(PatchError::Unexpected(text));
        };
        if word == Some("delete") {
            target.retain(|there| there.get(merge_key) != Some(id));
        } else {
            items.push((id, map, item.clone()));
        }
    }
    if replace {
        target.clear();
    }
    if let Some(bare) = target.iter().find(|item| item.get(merge_key).is_none()) {
        let text = format!("map: {} does not contain declared merge key: {merge_key}", go_value(bare));
        return Err(PatchError::Unexpected(text));
    }
    let before = target.clone();
    for (id, map, _) in &items {
        match target.iter_mut().find(|there| there.get(merge_key) == Some(*id)) {
            Some(Value::Object(there)) => {
                merge_map(there, map, shape)?;
            }
            // A new item is taken as it is, with what is null in it.
            _ => target.push(Value::Object((*map).clone())),
        }
    }
    let order: Vec<Value> = items.into_iter().map(|(_, _, item)| item).collect();
    arrange(target, &order, &before, Some(merge_key));
    Ok(())
}

fn identity<'a>(item: &'a Value, merge_key: Option<&str>) -> Option<&'a Value> {
    match merge_key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

/// The order must place every item that the patch sets, in the patch's own order (strategicpatch, `validatePatchWithSetOrderList`).
fn check_order(
    order: &[Value],
    patched: Option<&Vec<Value>>,
    merge_key: Option<&str>,
) -> Result<(), PatchError> {
    let mut rest = order.iter().filter_map(|o| identity(o, merge_key));
    for item in patched.into_iter().flatten() {
        if item.get(DIRECTIVE).is_some() {
            continue;
        }
        let id = identity(item, merge_key);
        if !rest.any(|o| Some(o) == id) {
            return Err(broken(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_value(&Value::Array(patched.cloned().unwrap_or_default())),
                go_value(&Value::Array(order.to_vec()))
            )));
        }
    }
    Ok(())
}

/// Items that the patch names stand as it names them. Between them, as far as that lets them, the others stay where they
/// were: each before the first named item that came after it.
fn arrange(items: &mut Vec<Value>, order: &[Value], before: &[Value], merge_key: Option<&str>) {
    let place = |list: &[Value], item: &Value| {
        let id = identity(item, merge_key)?;
        list.iter().position(|other| identity(other, merge_key) == Some(id))
    };
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.drain(..).partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(before, item));
    let mut others = others.into_iter().peekable();
    for item in named {
        if let Some(here) = place(before, &item) {
            while let Some(other) =
                others.next_if(|other| place(before, other).is_some_and(|there| there < here))
            {
                items.push(other);
            }
        }
        items.push(item);
    }
    items.extend(others);
}
