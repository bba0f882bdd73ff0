//! Pods.

use super::AGE;
use crate::kind::{Column, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{decode, duration};

/// The entry of Pod.
pub static POD: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    list_kind: "PodList",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "log", "binding", "eviction"],
    generation: true,
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::core::v1::Pod>,
    strategy: Strategy::WITH_STATUS,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};
