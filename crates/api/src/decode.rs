//! Strict decoding: the typed structs say which fields do not exist and which values do not fit.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Decodes an object as `T` and drops the result: what is of interest are the paths of fields that `T` does not have, and
/// the first value that does not fit.
pub fn strictly<T: DeserializeOwned>(object: &Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    serde_ignored::deserialize::<_, _, T>(object, |path| unknown.push(path.to_string()))
        .map(|_| unknown)
        .map_err(|e| e.to_string())
}

/// Drops nulls, which mean "absent" to Kubernetes.
pub fn normalize(object: &mut Value) {
    match object {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(normalize);
        }
        Value::Array(items) => items.iter_mut().for_each(normalize),
        _ => {}
    }
}
