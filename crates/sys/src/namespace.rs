//! Making and entering namespaces.
