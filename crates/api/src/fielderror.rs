//! A finding about one field of an object, in the words that Kubernetes' clients know.

use std::fmt;

use serde_json::{Value, json};

/// What is wrong with a field. The names and renderings are Kubernetes' (`k8s.io/apimachinery/pkg/util/validation/field`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A needed value is absent.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value is of another type.
    TypeInvalid,
    /// The value is not one of a known set.
    NotSupported,
    /// The value may not be here at all.
    Forbidden,
    /// The value occurs twice where it must be unique.
    Duplicate,
    /// The text is too long.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// What the value names does not exist.
    NotFound,
    /// Not the client's fault.
    InternalError,
}

impl ErrorKind {
    /// The words at the head of the message.
    pub fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::Duplicate => "Duplicate value",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
            Self::InternalError => "Internal error",
        }
    }

    /// The `reason` of the cause in a Status.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::InternalError => "InternalError",
        }
    }
}

/// One finding: what, where, the offending value and how to mend it.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct FieldError {
    /// What is wrong.
    pub kind: ErrorKind,
    /// The field in Kubernetes' notation: `spec.ports[0].port`.
    pub path: String,
    /// The value as the client sent it, where it is worth showing.
    pub value: Option<Value>,
    /// The rule that was broken.
    pub detail: String,
}

impl FieldError {
    fn new(
        kind: ErrorKind,
        path: impl Into<String>,
        value: Option<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, path: path.into(), value, detail: detail.into() }
    }

    /// A needed value is absent.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, path, None, detail)
    }

    /// The value breaks a rule.
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, path, Some(value.into()), detail)
    }

    /// The value is not one of `supported`, which are shown in the order given.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| quote(s)).collect::<Vec<_>>().join(", ");
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {list}") };
        Self::new(ErrorKind::NotSupported, path, Some(value.into()), detail)
    }

    /// The value may not be here at all.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, path, None, detail)
    }

    /// The value occurs twice.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, Some(value.into()), "")
    }

    /// The text is longer than `max` bytes.
    pub fn too_long(path: impl Into<String>, max: usize) -> Self {
        Self::new(ErrorKind::TooLong, path, None, format!("may not be more than {max} bytes"))
    }

    /// The list has `actual` items where at most `max` are allowed.
    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        Self::new(ErrorKind::TooMany, path, Some(json!(actual)), format!("must have at most {max} items"))
    }

    /// What the value names does not exist.
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, path, Some(value.into()), "")
    }

    /// What should not have happened.
    pub fn internal(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::InternalError, path, None, detail)
    }

    /// The message without the path, as it stands in a cause of a Status.
    pub fn body(&self) -> String {
        let mut out = String::from(self.kind.title());
        if let Some(value) = &self.value {
            out.push_str(": ");
            match value {
                Value::String(s) => out.push_str(&quote(s)),
                other => out.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }

    /// The cause of a Status.
    pub fn cause(&self) -> Value {
        json!({"reason": self.kind.reason(), "message": self.body(), "field": self.path})
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// Quotes as Go's `%q` does for ordinary text.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() && (c as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as Go's `%v` prints it: `map[name:web port:80]`.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut members: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", go_value(value))).collect();
            members.sort();
            format!("map[{}]", members.join(" "))
        }
        other => other.to_string(),
    }
}

/// Several findings as one text: alone as it is, together in brackets, a repeated one once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut seen: Vec<String> = Vec::new();
    for e in errors {
        let text = e.to_string();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    match seen.len() {
        1 => seen.remove(0),
        _ => format!("[{}]", seen.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_read_as_kubernetes_writes_them() {
        let rows = [
            (FieldError::required("spec.ports", ""), "spec.ports: Required value"),
            (
                FieldError::invalid("spec.ports[0].port", 70000, "must be between 1 and 65535, inclusive"),
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                FieldError::not_supported("spec.type", "X", &["A", "B"]),
                r#"spec.type: Unsupported value: "X": supported values: "A", "B""#,
            ),
            (FieldError::forbidden("spec", "no"), "spec: Forbidden: no"),
            (FieldError::duplicate("spec.ports[1].name", "a"), r#"spec.ports[1].name: Duplicate value: "a""#),
            (FieldError::too_long("x", 63), "x: Too long: may not be more than 63 bytes"),
            (FieldError::too_many("x", 9, 8), "x: Too many: 9: must have at most 8 items"),
        ];
        for (error, text) in rows {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn one_finding_stands_alone_and_several_in_brackets() {
        let a = FieldError::required("a", "");
        let b = FieldError::required("b", "x");
        assert_eq!(aggregate(std::slice::from_ref(&a)), "a: Required value");
        assert_eq!(aggregate(&[a.clone(), b, a]), "[a: Required value, b: Required value: x]");
    }
}
