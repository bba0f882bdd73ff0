//! Patches as pure functions: JSON merge patch, JSON patch, and Kubernetes' strategic merge patch.

use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::mergekeys;

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
}

/// RFC 7386. The patch of an object must be an object.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("a merge patch must be a JSON object".into()));
    }
    json_patch::merge(object, patch);
    Ok(())
}

/// RFC 6902. The object is unchanged if any operation fails.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| PatchError::Malformed(e.to_string()))?;
    json_patch::patch(object, &patch).map_err(|e| PatchError::Unapplicable(e.to_string()))
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
    if strategic::merge_map(&mut copy, patch, mergekeys::shape(kind.kind))? == strategic::Fate::Gone {
        copy.clear();
    }
    *object = Value::Object(copy);
    Ok(())
}

#[cfg(test)]
mod tests;
