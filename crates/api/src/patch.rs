//! Patches as pure functions: JSON merge patch, JSON patch, and Kubernetes' strategic merge patch.

use json_patch::{AddOperation, PatchOperation};
use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::{schema, walk};

mod strategic;

/// Why a patch could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well-formed and does not fit the object: 422.
    #[error("{0}")]
    Unapplicable(String),
    /// Kubernetes has no better word for it than an error of its own: 500.
    #[error("{0}")]
    Unexpected(String),
}

/// RFC 7386. The patch of an object must be an object.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            crate::strict::word(patch)
        )));
    };
    if let Value::Object(target) = object {
        merge_map(target, patch);
    } else {
        *object = unnulled(&Value::Object(patch.clone()));
    }
    Ok(())
}

/// As Kubernetes' library has it (`gopkg.in/evanphx/json-patch.v4`), nulls are left out also of objects in lists, but for a list
/// in the place of an object.
fn merge_map(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match (target.get_mut(key), value) {
            (_, Value::Null) => {
                target.shift_remove(key);
            }
            (Some(Value::Object(there)), Value::Object(patch)) => merge_map(there, patch),
            (Some(there @ Value::Object(_)), value) => *there = value.clone(),
            (_, value) => {
                target.insert(key.clone(), unnulled(value));
            }
        }
    }
}

/// A value without the members of its objects that are null.
pub fn unnulled(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let fields = map.iter().filter(|(_, field)| !field.is_null());
            fields.map(|(name, field)| (name.clone(), unnulled(field))).collect()
        }
        Value::Array(items) => items.iter().map(unnulled).collect(),
        other => other.clone(),
    }
}

/// The most operations of one JSON patch, as in kube-apiserver (`maxJSONPatchOperations`).
const OPERATIONS: usize = 10_000;
/// The most bytes that they may copy and move in all. A copy of what was copied doubles it each time; kube-apiserver sets
/// such a limit too (`AccumulatedCopySizeLimit`).
const COPIED: usize = 3 << 20;

/// RFC 6902. The object is unchanged if any operation fails, or would let it grow or nest without bound.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let malformed = !patch.as_array().is_some_and(|operations| operations.iter().all(Value::is_object));
    let mut patch = patch.clone();
    for operation in patch.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        // A value that isn't there is null, to Kubernetes' library.
        if matches!(operation.get("op").and_then(Value::as_str), Some("add" | "replace" | "test")) {
            operation.entry("value").or_insert(Value::Null);
        }
    }
    let json_patch::Patch(operations) = serde_json::from_value(patch).map_err(|e| match malformed {
        true => PatchError::Malformed(e.to_string()),
        // An operation that isn't known, or has no path, is one that can't be carried out.
        false => PatchError::Unapplicable(e.to_string()),
    })?;
    if operations.len() > OPERATIONS {
        let text =
            format!("{} operations in a JSON patch: at most {OPERATIONS} are carried out", operations.len());
        return Err(PatchError::Malformed(text));
    }
    let mut new = object.clone();
    let mut left = COPIED;
    for (index, operation) in operations.iter().enumerate() {
        let (value, copied) = match operation {
            PatchOperation::Add(add) => (Some(&add.value), false),
            PatchOperation::Replace(replace) => (Some(&replace.value), false),
            PatchOperation::Move(r#move) => (new.pointer(r#move.from.as_str()), true),
            PatchOperation::Copy(copy) => (new.pointer(copy.from.as_str()), true),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => (None, false),
        };
        if let Some(value) = value {
            let depth = walk::DEPTH.checked_sub(operation.path().count());
            let Some(size) = depth.and_then(|depth| walk::size(value, depth)) else {
                let text =
                    format!("operation {index} nests the object more than {} levels deep", walk::DEPTH);
                return Err(PatchError::Unapplicable(text));
            };
            left = match left.checked_sub(if copied { size } else { 0 }) {
                Some(left) => left,
                None => {
                    let text = format!(
                        "operations 0 to {index} copy more than {COPIED} bytes; send a smaller patch"
                    );
                    return Err(PatchError::Unapplicable(text));
                }
            };
        }
        // As Kubernetes' library has it, a member that isn't there is null, and can be replaced.
        let made = match operation {
            PatchOperation::Test(test)
                if test.value.is_null() && is_missing_member(&new, test.path.as_str()) =>
            {
                continue;
            }
            PatchOperation::Replace(replace) if is_missing_member(&new, replace.path.as_str()) => {
                let add = AddOperation { path: replace.path.clone(), value: replace.value.clone() };
                Some(PatchOperation::Add(add))
            }
            _ => None,
        };
        let operation = made.as_ref().unwrap_or(operation);
        json_patch::patch(&mut new, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            PatchError::Unapplicable(error.to_string())
        })?;
    }
    *object = new;
    Ok(())
}

fn is_missing_member(object: &Value, path: &str) -> bool {
    let parent = path.rsplit_once('/').map(|(parent, _)| parent);
    object.pointer(path).is_none() && parent.and_then(|p| object.pointer(p)).is_some_and(Value::is_object)
}

/// Kubernetes' strategic merge patch for an object of this kind. The object is unchanged if the patch does not fit.
pub fn strategic(object: &mut Value, patch: &Value, kind: &Kind) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("a strategic merge patch must be a JSON object".into()));
    };
    let mut copy = match &*object {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    let known = schema::of_kind(kind);
    let ground = known.as_ref().map_or(strategic::Ground::Bare, |known| strategic::Ground::Type(known.get()));
    if strategic::merge_map(&mut copy, patch, ground)? == strategic::Fate::Gone {
        copy.clear();
    }
    *object = Value::Object(copy);
    Ok(())
}

#[cfg(test)]
mod tests;
