//! ConfigMaps, Secrets and ServiceAccounts: what pods are given.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{duration, walk};

/// What a ConfigMap or Secret may hold together.
const MAX_SIZE: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

/// The entry of ConfigMap.
pub static CONFIG_MAP: Kind = Kind::Listed(&Entry {
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
    conversion: None,
    strategy: Strategy {
        validate: validate_config_map,
        validate_update: |new, old| {
            let mut errors = Vec::new();
            frozen(&mut errors, new, old, &["data", "binaryData"]);
            errors.extend(validate_config_map(new));
            errors
        },
        ..Strategy::PLAIN
    },
    fields: &[],
    columns: &[
        Column::object_name(),
        Column::new("Data", "string", "How many values it holds."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let count = walk::map(o, "data").len() + walk::map(o, "binaryData").len();
        vec![meta::name(o).into(), count.into(), duration::age(o, now).into()]
    },
});

/// The entry of Secret.
pub static SECRET: Kind = Kind::Listed(&Entry {
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
    conversion: None,
    strategy: Strategy {
        default: default_secret,
        validate: validate_secret,
        validate_update: |new, old| {
            let mut errors = Vec::new();
            let kind = walk::text(new, "type");
            if kind != walk::text(old, "type") {
                errors.push(FieldError::invalid("type", kind, "field is immutable"));
            }
            frozen(&mut errors, new, old, &["data"]);
            // All rules of new ones are asked again.
            let base = walk::text(new, "metadata.generateName");
            if !base.is_empty() {
                let faults = meta::subdomain_faults(base.strip_suffix('-').unwrap_or(base));
                errors.extend(meta::findings("metadata.generateName", base, faults));
            }
            errors.extend(validate_secret(new));
            errors
        },
        warnings: |new, _| unreadable_pair(new),
        ..Strategy::PLAIN
    },
    fields: &[("type", |o| walk::text(o, "type").to_owned())],
    columns: &[
        Column::object_name(),
        Column::new("Type", "string", "What the values are for."),
        Column::new("Data", "string", "How many values it holds."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let count = walk::map(o, "data").len();
        vec![meta::name(o).into(), walk::text(o, "type").into(), count.into(), duration::age(o, now).into()]
    },
});

/// The entry of ServiceAccount.
pub static SERVICE_ACCOUNT: Kind = Kind::Listed(&Entry {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    list_kind: "ServiceAccountList",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    namespaced: true,
    subresources: &["token"],
    generation: false,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy::PLAIN,
    fields: &[],
    columns: &[Column::object_name(), Column::new("Age", "string", AGE)],
    cells: |o, now| vec![meta::name(o).into(), duration::age(o, now).into()],
});

fn keys(errors: &mut Vec<FieldError>, object: &Value, field: &str) -> usize {
    let mut size = 0;
    for (key, value) in walk::map(object, field) {
        errors.extend(meta::findings(&format!("{field}[{key}]"), key, meta::config_key_faults(key)));
        size += value.as_str().map_or(0, str::len);
    }
    size
}

fn validate_config_map(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = keys(&mut errors, object, "data");
    // Three bytes are four letters of base64.
    size += keys(&mut errors, object, "binaryData") / 4 * 3;
    for key in walk::map(object, "data").keys() {
        if walk::map(object, "binaryData").contains_key(key) {
            errors.push(FieldError::invalid(
                format!("data[{key}]"),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
    }
    if size > MAX_SIZE {
        errors.push(FieldError::too_long("", MAX_SIZE));
    }
    errors
}

/// Plain texts become data, which is what is stored and read.
fn default_secret(object: &mut Value) {
    walk::default(object, "type", "Opaque");
    if let Some(Value::Object(plain)) = walk::remove(object, "stringData")
        && let Some(data) = walk::map_mut(object, "data")
    {
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
        }
    }
}

fn validate_secret(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if keys(&mut errors, object, "data") / 4 * 3 > MAX_SIZE {
        errors.push(FieldError::too_long("data", MAX_SIZE));
    }
    let data = walk::map(object, "data");
    let mut needed = |keys: &[&str]| {
        for key in keys.iter().filter(|key| !data.contains_key(**key)) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match walk::text(object, "type") {
        "kubernetes.io/service-account-token" => {
            const OWNER: &str = "kubernetes.io/service-account.name";
            if meta::annotation(object, OWNER).is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("metadata.annotations[{OWNER}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => needed(&[".dockercfg"]),
        "kubernetes.io/dockerconfigjson" => needed(&[".dockerconfigjson"]),
        "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
            needed(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" => needed(&["ssh-privatekey"]),
        "kubernetes.io/tls" => needed(&["tls.crt", "tls.key"]),
        _ => {}
    }
    errors
}

/// What is named a certificate and isn't one.
fn unreadable_pair(secret: &Value) -> Vec<String> {
    if walk::text(secret, "type") != "kubernetes.io/tls" {
        return Vec::new();
    }
    let data = walk::map(secret, "data");
    let pair = ["tls.crt", "tls.key"].map(|key| data.get(key).and_then(Value::as_str).unwrap_or(""));
    if pair.iter().any(|part| part.is_empty()) {
        return Vec::new();
    }
    let bare = |part: &str| {
        let text = STANDARD.decode(part).unwrap_or_default();
        !text.windows(11).any(|line| line == b"-----BEGIN ")
    };
    let missing = ["certificate", "key"].into_iter().zip(pair).find(|(_, part)| bare(part));
    missing.map(|(what, _)| format!("tls: failed to find any PEM data in {what} input")).into_iter().collect()
}

fn frozen(errors: &mut Vec<FieldError>, new: &Value, old: &Value, fields: &[&str]) {
    if walk::flag(old, "immutable") != Some(true) {
        return;
    }
    if walk::flag(new, "immutable") != Some(true) {
        errors.push(FieldError::forbidden("immutable", FROZEN));
    }
    for field in fields {
        if walk::map(new, field) != walk::map(old, field) {
            errors.push(FieldError::forbidden(*field, FROZEN));
        }
    }
}
