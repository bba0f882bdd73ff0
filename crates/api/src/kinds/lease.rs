//! Leases.

use super::AGE;
use crate::kind::{Column, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{decode, duration};

/// The entry of Lease.
pub static LEASE: Kind = Kind {
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
    decode: decode::strictly::<k8s_openapi::api::coordination::v1::Lease>,
    strategy: Strategy::PLAIN,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};
