//! Reading and writing the fields of an object by path, where any part may be absent.

use serde_json::{Map, Value};

/// How deep an object may be nested. serde_json reads 128 levels, and an object travels inside lists and watch events: one
/// that is deeper could be written and never be read again, nor anything listed with it.
pub const DEPTH: usize = 100;

/// About how many bytes a value takes as JSON; none if it is nested more than `depth` levels deep.
pub fn size(value: &Value, depth: usize) -> Option<usize> {
    match value {
        Value::Object(map) => map
            .iter()
            .try_fold(2, |sum, (key, value)| Some(sum + key.len() + 4 + size(value, depth.checked_sub(1)?)?)),
        Value::Array(items) => {
            items.iter().try_fold(2, |sum, value| Some(sum + 1 + size(value, depth.checked_sub(1)?)?))
        }
        Value::String(text) => Some(text.len() + 2),
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(5),
    }
}

/// The value at a dotted path of object keys; none if any part is absent or null.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut here = value;
    for part in path.split('.') {
        here = here.as_object()?.get(part)?;
    }
    (!here.is_null()).then_some(here)
}

/// The text at a path, empty if absent.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or("")
}

/// The whole number at a path.
pub fn int(value: &Value, path: &str) -> Option<i64> {
    at(value, path).and_then(Value::as_i64)
}

/// The truth value at a path.
pub fn flag(value: &Value, path: &str) -> Option<bool> {
    at(value, path).and_then(Value::as_bool)
}

/// The list at a path, empty if absent.
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The object at a path, empty if absent.
pub fn map<'a>(value: &'a Value, path: &str) -> &'a Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    at(value, path).and_then(Value::as_object).unwrap_or(&EMPTY)
}

/// The value at a path for writing, if it is there and not null.
pub fn at_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut here = value;
    for part in path.split('.') {
        here = here.as_object_mut()?.get_mut(part)?;
    }
    (!here.is_null()).then_some(here)
}

/// The list at a path for writing, empty if absent.
pub fn list_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut [Value] {
    at_mut(value, path).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// The object at a path, made with its parents if absent. None if something else is in the way.
pub fn map_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut here = value;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
        here = here.as_object_mut()?.entry(part).or_insert(Value::Null);
    }
    if here.is_null() {
        *here = Value::Object(Map::new());
    }
    here.as_object_mut()
}

/// Writes a value at a path, making its parents; does nothing if something else is in the way.
pub fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    let (parent, last) = path.rsplit_once('.').unwrap_or(("", path));
    if let Some(map) = map_mut(value, parent) {
        map.insert(last.into(), new.into());
    }
}

/// Removes the value at a path.
pub fn remove(value: &mut Value, path: &str) -> Option<Value> {
    match path.rsplit_once('.') {
        None => value.as_object_mut()?.shift_remove(path),
        Some((parent, last)) => at_mut(value, parent)?.as_object_mut()?.shift_remove(last),
    }
}

/// Writes a value where there is none, or a null, or an empty text.
pub fn default(value: &mut Value, path: &str, new: impl Into<Value>) {
    let absent = match at(value, path) {
        None => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    };
    if absent {
        set(value, path, new);
    }
}
