//! How lists and maps of each kind merge under a strategic merge patch: facts of the Kubernetes API, as a table.
