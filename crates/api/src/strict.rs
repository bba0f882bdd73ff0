//! Reading JSON as Kubernetes' decoder does: what stands there twice, what its type doesn't have, what doesn't fit, each in
//! the words of sigs.k8s.io/json.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::{Scalar, Shape, Type, TypeRef};

/// How many complaints are collected (sigs.k8s.io/json `strictErrors`).
const MOST: usize = 100;

static ANY: Shape = Shape::Any;

/// The value of a text, and what strict decoding has against it, in the order of the text. `of` is what it should be; none if
/// any fields are right.
pub fn read(text: &[u8], of: Option<&TypeRef>) -> Result<(Value, Vec<String>), String> {
    let mut complaints = Vec::new();
    let root = of.map(|of| Shape::Object(of.clone()));
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let seed = Seed {
        shape: root.as_ref().unwrap_or(&ANY),
        path: String::new(),
        silent: false,
        complaints: &mut complaints,
    };
    let value = seed.deserialize(&mut deserializer).map_err(|error| go_error(&error))?;
    deserializer.end().map_err(|error| go_error(&error))?;
    let mut seen = HashSet::new();
    complaints.retain(|complaint| seen.insert(complaint.clone()));
    complaints.truncate(MOST);
    Ok((value, complaints))
}

/// A text that ends too soon is named as in Go; what else is wrong with it, in our words.
fn go_error(error: &serde_json::Error) -> String {
    if error.is_eof() { "unexpected end of JSON input".into() } else { error.to_string() }
}

struct Seed<'a> {
    shape: &'a Shape,
    path: String,
    /// Below a field that isn't known nothing more is said.
    silent: bool,
    complaints: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let shape = match self.shape {
            Shape::List(inner) => &**inner,
            _ => &ANY,
        };
        let mut out = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, out.len());
            let seed = Seed { shape, path, silent: self.silent, complaints: &mut *self.complaints };
            match items.next_element_seed(seed)? {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let of = match self.shape {
            Shape::Object(inner) => Some(inner.get()),
            _ => None,
        };
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            let (shape, known) = match (of, self.shape) {
                (Some(of), _) => match of.field(&key) {
                    Some(field) => (&field.shape, true),
                    None => (&ANY, of.open),
                },
                (None, Shape::Map(values)) => (&**values, true),
                // What has a form of its own is read apart, and not strictly.
                (None, Shape::Any) => (&ANY, true),
                _ => (&ANY, false),
            };
            if !self.silent {
                if out.contains_key(&key) {
                    self.complaints.push(format!("duplicate field {path:?}"));
                } else if !known && of.is_some() {
                    self.complaints.push(format!("unknown field {path:?}"));
                }
            }
            let silent = self.silent || !known;
            let seed = Seed { shape, path, silent, complaints: &mut *self.complaints };
            let value = map.next_value_seed(seed)?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// The first value that its type can't hold, as Go says it.
pub fn mismatch(value: &Value, of: &TypeRef) -> Option<String> {
    let of = of.get();
    match value {
        Value::Object(map) => within(map, of, &mut Vec::new()),
        other => {
            Some(format!("json: cannot unmarshal {} into Go value of type {}", word(other), go_type(of)))
        }
    }
}

fn go_type(of: &Type) -> String {
    of.name.rsplit('/').next().unwrap_or_default().to_owned()
}

fn go_shape(shape: &Shape) -> String {
    match shape {
        Shape::Object(inner) => go_type(inner.get()),
        Shape::List(items) => format!("[]{}", go_shape(items)),
        Shape::Map(values) => format!("map[string]{}", go_shape(values)),
        Shape::Scalar(scalar) => match scalar {
            Scalar::Bool => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::Bytes => "[]uint8",
            Scalar::Quantity => "resource.Quantity",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::IntOrString => "intstr.IntOrString",
            _ => "string",
        }
        .into(),
        Shape::Strings => "[]string".into(),
        _ => "interface {}".into(),
    }
}

/// What a value is, in Go's words.
pub fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn within(map: &Map<String, Value>, of: &Type, path: &mut Vec<String>) -> Option<String> {
    for (key, value) in map {
        let Some(field) = of.field(key) else { continue };
        path.push(key.clone());
        let found = misfit(value, &field.shape, of, path);
        path.pop();
        if found.is_some() {
            return found;
        }
    }
    None
}

fn misfit(value: &Value, shape: &Shape, of: &Type, path: &mut Vec<String>) -> Option<String> {
    let refuse = |what: &str| {
        let field = path.join(".");
        let (holder, wanted) = (of.go_name(), go_shape(shape));
        Some(format!("json: cannot unmarshal {what} into Go struct field {holder}.{field} of type {wanted}"))
    };
    match (shape, value) {
        (_, Value::Null) | (Shape::Any | Shape::SchemaOr(_), _) => None,
        (Shape::Object(inner), Value::Object(map)) => within(map, inner.get(), path),
        (Shape::List(items), Value::Array(list)) => {
            list.iter().find_map(|item| misfit(item, items, of, path))
        }
        (Shape::Map(values), Value::Object(map)) => {
            map.values().find_map(|item| misfit(item, values, of, path))
        }
        (Shape::Strings, Value::Array(_)) => None,
        (Shape::Scalar(scalar), value) => match (scalar, value) {
            (Scalar::String, Value::String(_)) | (Scalar::Bool, Value::Bool(_)) => None,
            (Scalar::Bytes, Value::String(text)) => base64_error(text),
            (Scalar::Double, Value::Number(_)) => None,
            (Scalar::Int32 | Scalar::Int64, Value::Number(number)) => {
                let fits = match (number.as_i64(), scalar) {
                    (Some(whole), Scalar::Int32) => i32::try_from(whole).is_ok(),
                    (whole, _) => whole.is_some(),
                };
                if fits { None } else { refuse(&format!("number {number}")) }
            }
            (Scalar::String | Scalar::Bytes | Scalar::Bool | Scalar::Double, other)
            | (Scalar::Int32 | Scalar::Int64, other) => refuse(word(other)),
            (Scalar::Quantity, Value::String(text)) => quantity_error(text).map(str::to_owned),
            (Scalar::Time, Value::String(text)) if text.parse::<jiff::Timestamp>().is_err() => {
                Some(time_error(text, "2006-01-02T15:04:05Z07:00"))
            }
            (Scalar::MicroTime, Value::String(text)) if text.parse::<jiff::Timestamp>().is_err() => {
                Some(time_error(text, "2006-01-02T15:04:05.000000Z07:00"))
            }
            (Scalar::IntOrString, other) if !other.is_string() && !other.is_number() => {
                let (field, holder) = (path.join("."), of.go_name());
                let what = word(other);
                Some(format!(
                    "json: cannot unmarshal {what} into Go struct field {holder}.{field} of type int32"
                ))
            }
            // The others read themselves; the typed decoder says what is wrong with them.
            _ => None,
        },
        (_, other) => refuse(word(other)),
    }
}

/// What is wrong with a quantity (apimachinery `resource.ParseQuantity`).
fn quantity_error(text: &str) -> Option<&'static str> {
    const FORMAT: &str =
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    const SUFFIX: &str = "unable to parse quantity's suffix";
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest =
        digits.strip_prefix('.').map_or(digits, |d| d.trim_start_matches(|c: char| c.is_ascii_digit()));
    let number = &unsigned[..unsigned.len() - rest.len()];
    if !number.contains(|c: char| c.is_ascii_digit()) {
        return Some(FORMAT);
    }
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let exponent = rest.strip_prefix(['e', 'E']).is_some_and(|power| power.parse::<i32>().is_ok());
    if known.contains(&rest) || exponent {
        return None;
    }
    let letters = rest.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let tail = letters.strip_prefix(['+', '-']).unwrap_or(letters);
    Some(if tail.chars().all(|c| c.is_ascii_digit()) { SUFFIX } else { FORMAT })
}

/// What is wrong with a time, as Go's `time.Parse` says of one that is no time at all.
fn time_error(text: &str, layout: &str) -> String {
    format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
}

/// What is wrong with bytes in base64.
fn base64_error(text: &str) -> Option<String> {
    use base64::Engine as _;
    let at = match base64::engine::general_purpose::STANDARD.decode(text) {
        Ok(_) => return None,
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => at,
        Err(_) => text.len(),
    };
    Some(format!("illegal base64 data at input byte {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    fn deployment() -> TypeRef {
        schema::of("apps/v1", "Deployment").unwrap()
    }

    #[test]
    fn what_is_unknown_or_twice_is_named_in_the_order_of_the_text() {
        let text = br#"{"foo": {"a": 1, "a": 2}, "spec": {"replicas": 1, "replicas": 2, "bar": 1,
            "template": {"metadata": {"labels": {"a": "b", "a": "c"}},
                "spec": {"containers": [{"name": "x", "name": "y", "baz": 1}]}}}}"#;
        let (value, complaints) = read(text, Some(&deployment())).unwrap();
        assert_eq!(
            complaints,
            [
                "unknown field \"foo\"",
                "duplicate field \"spec.replicas\"",
                "unknown field \"spec.bar\"",
                "duplicate field \"spec.template.metadata.labels.a\"",
                "duplicate field \"spec.template.spec.containers[0].name\"",
                "unknown field \"spec.template.spec.containers[0].baz\"",
            ]
        );
        assert_eq!(value["spec"]["replicas"], 2);
    }

    #[test]
    fn what_does_not_fit_is_named_as_go_does() {
        let rows = [
            (
                r#"{"spec": {"replicas": "x"}}"#,
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                r#"{"spec": {"template": {"spec": {"containers": [{"name": 1}]}}}}"#,
                "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
            ),
            (
                r#"{"metadata": {"labels": ["x"]}}"#,
                "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
            ),
            (
                r#"{"spec": {"replicas": 99999999999}}"#,
                "json: cannot unmarshal number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
        ];
        for (text, expected) in rows {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(mismatch(&value, &deployment()).as_deref(), Some(expected));
        }
    }
}
