//! Patches as pure functions: JSON merge patch, JSON patch, and Kubernetes' strategic merge patch.

use json_patch::PatchOperation;
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
    /// What kube-apiserver has no better word for than an internal error: 500.
    #[error("{0}")]
    Broken(String),
    /// The patch is well-formed and does not fit the object: 422.
    #[error("{0}")]
    Unapplicable(String),
}

/// RFC 7386. The patch of an object must be an object.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("a merge patch must be a JSON object".into()));
    }
    json_patch::merge(object, patch);
    Ok(())
}

/// The most operations of one JSON patch, as in kube-apiserver (`maxJSONPatchOperations`).
const OPERATIONS: usize = 10_000;
/// The most bytes that they may copy and move in all. A copy of what was copied doubles it each time; kube-apiserver sets
/// such a limit too (`AccumulatedCopySizeLimit`).
const COPIED: usize = 3 << 20;

/// RFC 6902. The object is unchanged if any operation fails, or would let it grow or nest without bound.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    // What is no operation at all is refused like one that can't be carried out.
    let json_patch::Patch(mut operations) =
        serde_json::from_value(patch.clone()).map_err(|e| PatchError::Unapplicable(e.to_string()))?;
    if operations.len() > OPERATIONS {
        let text =
            format!("{} operations in a JSON patch: at most {OPERATIONS} are carried out", operations.len());
        return Err(PatchError::Malformed(text));
    }
    let mut new = object.clone();
    let mut left = COPIED;
    for (index, operation) in operations.iter_mut().enumerate() {
        // A field that isn't there is replaced by being added (evanphx/json-patch v4, which Kubernetes uses).
        if let PatchOperation::Replace(replace) = operation
            && new.pointer(replace.path.as_str()).is_none()
            && replace
                .path
                .split_back()
                .is_some_and(|(parent, _)| new.pointer(parent.as_str()).is_some_and(Value::is_object))
        {
            let (path, value) = (replace.path.clone(), replace.value.clone());
            *operation = PatchOperation::Add(json_patch::AddOperation { path, value });
        }
        let operation = &*operation;
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
        json_patch::patch(&mut new, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            PatchError::Unapplicable(error.to_string())
        })?;
    }
    *object = new;
    Ok(())
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
