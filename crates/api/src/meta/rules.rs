//! The rules of `metadata`: names, labels, annotations, owners, and what may not change.

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::walk;

/// What an object's name must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 bytes.
    Subdomain,
    /// RFC 1123 label, at most 63 bytes.
    Label,
    /// What can be one part of a URL's path.
    PathSegment,
    /// An address, written in its one canonical way.
    Address,
}

const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// The annotations of an object may not be larger than this together (apimachinery `TotalAnnotationSizeLimitB`).
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// What the kinds of Kubernetes' core say of a finalizer, and others don't.
pub(crate) const UNQUALIFIED: &str = "name is neither a standard finalizer name nor is it fully qualified";

fn label_shape(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let b = text.as_bytes();
    !b.is_empty() && b.iter().all(|&c| inner(c)) && edge(b[0]) && edge(b[b.len() - 1])
}

/// Names count in characters and labels in bytes; the difference is Kubernetes'.
fn too_long_name(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn too_long_label(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// What keeps a text from being an RFC 1123 label.
pub fn label_faults(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push(too_long_name(63));
    }
    if !label_shape(text) {
        // A name that would do elsewhere deserves the shorter answer.
        let dotted = text.contains('.') && subdomain_faults(text).is_empty();
        out.push(if dotted { "must not contain dots".into() } else { LABEL_TEXT.into() });
    }
    out
}

/// What keeps a text from being an RFC 1035 label, which begins with a letter.
pub fn dns_1035_faults(text: &str) -> Vec<String> {
    const TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
        character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
        '[a-z]([-a-z0-9]*[a-z0-9])?')";
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push(too_long_name(63));
    }
    if !label_shape(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        out.push(TEXT.into());
    }
    out
}

/// What keeps a text from being an RFC 1123 subdomain.
pub fn subdomain_faults(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push(too_long_name(253));
    }
    if text.is_empty() || !text.split('.').all(label_shape) {
        out.push(SUBDOMAIN_TEXT.into());
    }
    out
}

/// What keeps a text from being a subdomain that may have underscores, as where a resolver searches.
pub fn underscored_subdomain_faults(text: &str) -> Vec<String> {
    const TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and \
        must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
        '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
    let shape = |part: &str| label_shape(&part.strip_prefix('_').unwrap_or(part).replace('_', "-"));
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push(too_long_name(253));
    }
    if text.is_empty() || !text.split('.').all(shape) {
        out.push(TEXT.into());
    }
    out
}

/// What keeps a text from being a key of a ConfigMap or a Secret.
pub fn config_key_faults(key: &str) -> Vec<String> {
    const TEXT: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
        'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
    let mut out = Vec::new();
    if key.len() > 253 {
        out.push(too_long_name(253));
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        out.push(TEXT.into());
    }
    match key {
        "." => out.push("must not be '.'".into()),
        ".." => out.push("must not be '..'".into()),
        _ if key.starts_with("..") => out.push("must not start with '..'".into()),
        _ => {}
    }
    out
}

/// What keeps a text from being one part of a URL's path (apimachinery `IsPathSegmentName`).
pub fn path_segment_faults(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    let within = ["/", "%"].into_iter().filter(|part| text.contains(part));
    within.map(|part| format!("may not contain '{part}'")).collect()
}

/// What keeps a text from being a domain and a path, as `example.com/controller` (apimachinery `IsDomainPrefixedPath`).
pub fn domain_prefixed_path_faults(path: &str, text: &str) -> Vec<FieldError> {
    if text.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let (domain, rest) = text.split_once('/').unwrap_or((text, ""));
    if rest.is_empty() || domain.is_empty() {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return vec![FieldError::invalid(path, text, detail)];
    }
    let mut errors = findings(path, domain, subdomain_faults(domain));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "/-._~!$&'()*+,;=:@%".contains(c);
    if !rest.chars().all(allowed) {
        errors.push(FieldError::invalid(
            path,
            rest,
            format!("Invalid path (regex used for validation is '{PATH_SHAPE}')"),
        ));
    }
    errors
}

const PATH_SHAPE: &str = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";

fn qualified_shape(text: &str) -> bool {
    let b = text.as_bytes();
    !b.is_empty()
        && b.iter().all(|&c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
}

/// What keeps a text from being a qualified name: `example.com/MyName`.
pub fn qualified_faults(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut name = text;
    if let Some((prefix, rest)) = text.split_once('/') {
        if rest.contains('/') {
            return vec![format!(
                "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            )];
        }
        name = rest;
        if prefix.is_empty() {
            out.push("prefix part must be non-empty".into());
        } else {
            out.extend(subdomain_faults(prefix).into_iter().map(|f| format!("prefix part {f}")));
        }
    }
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        out.push(format!("name part {}", too_long_label(63)));
    }
    if !qualified_shape(name) {
        out.push(QUALIFIED_TEXT.into());
    }
    out
}

/// What keeps a text from being the value of a label.
pub fn label_value_faults(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push(too_long_label(63));
    }
    if !text.is_empty() && !qualified_shape(text) {
        out.push(LABEL_VALUE_TEXT.into());
    }
    out
}

/// What keeps a text from being the name of a port: an IANA service name.
pub fn port_name_faults(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".into());
    }
    let b = text.as_bytes();
    if b.is_empty() || !b.iter().all(|&c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !b.iter().any(u8::is_ascii_lowercase) {
        out.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".into());
    }
    out
}

/// The rule that port numbers keep.
pub const PORT_TEXT: &str = "must be between 1 and 65535, inclusive";

/// Whether a number is a port.
pub fn is_port(n: i64) -> bool {
    (1..=65535).contains(&n)
}

/// The findings of a list of faults at one path.
pub fn findings(path: &str, value: &str, faults: Vec<String>) -> Vec<FieldError> {
    faults.into_iter().map(|f| FieldError::invalid(path, value, f)).collect()
}

impl NameRule {
    /// What keeps a text from being a name of this kind.
    pub fn faults(self, text: &str) -> Vec<String> {
        match self {
            Self::Subdomain => subdomain_faults(text),
            Self::Label => label_faults(text),
            Self::PathSegment => path_segment_faults(text),
            Self::Address => {
                crate::ip::canonical_faults("", text).into_iter().map(|finding| finding.detail).collect()
            }
        }
    }
}

/// What is wrong with a map of labels (also of a selector, or a template).
pub fn validate_labels(labels: &serde_json::Map<String, Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        errors.extend(findings(path, key, qualified_faults(key)));
        let value = value.as_str().unwrap_or("");
        errors.extend(findings(path, value, label_value_faults(value)));
    }
    errors
}

/// What is wrong with a map of annotations.
pub fn validate_annotations(annotations: &serde_json::Map<String, Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations {
        errors.extend(findings(path, key, qualified_faults(&key.to_lowercase())));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long(path, ANNOTATIONS_LIMIT));
    }
    errors
}

fn validate_shared(object: &Value) -> Vec<FieldError> {
    let mut errors = validate_labels(walk::map(object, "metadata.labels"), "metadata.labels");
    errors.extend(validate_annotations(walk::map(object, "metadata.annotations"), "metadata.annotations"));
    let mut controllers: Vec<String> = Vec::new();
    // The paths of owners and finalizers have no index in Kubernetes' words.
    let path = "metadata.ownerReferences";
    for owner in walk::list(object, path) {
        let version = walk::text(owner, "apiVersion");
        if version.matches('/').count() > 1 || version.rsplit('/').next().is_none_or(str::is_empty) {
            errors.push(FieldError::invalid(
                format!("{path}.apiVersion"),
                walk::text(owner, "apiVersion"),
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            if walk::text(owner, field).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", "must not be empty"));
            }
        }
        // Events are too many and too short-lived to own anything (apimachinery `BannedOwners`).
        if walk::text(owner, "apiVersion") == "v1" && walk::text(owner, "kind") == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path, owner.clone(), why));
        }
        if walk::flag(owner, "controller") == Some(true) {
            controllers.push(format!("{}/{}", walk::text(owner, "kind"), walk::text(owner, "name")));
        }
    }
    if let [first, second, ..] = &controllers[..] {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            walk::at(object, "metadata.ownerReferences").cloned().unwrap_or(Value::Null),
            format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
            ),
        ));
    }
    let finalizers: Vec<&str> =
        walk::list(object, "metadata.finalizers").iter().filter_map(Value::as_str).collect();
    for finalizer in &finalizers {
        errors.extend(findings("metadata.finalizers", finalizer, qualified_faults(finalizer)));
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            finalizers.clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

/// A finalizer without a domain is one of Kubernetes' own (pkg/apis/core/validation, `validateKubeFinalizerName`).
pub fn finalizer_domain_fault(path: &str, finalizer: &str) -> Option<FieldError> {
    let known =
        finalizer.contains('/') || matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion");
    (!known).then(|| FieldError::invalid(path, finalizer, UNQUALIFIED))
}

fn validate_finalizer_domains(object: &Value) -> Vec<FieldError> {
    let all = walk::list(object, "metadata.finalizers").iter().enumerate();
    all.filter_map(|(i, finalizer)| {
        finalizer_domain_fault(&format!("metadata.finalizers[{i}]"), finalizer.as_str().unwrap_or(""))
    })
    .collect()
}

/// What is wrong with the base of a generated name.
pub fn validate_base(object: &Value, names: NameRule) -> Vec<FieldError> {
    let base = walk::text(object, "metadata.generateName");
    if base.is_empty() {
        return Vec::new();
    }
    // The base may end in a dash: something follows it.
    let trimmed = base.strip_suffix('-').map_or(base.to_owned(), |b| format!("{b}a"));
    findings("metadata.generateName", base, names.faults(&trimmed))
}

/// What is wrong with the metadata of a new object.
pub fn validate(object: &Value, namespaced: bool, names: NameRule) -> Vec<FieldError> {
    let mut errors = validate_base(object, names);
    let name = walk::text(object, "metadata.name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        errors.extend(findings("metadata.name", name, names.faults(name)));
    }
    let namespace = walk::text(object, "metadata.namespace");
    if namespaced {
        if namespace.is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else {
            errors.extend(findings("metadata.namespace", namespace, label_faults(namespace)));
        }
    } else if !namespace.is_empty() {
        errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    }
    let generation = walk::int(object, "metadata.generation").unwrap_or(0);
    if generation < 0 {
        errors.push(FieldError::invalid(
            "metadata.generation",
            generation,
            "must be greater than or equal to 0",
        ));
    }
    errors.extend(validate_shared(object));
    errors.extend(validate_finalizer_domains(object));
    errors
}

/// What is wrong with the metadata of a changed object.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_shared(new);
    // On the way out, finalizers may go and none may come.
    if walk::at(old, "metadata.deletionTimestamp").is_some() {
        let had = walk::list(old, "metadata.finalizers");
        let added: Vec<&str> = walk::list(new, "metadata.finalizers")
            .iter()
            .filter(|f| !had.contains(f))
            .filter_map(Value::as_str)
            .collect();
        let added: std::collections::BTreeSet<&str> = added.into_iter().collect();
        if !added.is_empty() {
            let list = added.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", ");
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
                ),
            ));
        }
    }
    let fixed =
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
    for field in fixed {
        let path = format!("metadata.{field}");
        let (n, o) = (walk::at(new, &path), walk::at(old, &path));
        if n != o {
            errors.push(FieldError::invalid(path, n.cloned().unwrap_or_default(), "field is immutable"));
        }
    }
    errors.extend(validate_finalizer_domains(new));
    errors
}
