//! Nodes.

use super::AGE;
use crate::kind::{Column, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{decode, duration};

/// The entry of Node.
pub static NODE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    list_kind: "NodeList",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    subresources: &["status"],
    generation: false,
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::core::v1::Node>,
    strategy: Strategy::WITH_STATUS,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};
