//! The connection table: list, delete.
