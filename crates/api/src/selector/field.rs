//! Field selectors: equality on the few fields that a kind lets be selected by.

use serde_json::Value;

use super::SelectorError;
use crate::kind::Kind;
use crate::meta;

/// One term: `field=value` or `field!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

/// All of its terms must hold; with none it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// Parses `a=b,c!=d`; the fields must be ones that the kind can be selected by.
    pub fn parse(text: &str, kind: &Kind) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, equal, value)) = divide(part) else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            let value = unescape(value)?;
            // An empty "=" names no field and asks for nothing.
            if field.is_empty() && value.is_empty() {
                continue;
            }
            if !selectable(field, kind) {
                let name = (kind.group(), kind.kind());
                let generic = kind.fields().is_empty() || name == ("networking.k8s.io", "IPAddress");
                return Err(SelectorError(if name == ("batch", "Job") {
                    format!("field label {} not supported for Job", crate::fielderror::quote(field))
                } else if generic {
                    format!(
                        "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        crate::fielderror::quote(field)
                    )
                } else {
                    format!("field label not supported: {field}")
                }));
            }
            terms.push(Term { field: field.to_owned(), equal, value });
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must equal, if the selector demands one: lets a server look up by name instead of listing.
    pub fn requires(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value, kind: &Kind) -> bool {
        self.terms.iter().all(|t| (read(&t.field, object, kind) == t.value) == t.equal)
    }
}

fn selectable(field: &str, kind: &Kind) -> bool {
    // The oldest kinds of the whole cluster have no namespace to be selected by.
    let placed = !matches!((kind.group(), kind.kind()), ("", "Namespace" | "Node"));
    field == "metadata.name" || (field == "metadata.namespace" && placed) || kind.fields().contains(&field)
}

fn read(field: &str, object: &Value, kind: &Kind) -> String {
    match field {
        "metadata.name" => meta::name(object).to_owned(),
        "metadata.namespace" => meta::namespace(object).to_owned(),
        _ => {
            let at = kind.fields().iter().position(|name| *name == field);
            at.and_then(|at| kind.selectable(object).into_iter().nth(at)).unwrap_or_default()
        }
    }
}

/// Splits at commas that no backslash precedes.
fn split(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

/// Divides a term at its first operator.
fn divide(term: &str) -> Option<(&str, bool, &str)> {
    for i in 0..term.len() {
        if !term.is_char_boundary(i) {
            continue;
        }
        for (sign, equal) in [("!=", false), ("==", true), ("=", true)] {
            if term[i..].starts_with(sign) {
                return Some((&term[..i], equal, &term[i + sign.len()..]));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {}",
                    c as u32
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::find;

    #[test]
    fn terms_compare_the_fields_that_the_kind_offers() {
        let pods = find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a", "namespace": "x"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        let rows = [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace=x", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=n1,status.phase!=Failed", true),
            ("spec.nodeName=", false),
            ("status.phase=Pending", false),
        ];
        for (text, want) in rows {
            assert_eq!(FieldSelector::parse(text, pods).unwrap().matches(&pod, pods), want, "{text}");
        }
        assert_eq!(
            FieldSelector::parse("metadata.name=a", pods).unwrap().requires("metadata.name"),
            Some("a")
        );
    }

    #[test]
    fn a_field_that_cannot_be_selected_by_is_named() {
        let pods = find("", "v1", "pods").unwrap();
        let maps = find("", "v1", "configmaps").unwrap();
        assert_eq!(
            FieldSelector::parse("spec.foo=1", pods).unwrap_err().to_string(),
            "field label not supported: spec.foo"
        );
        assert_eq!(
            FieldSelector::parse("data=1", maps).unwrap_err().to_string(),
            "\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(
            FieldSelector::parse("metadata.name", pods).unwrap_err().to_string(),
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
        );
    }

    #[test]
    fn escapes_stand_for_themselves() {
        let pods = find("", "v1", "pods").unwrap();
        let selector = FieldSelector::parse(r"metadata.name=a\,b\=c\\", pods).unwrap();
        assert_eq!(selector.requires("metadata.name"), Some(r"a,b=c\"));
        assert!(FieldSelector::parse(r"metadata.name=a\n", pods).is_err());
        assert!(FieldSelector::parse("metadata.name=a=b", pods).is_err());
    }
}
