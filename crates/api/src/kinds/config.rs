//! ConfigMaps, Secrets and ServiceAccounts.

use super::AGE;
use crate::kind::{Column, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{decode, duration};

/// The entry of ConfigMap.
pub static CONFIG_MAP: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    list_kind: "ConfigMapList",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    generation: false,
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::core::v1::ConfigMap>,
    strategy: Strategy::PLAIN,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};

/// The entry of Secret.
pub static SECRET: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Secret",
    list_kind: "SecretList",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    generation: false,
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::core::v1::Secret>,
    strategy: Strategy::PLAIN,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};

/// The entry of ServiceAccount.
pub static SERVICE_ACCOUNT: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    list_kind: "ServiceAccountList",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    generation: false,
    names: NameRule::Subdomain,
    decode: decode::strictly::<k8s_openapi::api::core::v1::ServiceAccount>,
    strategy: Strategy::PLAIN,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
};
