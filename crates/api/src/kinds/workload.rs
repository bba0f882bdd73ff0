//! Deployments and ReplicaSets.

use super::AGE;
use crate::kind::{Column, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{decode, duration};

/// The entry of Deployment.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    list_kind: "DeploymentList",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "scale"],
    generation: true,
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::apps::v1::Deployment>,
    strategy: Strategy::WITH_STATUS,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};

/// The entry of ReplicaSet.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    list_kind: "ReplicaSetList",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "scale"],
    generation: true,
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::apps::v1::ReplicaSet>,
    strategy: Strategy::WITH_STATUS,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};
