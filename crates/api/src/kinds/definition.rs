//! CustomResourceDefinition: what other kinds there are.

use crate::custom::definition;
use crate::kind::{Entry, Kind, Strategy, keep_all_but_status};

/// The entry of CustomResourceDefinition.
pub static CUSTOM_RESOURCE_DEFINITION: Kind = Kind::Listed(&Entry {
    namespaced: false,
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    subresources: &["status"],
    generation: true,
    strategy: Strategy {
        default: definition::default,
        prepare_create: definition::prepare_create,
        prepare_update: definition::prepare_update,
        prepare_status_update: keep_all_but_status,
        validate: definition::validate,
        validate_update: definition::validate_update,
        validate_status_update: definition::validate_status_update,
        warnings: definition::warnings,
        ..Strategy::WITH_STATUS
    },
    ..Entry::of(
        "apiextensions.k8s.io",
        "v1",
        ("CustomResourceDefinition", "CustomResourceDefinitionList"),
        ("customresourcedefinitions", "customresourcedefinition"),
    )
});
