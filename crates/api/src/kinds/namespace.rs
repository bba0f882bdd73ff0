//! Namespaces.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status};
use crate::meta::{self, NameRule};
use crate::{duration, walk};

/// The entry of Namespace.
pub static NAMESPACE: Kind = Kind::Listed(&Entry {
    group: "",
    version: "v1",
    kind: "Namespace",
    list_kind: "NamespaceList",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    subresources: &["status", "finalize"],
    generation: false,
    names: NameRule::Label,
    conversion: None,
    strategy: Strategy {
        default,
        prepare_create,
        prepare_update,
        prepare_status_update: keep_all_but_status,
        validate,
        validate_update: |new, _| {
            let mut errors = meta::validate_base(new, NameRule::Label);
            errors.extend(validate(new));
            errors
        },
        validate_status_update,
        ..Strategy::PLAIN
    },
    fields: &[
        ("name", |o| meta::name(o).to_owned()),
        ("status.phase", |o| walk::text(o, "status.phase").to_owned()),
    ],
    columns: &[
        Column::object_name(),
        Column::new("Status", "string", "The status of the namespace"),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        vec![meta::name(o).into(), walk::text(o, "status.phase").into(), duration::age(o, now).into()]
    },
});

/// A namespace carries its name as a label, so that selectors can mean it (KEP-2161).
fn default(object: &mut Value) {
    let name = meta::name(object).to_owned();
    if !name.is_empty()
        && let Some(labels) = walk::map_mut(object, "metadata.labels")
    {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
    if walk::at(object, "status").is_some() {
        walk::default(object, "status.phase", "Active");
    }
}

fn prepare_create(object: &mut Value) {
    walk::set(object, "status", json!({"phase": "Active"}));
    // Without it, deletion would not wait for the content.
    let mut finalizers = walk::list(object, "spec.finalizers").to_vec();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        finalizers.push("kubernetes".into());
    }
    walk::set(object, "spec.finalizers", finalizers);
}

fn prepare_update(new: &mut Value, old: &Value) {
    crate::kind::keep_status(new, old);
    if let (Some(map), Some(spec)) = (new.as_object_mut(), old.get("spec")) {
        map.insert("spec".into(), spec.clone());
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    const PATH: &str = "spec.finalizers";
    let mut errors = Vec::new();
    for finalizer in walk::list(object, PATH) {
        let text = finalizer.as_str().unwrap_or("");
        errors.extend(meta::findings(PATH, text, meta::qualified_faults(text)));
        errors.extend(meta::finalizer_domain_fault(PATH, text));
    }
    errors
}

fn validate_status_update(new: &Value, _: &Value) -> Vec<FieldError> {
    let phase = walk::text(new, "status.phase");
    let (allowed, text) = match meta::deletion_timestamp(new) {
        None => ("Active", "may only be 'Active' if `deletionTimestamp` is empty"),
        Some(_) => ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty"),
    };
    if phase == allowed { Vec::new() } else { vec![FieldError::invalid("status.Phase", phase, text)] }
}

/// The `finalize` subresource: of the stored namespace only `spec.finalizers` changes.
pub fn finalize(stored: &mut Value, asked: &Value) {
    let finalizers = walk::list(asked, "spec.finalizers").to_vec();
    if finalizers.is_empty() {
        walk::remove(stored, "spec.finalizers");
    } else {
        walk::set(stored, "spec.finalizers", finalizers);
    }
}

/// Deletion begins: from now on nothing new is admitted.
pub fn begin_deletion(object: &mut Value, now: Timestamp) {
    if meta::deletion_timestamp(object).is_none() {
        walk::set(object, "metadata.deletionTimestamp", meta::rfc3339(now));
    }
    walk::set(object, "status.phase", "Terminating");
}

/// Whether nobody holds the namespace any more and it can go.
pub fn may_go(object: &Value) -> bool {
    meta::deletion_timestamp(object).is_some()
        && walk::list(object, "spec.finalizers").is_empty()
        && meta::finalizers(object).is_empty()
}
