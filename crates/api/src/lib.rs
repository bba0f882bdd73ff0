//! Knows what objects mean, never where they are kept or who asks: no async, no I/O.
//!
//! Absent on purpose: typed structs as the model. Objects are `serde_json::Value`, so that a field this version does not
//! know survives a read and a write; the typed structs of `k8s-openapi` only check what comes in.
