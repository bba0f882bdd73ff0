//! Which objects are meant: label selectors and field selectors, parsed from query strings and objects.

mod field;
mod label;

pub use field::FieldSelector;
pub use label::{LabelSelector, Operator, Requirement, validate as validate_object};

/// Why a selector is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);
