//! CertificateSigningRequests: asked for, approved or denied, and signed elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{duration, walk};

/// The entry of CertificateSigningRequest. Who asks is written by the server.
pub static CERTIFICATE_SIGNING_REQUEST: Kind = Kind::Listed(&Entry {
    namespaced: false,
    short_names: &["csr"],
    subresources: &["approval", "status"],
    names: NameRule::PathSegment,
    strategy: Strategy {
        prepare_create: |o| walk::set(o, "status", json!({})),
        // A request never changes; its status does, through `/status` and `/approval`.
        prepare_update: |new, old| {
            keep(new, old, "spec");
            keep(new, old, "status");
        },
        prepare_status_update,
        validate,
        validate_update: |new, old| validate_change(new, old, false),
        validate_status_update: |new, old| {
            let mut errors = validate_change(new, old, true);
            errors.extend(same_approval(new, old));
            errors
        },
        ..Strategy::PLAIN
    },
    fields: &[("spec.signerName", |o| walk::text(o, "spec.signerName").to_owned())],
    columns: &[
        Column::object_name(),
        Column::new("Age", "string", AGE),
        Column::new("SignerName", "string", "Who shall sign."),
        Column::new("Requestor", "string", "Who asks."),
        Column::new("RequestedDuration", "string", "How long it shall be valid."),
        Column::new("Condition", "string", "What became of it."),
    ],
    cells: |o, now| {
        let has = |kind: &str| conditions(o, kind).next().is_some();
        let mut state = if has("Denied") {
            "Denied"
        } else if has("Approved") {
            "Approved"
        } else {
            "Pending"
        }
        .to_owned();
        if has("Failed") {
            state.push_str(",Failed");
        }
        if !walk::text(o, "status.certificate").is_empty() {
            state.push_str(",Issued");
        }
        let signer = match walk::text(o, "spec.signerName") {
            "" => "<none>",
            name => name,
        };
        vec![
            meta::name(o).into(),
            duration::age(o, now).into(),
            signer.into(),
            walk::text(o, "spec.username").into(),
            walk::int(o, "spec.expirationSeconds").map_or_else(|| "<none>".into(), duration::human).into(),
            state.into(),
        ]
    },
    ..Entry::of(
        "certificates.k8s.io",
        "v1",
        ("CertificateSigningRequest", "CertificateSigningRequestList"),
        ("certificatesigningrequests", "certificatesigningrequest"),
    )
});

/// Writes who asks: what a client says of itself is not believed.
pub fn requested_by(object: &mut Value, user: &str, groups: &[String]) {
    for field in ["username", "uid", "groups", "extra"] {
        walk::remove(object, &format!("spec.{field}"));
    }
    if walk::at(object, "spec").is_some() {
        walk::set(object, "spec.username", user);
        walk::set(object, "spec.groups", groups.to_vec());
    }
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    match walk::at(old, field) {
        Some(value) => walk::set(new, field, value.clone()),
        None => {
            walk::remove(new, field);
        }
    }
}

fn conditions<'a>(object: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    walk::list(object, "status.conditions").iter().filter(move |c| walk::text(c, "type") == kind)
}

fn prepare_status_update(new: &mut Value, old: &Value) {
    crate::kind::keep_all_but_status(new, old);
    stamp(new, old);
}

/// Through `/approval` only the conditions change.
pub fn prepare_approval(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    let asked = walk::at(new, "status.conditions").cloned();
    keep(new, old, "status");
    match asked {
        Some(conditions) => walk::set(new, "status.conditions", conditions),
        None => {
            walk::remove(new, "status.conditions");
        }
    }
    stamp(new, old);
}

/// Conditions that are new get their times.
fn stamp(new: &mut Value, old: &Value) {
    let now = meta::rfc3339(jiff::Timestamp::now());
    let before = walk::list(old, "status.conditions").to_vec();
    for condition in walk::list_mut(new, "status.conditions") {
        let same = before.iter().find(|c| {
            walk::text(c, "type") == walk::text(condition, "type")
                && walk::text(c, "status") == walk::text(condition, "status")
        });
        walk::default(condition, "lastUpdateTime", now.clone());
        let moved = same.map_or(now.as_str(), |c| walk::text(c, "lastTransitionTime")).to_owned();
        walk::default(condition, "lastTransitionTime", moved);
    }
}

/// The uses that a certificate may have, sorted as the error text shows them.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let request = walk::text(object, "spec.request");
    let pem = STANDARD.decode(request).unwrap_or_default();
    let pem = String::from_utf8_lossy(&pem);
    if !pem.contains("-----BEGIN CERTIFICATE REQUEST-----")
        && !pem.contains("-----BEGIN NEW CERTIFICATE REQUEST-----")
    {
        let text = "PEM block type must be CERTIFICATE REQUEST";
        let said = walk::at(object, "spec.request").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.request", said, text));
    }
    let usages: Vec<&str> = walk::list(object, "spec.usages").iter().filter_map(Value::as_str).collect();
    if usages.is_empty() {
        errors.push(FieldError::required("spec.usages", ""));
    }
    for (i, usage) in usages.iter().enumerate() {
        if !USAGES.contains(usage) {
            errors.push(FieldError::not_supported(format!("spec.usages[{i}]"), *usage, &USAGES));
        }
    }
    for (i, usage) in usages.iter().enumerate() {
        if usages[..i].contains(usage) {
            errors.push(FieldError::duplicate(format!("spec.usages[{i}]"), *usage));
        }
    }
    let signer = walk::text(object, "spec.signerName");
    if signer == "kubernetes.io/legacy-unknown" {
        let text = "the legacy signerName is not allowed via this API version";
        errors.push(FieldError::invalid("spec.signerName", signer, text));
    } else {
        errors.extend(signer_faults(signer));
    }
    if let Some(n) = walk::int(object, "spec.expirationSeconds").filter(|n| *n < 600) {
        let text = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", n, text));
    }
    errors.extend(condition_faults(object));
    errors
}

fn signer_faults(signer: &str) -> Vec<FieldError> {
    const PATH: &str = "spec.signerName";
    if signer.is_empty() {
        return vec![FieldError::required(PATH, "")];
    }
    let parts: Vec<&str> = signer.split('/').collect();
    let [domain, path] = parts[..] else {
        let text = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return vec![FieldError::invalid(PATH, signer, text)];
    };
    let mut errors = Vec::new();
    if !meta::subdomain_faults(domain).is_empty() || domain.split('.').count() < 2 {
        let text = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(PATH, domain, text));
    }
    errors.extend(meta::findings(PATH, path, meta::subdomain_faults(path)));
    errors
}

fn condition_faults(object: &Value) -> Vec<FieldError> {
    const AT: &str = "status.conditions";
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (i, condition) in walk::list(object, AT).iter().enumerate() {
        let (kind, status) = (walk::text(condition, "type"), walk::text(condition, "status"));
        if kind.is_empty() {
            errors.push(FieldError::required(format!("{AT}[{i}].type"), ""));
        }
        let allowed: &[&str] = if matches!(kind, "Approved" | "Denied" | "Failed") {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        if status.is_empty() {
            errors.push(FieldError::required(format!("{AT}[{i}].status"), ""));
        } else if !allowed.contains(&status) {
            errors.push(FieldError::not_supported(format!("{AT}[{i}].status"), status, allowed));
        }
        let other = if kind == "Approved" { "Denied" } else { "Approved" };
        if matches!(kind, "Approved" | "Denied") && seen.contains(&other) {
            let text = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(AT, kind, text));
        }
        if seen.contains(&kind) {
            errors.push(FieldError::duplicate(format!("{AT}[{i}].type"), kind));
        }
        seen.push(kind);
    }
    errors
}

fn validate_change(new: &Value, old: &Value, signs: bool) -> Vec<FieldError> {
    let mut errors = validate(new);
    for kind in ["Approved", "Denied", "Failed"] {
        if conditions(new, kind).count() < conditions(old, kind).count() {
            let text = format!("updates may not remove a condition of type \"{kind}\"");
            errors.push(FieldError::forbidden("status.conditions", text));
        }
    }
    let (now, before) = (walk::text(new, "status.certificate"), walk::text(old, "status.certificate"));
    if now != before && !signs {
        let text = "updates may not set certificate content";
        errors.push(FieldError::forbidden("status.certificate", text));
    } else if now != before && !before.is_empty() {
        let text = "updates may not modify existing certificate content";
        errors.push(FieldError::forbidden("status.certificate", text));
    }
    errors
}

fn same_approval(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for kind in ["Approved", "Denied"] {
        if conditions(new, kind).count() > conditions(old, kind).count() {
            let text = format!("updates may not add a condition of type \"{kind}\"");
            errors.push(FieldError::forbidden("status.conditions", text));
        }
    }
    errors
}

/// What is wrong with a change through `/approval`.
pub fn validate_approval(new: &Value, old: &Value) -> Vec<FieldError> {
    validate_change(new, old, false)
}
