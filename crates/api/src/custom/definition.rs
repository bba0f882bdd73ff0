//! What a CustomResourceDefinition may say (apiextensions-apiserver `apis/apiextensions/validation`).
//!
//! What all versions say alike is held against the rules once, under the names that it had when there was one version:
//! `spec.validation`, `spec.subresources`, `spec.additionalPrinterColumns`, `spec.selectableFields`.

use serde_json::{Value, json};

use super::names;
use super::openapi::{self, Rules};
use super::path::Path;
use super::{formats, structural};
use crate::fielderror::FieldError;
use crate::meta;
use crate::walk;

/// Fills in what may be left out.
pub fn default(definition: &mut Value) {
    let kind = walk::text(definition, "spec.names.kind").to_owned();
    if walk::at(definition, "spec").is_none() {
        return;
    }
    if walk::text(definition, "spec.names.singular").is_empty() {
        walk::set(definition, "spec.names.singular", kind.to_lowercase());
    }
    if walk::text(definition, "spec.names.listKind").is_empty() && !kind.is_empty() {
        walk::set(definition, "spec.names.listKind", format!("{kind}List"));
    }
    if walk::at(definition, "spec.conversion").is_none() {
        walk::set(definition, "spec.conversion", json!({"strategy": "None"}));
    }
    if walk::at(definition, "spec.conversion.webhook.clientConfig.service").is_some() {
        walk::default(definition, "spec.conversion.webhook.clientConfig.service.port", 443);
    }
    if walk::list(definition, "status.storedVersions").is_empty() {
        store_version(definition);
    }
}

/// Counts the version that is stored now among those that may be.
pub fn store_version(definition: &mut Value) {
    let storage = versions(definition).iter().find(|v| walk::flag(v, "storage") == Some(true));
    let Some(name) = storage.map(|version| walk::text(version, "name").to_owned()) else { return };
    let mut stored = walk::list(definition, "status.storedVersions").to_vec();
    if !stored.iter().any(|version| *version == *name) {
        stored.push(name.into());
        walk::set(definition, "status.storedVersions", stored);
    }
}

/// The versions that a definition names.
pub fn versions(definition: &Value) -> &[Value] {
    walk::list(definition, "spec.versions")
}

/// A new definition has the status that it is given.
pub fn prepare_create(definition: &mut Value) {
    walk::set(definition, "status", json!({"acceptedNames": {"kind": "", "plural": ""}}));
    store_version(definition);
}

/// A changed one keeps its own.
pub fn prepare_update(new: &mut Value, old: &Value) {
    crate::kind::keep_status(new, old);
    store_version(new);
}

/// What is wrong with a new definition, metadata apart.
pub fn validate(definition: &Value) -> Vec<FieldError> {
    let mut errors = name(definition);
    errors.extend(spec(definition, None));
    errors.extend(status(definition));
    errors.extend(approval(definition, None));
    errors.extend(preserve(definition, None));
    errors
}

/// What is wrong with a changed one.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = spec(new, Some(old));
    let mut fixed = |path: &str| {
        if walk::at(new, path) != walk::at(old, path) {
            let value = walk::at(new, path).cloned().unwrap_or_else(|| "".into());
            errors.push(FieldError::invalid(path, value, "field is immutable"));
        }
    };
    if names::is(old, "Established") {
        fixed("spec.scope");
        fixed("spec.names.kind");
    }
    fixed("spec.group");
    fixed("spec.names.plural");
    errors.extend(status(new));
    errors.extend(approval(new, Some(old)));
    errors.extend(preserve(new, Some(old)));
    errors
}

/// What is wrong with a changed status.
pub fn validate_status_update(new: &Value, _: &Value) -> Vec<FieldError> {
    of_names(new, "status.acceptedNames")
}

/// What to say of a definition that is good.
pub fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(remarks).unwrap_or_default();
    let mut said = remarks(new);
    said.retain(|remark| !before.contains(remark));
    said
}

fn remarks(definition: &Value) -> Vec<String> {
    fn gather(schema: &Value, said: &mut Vec<String>) {
        let format = walk::text(schema, "format");
        if !formats::is_supported(walk::text(schema, "type"), format) {
            said.push(format!("unrecognized format {}", crate::fielderror::quote(format)));
        }
        structural::children(schema).into_iter().for_each(|child| gather(child, said));
    }
    let mut said = Vec::new();
    let mut ruled = false;
    let once = identical(definition, "schema");
    let all = versions(definition);
    for version in if once { all.get(..1).unwrap_or_default() } else { all } {
        if let Some(schema) = walk::at(version, "schema.openAPIV3Schema") {
            gather(schema, &mut said);
            let has_rules = |of: &Value| !walk::list(of, "x-kubernetes-validations").is_empty();
            ruled |= structural::any(schema, &has_rules);
        }
    }
    if ruled {
        said.push(
            "x-kubernetes-validations: the rules are kept, but objects are not held against them".into(),
        );
    }
    said
}

/// Whether all versions say the same in a field.
fn identical(definition: &Value, field: &str) -> bool {
    let mut all = versions(definition).iter().map(|version| walk::at(version, field));
    let first = all.next();
    all.all(|other| Some(other) == first)
}

/// Where what a version says in a field is named, and whether it is to be looked at there: what all say alike once.
fn place(definition: &Value, index: usize, field: &str, once: &str) -> Option<String> {
    match identical(definition, field) {
        true if index == 0 => Some(format!("spec.{once}")),
        true => None,
        false => Some(format!("spec.versions[{index}].{field}")),
    }
}

fn name(definition: &Value) -> Vec<FieldError> {
    let (plural, group) = (walk::text(definition, "spec.names.plural"), walk::text(definition, "spec.group"));
    let name = meta::name(definition);
    if name.is_empty() || name == format!("{plural}.{group}") {
        return Vec::new();
    }
    vec![FieldError::invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group")]
}

/// The versions as kube-apiserver's own form of them is shown.
fn shown(definition: &Value) -> Value {
    let all = versions(definition).iter().map(|version| {
        json!({
            "Name": walk::text(version, "name"), "Served": walk::flag(version, "served").unwrap_or(false),
            "Storage": walk::flag(version, "storage").unwrap_or(false),
            "Deprecated": walk::flag(version, "deprecated").unwrap_or(false),
            "DeprecationWarning": walk::at(version, "deprecationWarning"),
            "Schema": null, "Subresources": null, "AdditionalPrinterColumns": null, "SelectableFields": null,
        })
    });
    all.collect()
}

fn spec(definition: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let group = walk::text(definition, "spec.group");
    let faults = meta::subdomain_faults(group);
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !faults.is_empty() {
        errors.push(FieldError::invalid("spec.group", group, faults.join(",")));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
    }
    match walk::text(definition, "spec.scope") {
        "" => errors.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => errors.push(FieldError::not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    let all = versions(definition);
    let had_schemas = old.is_none_or(|old| {
        versions(old).iter().all(|version| walk::at(version, "schema.openAPIV3Schema").is_some())
    });
    for (index, version) in all.iter().enumerate() {
        let served = walk::flag(version, "served") == Some(true);
        if walk::at(version, "schema.openAPIV3Schema").is_none() && (had_schemas || served) {
            let why = if had_schemas { "" } else { "because otherwise all fields are pruned" };
            let place = format!("spec.versions[{index}].schema.openAPIV3Schema");
            errors.push(FieldError::required(place, why));
        }
    }
    let preserves = walk::flag(definition, "spec.preserveUnknownFields") == Some(true);
    let has_default = |schema: &Value| schema.get("default").is_some_and(|default| !default.is_null());
    let schemas = || all.iter().filter_map(|version| walk::at(version, "schema.openAPIV3Schema"));
    if preserves && schemas().any(|schema| structural::any(schema, &has_default)) {
        let why = "must be false in order to use defaults in the schema";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, why));
    }
    let rules = Rules::of(old);
    let any_status = all.iter().any(|version| walk::at(version, "subresources.status").is_some());
    let mut names: Vec<&str> = Vec::new();
    for (index, version) in all.iter().enumerate() {
        let name = walk::text(version, "name");
        names.push(name);
        let faults = meta::dns_1035_faults(name);
        if !faults.is_empty() {
            let place = format!("spec.versions[{index}].name");
            errors.push(FieldError::invalid(place, name, faults.join(",")));
        }
        errors.extend(deprecation(version, index));
        let own_status = walk::at(version, "subresources.status").is_some();
        if !identical(definition, "schema") {
            let path = format!("spec.versions[{index}].schema");
            errors.extend(openapi::validation(version, own_status, &path, &rules));
        }
        if !identical(definition, "subresources") {
            errors.extend(subresources(version, &format!("spec.versions[{index}].subresources")));
        }
        if !identical(definition, "additionalPrinterColumns") {
            errors.extend(columns(version, &format!("spec.versions[{index}].additionalPrinterColumns")));
        }
        if !identical(definition, "selectableFields") {
            errors.extend(selectable(version, &format!("spec.versions[{index}].selectableFields")));
        }
    }
    let unique = names.iter().enumerate().all(|(index, name)| !names[..index].contains(name));
    if !unique {
        let why = "must contain unique version names";
        errors.push(FieldError::invalid("spec.versions", shown(definition), why));
    }
    if all.iter().filter(|version| walk::flag(version, "storage") == Some(true)).count() != 1 {
        let value =
            if walk::at(definition, "spec.versions").is_none() { Value::Null } else { shown(definition) };
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", value, why));
    }
    // The first version had a name of its own, too.
    let faults = names.first().map(|name| meta::dns_1035_faults(name)).unwrap_or_default();
    if let Some(first) = names.first().filter(|name| !name.is_empty() && !faults.is_empty()) {
        errors.push(FieldError::invalid("spec.version", *first, faults.join(",")));
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        let path = format!("spec.names.{field}");
        if walk::text(definition, &path).is_empty() {
            errors.push(FieldError::required(path, ""));
        }
    }
    errors.extend(of_names(definition, "spec.names"));
    if let Some(version) = all.first() {
        if let Some(path) =
            place(definition, 0, "schema", "validation").filter(|_| identical(definition, "schema"))
        {
            errors.extend(openapi::validation(version, any_status, &path, &rules));
        }
        if identical(definition, "subresources") {
            errors.extend(subresources(version, "spec.subresources"));
        }
        if identical(definition, "additionalPrinterColumns") {
            errors.extend(columns(version, "spec.additionalPrinterColumns"));
        }
        if identical(definition, "selectableFields") {
            errors.extend(selectable(version, "spec.selectableFields"));
        }
    }
    errors.extend(conversion(definition));
    errors
}

fn deprecation(version: &Value, index: usize) -> Vec<FieldError> {
    let Some(text) = walk::at(version, "deprecationWarning").and_then(Value::as_str) else {
        return Vec::new();
    };
    let mut faults: Vec<String> = Vec::new();
    if walk::flag(version, "deprecated") != Some(true) {
        faults.push("can only be set for deprecated versions".into());
    } else {
        if text.len() > 256 {
            faults.push("must be <= 256 characters long".into());
        }
        if text.is_empty() {
            faults.push("must not be an empty string".into());
        }
        if let Some((at, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
            faults.push(format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {at}"
            ));
        }
    }
    let place = format!("spec.versions[{index}].deprecationWarning");
    faults.into_iter().map(|why| FieldError::invalid(&place, text, why)).collect()
}

/// The names of a definition, asked for or given.
fn of_names(definition: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut check = |place: String, text: &str, mixed: bool| {
        let lower = if mixed { text.to_lowercase() } else { text.to_owned() };
        let faults = meta::dns_1035_faults(&lower);
        if !text.is_empty() && !faults.is_empty() {
            let head = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(FieldError::invalid(place, text, format!("{head}{}", faults.join(","))));
        }
    };
    let name = |field: &str| walk::text(definition, &format!("{path}.{field}"));
    for (field, mixed) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        check(format!("{path}.{field}"), name(field), mixed);
    }
    for field in ["shortNames", "categories"] {
        for (index, text) in walk::list(definition, &format!("{path}.{field}")).iter().enumerate() {
            let text = text.as_str().unwrap_or_default();
            let faults = meta::dns_1035_faults(text);
            if !faults.is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}[{index}]"), text, faults.join(",")));
            }
        }
    }
    let (kind, list_kind) = (name("kind"), name("listKind"));
    if !kind.is_empty() && kind == list_kind {
        let at = errors.iter().position(|error| error.path.contains(".categories[")).unwrap_or(errors.len());
        let error = FieldError::invalid(
            format!("{path}.listKind"),
            list_kind,
            "kind and listKind may not be the same",
        );
        errors.insert(at, error);
    }
    errors
}

fn simple_path(text: &str, path: String, below: &[&str], why: &str) -> Option<FieldError> {
    if text.is_empty() {
        return Some(FieldError::required(path, ""));
    }
    if !text.starts_with('.') {
        return Some(FieldError::invalid(path, text, "must be a simple json path starting with ."));
    }
    let fits = below.is_empty() || below.iter().any(|root| text.starts_with(root));
    (!fits).then(|| FieldError::invalid(path, text, why))
}

fn subresources(version: &Value, path: &str) -> Vec<FieldError> {
    let Some(scale) = walk::at(version, "subresources.scale") else { return Vec::new() };
    let mut errors = Vec::new();
    let text = |field: &str| walk::text(scale, field);
    let spec = format!("{path}.scale.specReplicasPath");
    errors.extend(simple_path(
        text("specReplicasPath"),
        spec,
        &[".spec."],
        "should be a json path under .spec",
    ));
    let status = format!("{path}.scale.statusReplicasPath");
    let why = "should be a json path under .status";
    errors.extend(simple_path(text("statusReplicasPath"), status, &[".status."], why));
    let selector = text("labelSelectorPath");
    if !selector.is_empty() {
        let why = "should be a json path under either .spec or .status";
        let place = format!("{path}.scale.labelSelectorPath");
        errors.extend(simple_path(selector, place, &[".spec.", ".status."], why));
    }
    errors
}

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

fn columns(version: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, column) in walk::list(version, "additionalPrinterColumns").iter().enumerate() {
        let path = format!("{path}[{index}]");
        if walk::text(column, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        let (r#type, format) = (walk::text(column, "type"), walk::text(column, "format"));
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        if r#type.is_empty() {
            errors.push(FieldError::required(format!("{path}.type"), types));
        } else if !COLUMN_TYPES.contains(&r#type) {
            errors.push(FieldError::invalid(format!("{path}.type"), r#type, types));
        }
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let formats = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(FieldError::invalid(format!("{path}.format"), format, formats));
        }
        errors.extend(simple_path(walk::text(column, "jsonPath"), format!("{path}.JSONPath"), &[], ""));
    }
    errors
}

/// The most fields that can be selected by.
const SELECTABLE: usize = 8;

fn selectable(version: &Value, path: &str) -> Vec<FieldError> {
    let fields = walk::list(version, "selectableFields");
    let mut errors = Vec::new();
    let Some(schema) = walk::at(version, "schema.openAPIV3Schema").filter(|_| !fields.is_empty()) else {
        return errors;
    };
    let mut seen: Vec<&str> = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let place = format!("{path}[{index}].jsonPath");
        let text = walk::text(field, "jsonPath");
        if text.is_empty() {
            errors.push(FieldError::required(place, ""));
            continue;
        }
        let mut here = Some(schema);
        let mut fault = (!text.starts_with('.')).then(|| format!("expected [ or . but got: {text}"));
        let steps = text.strip_prefix('.').unwrap_or_default().split('.');
        for step in steps {
            if fault.is_some() {
                break;
            }
            if step.contains('[') || Path::parse(&format!(".{step}")).is_none() {
                fault = Some("array notation is not allowed".into());
                break;
            }
            here = here.and_then(|of| {
                let values = walk::at(of, "additionalProperties").filter(|of| of.is_object());
                walk::map(of, "properties").get(step).or(values)
            });
            if here.is_none() {
                fault = Some("does not refer to a valid field".into());
            }
        }
        if let Some(fault) = fault {
            errors.push(FieldError::invalid(place, text, format!("is an invalid path: {fault}")));
            continue;
        }
        if text == ".metadata" || text.starts_with(".metadata.") {
            errors.push(FieldError::invalid(&place, text, "must not point to fields in metadata"));
        }
        let its_type = here.map(|of| walk::text(of, "type")).unwrap_or_default();
        if !matches!(its_type, "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                       formats are allowed.";
            errors.push(FieldError::invalid(&place, text, why));
        }
        if seen.contains(&text) {
            errors.push(FieldError::duplicate(place, text));
        } else {
            seen.push(text);
        }
    }
    if seen.len() > SELECTABLE {
        errors.push(FieldError::too_many(path, seen.len(), SELECTABLE));
    }
    errors
}

fn conversion(definition: &Value) -> Vec<FieldError> {
    const PATH: &str = "spec.conversion";
    let mut errors = Vec::new();
    let webhook = walk::at(definition, "spec.conversion.webhook");
    match walk::text(definition, "spec.conversion.strategy") {
        "" if walk::at(definition, PATH).is_some() => {
            errors.push(FieldError::required(format!("{PATH}.strategy"), ""));
        }
        "Webhook" => {
            let config = webhook.and_then(|webhook| walk::at(webhook, "clientConfig"));
            let place = format!("{PATH}.webhookClientConfig");
            match config {
                None => errors.push(FieldError::required(place, "required when strategy is set to Webhook")),
                Some(config) if config.get("url").is_some() == config.get("service").is_some() => {
                    errors.push(FieldError::required(place, "exactly one of url or service is required"));
                }
                Some(_) => {}
            }
            let reviews = webhook.map(|webhook| walk::list(webhook, "conversionReviewVersions"));
            let place = format!("{PATH}.conversionReviewVersions");
            match reviews.unwrap_or_default() {
                [] => errors.push(FieldError::required(place, "")),
                known if !known.iter().any(|v| matches!(v.as_str(), Some("v1" | "v1beta1"))) => {
                    let why = "must include at least one of v1, v1beta1";
                    errors.push(FieldError::invalid(place, known.to_vec(), why));
                }
                _ => {}
            }
            if errors.is_empty() && versions(definition).len() > 1 {
                let why =
                    "conversion by webhooks is not supported by this server: use None, or a single version";
                errors.push(FieldError::forbidden(format!("{PATH}.strategy"), why));
            }
        }
        other => {
            if !matches!(other, "None" | "") {
                let known = ["None", "Webhook"];
                errors.push(FieldError::not_supported(format!("{PATH}.strategy"), other, &known));
            }
            if webhook.is_some_and(|webhook| walk::at(webhook, "clientConfig").is_some()) {
                let why = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(format!("{PATH}.webhookClientConfig"), why));
            }
            if webhook.is_some_and(|webhook| !walk::list(webhook, "conversionReviewVersions").is_empty()) {
                let why = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(format!("{PATH}.conversionReviewVersions"), why));
            }
        }
    }
    errors
}

fn status(definition: &Value) -> Vec<FieldError> {
    const PATH: &str = "status.storedVersions";
    let mut errors = of_names(definition, "status.acceptedNames");
    let stored = walk::list(definition, PATH);
    if stored.is_empty() {
        errors.push(FieldError::invalid(PATH, Value::Null, "must have at least one stored version"));
        return errors;
    }
    let all = versions(definition);
    for version in all.iter().filter(|version| walk::flag(version, "storage") == Some(true)) {
        let name = walk::text(version, "name");
        if !stored.iter().any(|stored| *stored == *name) {
            let why = format!("must have the storage version {name}");
            errors.push(FieldError::invalid(PATH, stored.to_vec(), why));
        }
    }
    for (index, name) in stored.iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        if !all.iter().any(|version| walk::text(version, "name") == name) {
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until \
                 a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("{PATH}[{index}]"), name, why));
        }
    }
    errors
}

const APPROVED: &str = "api-approved.kubernetes.io";

/// Groups of the Kubernetes community need its approval.
fn approval(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let group = walk::text(new, "spec.group");
    let own = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    if !own("k8s.io") && !own("kubernetes.io") {
        return Vec::new();
    }
    #[derive(PartialEq)]
    enum State {
        Missing,
        Bypassed,
        Approved,
        Invalid,
    }
    let state = |definition: &Value| match meta::annotation(definition, APPROVED).unwrap_or_default() {
        "" => State::Missing,
        text if text.starts_with("unapproved") => State::Bypassed,
        text if text
            .split_once("://")
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()) =>
        {
            State::Approved
        }
        _ => State::Invalid,
    };
    let now = state(new);
    if old.is_some_and(|old| state(old) == now) {
        return Vec::new();
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let must = format!("protected groups must have approval annotation {APPROVED:?}");
    match now {
        State::Missing => vec![FieldError::required(path, format!("{must}, {see}"))],
        State::Invalid => {
            let value = meta::annotation(new, APPROVED).unwrap_or_default();
            let why = format!("{must} with either a URL or a reason starting with \"unapproved\", {see}");
            vec![FieldError::invalid(path, value, why)]
        }
        State::Bypassed | State::Approved => Vec::new(),
    }
}

fn preserve(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let set = |definition: &Value| walk::flag(definition, "spec.preserveUnknownFields") == Some(true);
    if !set(new) || old.is_some_and(set) {
        return Vec::new();
    }
    let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
    vec![FieldError::invalid("spec.preserveUnknownFields", true, why)]
}
