//! Leases.

use serde_json::Value;

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{duration, walk};

/// The entry of Lease.
pub static LEASE: Kind = Kind::Listed(&Entry {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    list_kind: "LeaseList",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    generation: false,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy { default, validate, validate_update: |new, _| validate(new), ..Strategy::PLAIN },
    fields: &[],
    columns: &[
        Column::object_name(),
        Column::new("Holder", "string", "Who holds the lease."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        vec![meta::name(o).into(), walk::text(o, "spec.holderIdentity").into(), duration::age(o, now).into()]
    },
});

/// Elections that the server holds are off by default in Kubernetes (CoordinatedLeaderElection), and so are their fields.
fn default(object: &mut Value) {
    walk::remove(object, "spec.strategy");
    walk::remove(object, "spec.preferredHolder");
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(n) = walk::int(object, "spec.leaseDurationSeconds").filter(|n| *n <= 0) {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", n, "must be greater than 0"));
    }
    if let Some(n) = walk::int(object, "spec.leaseTransitions").filter(|n| *n < 0) {
        errors.push(FieldError::invalid("spec.leaseTransitions", n, "must be greater than or equal to 0"));
    }
    errors
}
