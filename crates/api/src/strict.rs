//! Reading JSON as Kubernetes' decoder does: what stands there twice, what its type doesn't have, what doesn't fit, each in
//! the words of sigs.k8s.io/json.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::quantity::Quantity;
use crate::schema::{Scalar, SchemaOr, Shape, Type, TypeRef};

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

/// What a type has against a value.
#[derive(Debug, Default)]
pub struct Findings {
    /// The paths of fields that it doesn't have, in the order of the text: `spec.ports[0].foo`.
    pub unknown: Vec<String>,
    /// The first value that it can't hold, as Go says it.
    pub misfit: Option<String>,
}

/// Holds a value against its type.
pub fn check(value: &Value, of: &TypeRef) -> Findings {
    let mut walk = Walk::default();
    match value {
        Value::Object(map) => walk.fields(map, of.get()),
        other => {
            let (what, of) = (word(other), go_type(of.get()));
            walk.refuse(|| format!("json: cannot unmarshal {what} into Go value of type {of}"));
        }
    }
    walk.found
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

enum Step<'a> {
    Field(&'a str),
    Key(&'a str),
    Item(usize),
}

/// One walk along a value and its type.
#[derive(Default)]
struct Walk<'a> {
    path: Vec<Step<'a>>,
    found: Findings,
}

impl<'a> Walk<'a> {
    fn refuse(&mut self, why: impl FnOnce() -> String) {
        if self.found.misfit.is_none() {
            self.found.misfit = Some(why());
        }
    }

    /// A value of the wrong sort, named by the fields above it alone, as Go's decoder does.
    fn misfit(&mut self, what: &str, wanted: &str, of: &Type) {
        let fields = self.path.iter().filter_map(|step| match step {
            Step::Field(name) => Some(*name),
            _ => None,
        });
        let (holder, field) = (of.go_name(), fields.collect::<Vec<_>>().join("."));
        self.refuse(|| {
            format!("json: cannot unmarshal {what} into Go struct field {holder}.{field} of type {wanted}")
        });
    }

    /// Where the walk is, in Kubernetes' notation.
    fn notation(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Item(index) => out.push_str(&format!("[{index}]")),
                Step::Field(name) | Step::Key(name) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(name);
                }
            }
        }
        out
    }

    fn fields(&mut self, map: &'a Map<String, Value>, of: &Type) {
        for (key, value) in map {
            self.path.push(Step::Field(key));
            match of.field(key) {
                Some(field) => self.value(value, &field.shape, of),
                None if of.open => {}
                None => {
                    let path = self.notation();
                    self.found.unknown.push(path);
                }
            }
            self.path.pop();
        }
    }

    fn value(&mut self, value: &'a Value, shape: &Shape, of: &Type) {
        match (shape, value) {
            (_, Value::Null) | (Shape::Any, _) => {}
            (Shape::Object(inner), Value::Object(map)) => self.fields(map, inner.get()),
            (Shape::List(items), Value::Array(list)) => {
                for (index, item) in list.iter().enumerate() {
                    self.path.push(Step::Item(index));
                    self.value(item, items, of);
                    self.path.pop();
                }
            }
            (Shape::Map(values), Value::Object(map)) => {
                for (key, item) in map {
                    self.path.push(Step::Key(key));
                    self.value(item, values, of);
                    self.path.pop();
                }
            }
            (Shape::Strings, Value::Array(list)) => {
                for item in list.iter().filter(|item| !item.is_string() && !item.is_null()) {
                    self.misfit(word(item), "string", of);
                }
            }
            // They read themselves, and not strictly.
            (Shape::SchemaOr(or), value) => match or.shape(value) {
                Some(shape) => {
                    let mut apart = Walk::default();
                    apart.value(value, &shape, of);
                    if let Some(why) = apart.found.misfit {
                        self.refuse(|| why);
                    }
                }
                None if *or == SchemaOr::Bool && !value.is_boolean() => {
                    self.refuse(|| "boolean or JSON schema expected".into());
                }
                None => {}
            },
            (Shape::Scalar(scalar), value) => self.scalar(value, *scalar, shape, of),
            (_, other) => self.misfit(word(other), &go_shape(shape), of),
        }
    }

    fn scalar(&mut self, value: &Value, scalar: Scalar, shape: &Shape, of: &Type) {
        let whole = |number: &Number, small: bool| match number.as_i64() {
            Some(whole) => !small || i32::try_from(whole).is_ok(),
            None => false,
        };
        match (scalar, value) {
            (Scalar::String, Value::String(_))
            | (Scalar::Bool, Value::Bool(_))
            | (Scalar::Double, Value::Number(_))
            | (Scalar::IntOrString, Value::String(_))
            | (Scalar::Fields | Scalar::Raw | Scalar::Json, _) => {}
            (Scalar::Bytes, Value::String(text)) => {
                if let Some(why) = base64_error(text) {
                    self.refuse(|| why);
                }
            }
            (Scalar::Int32 | Scalar::Int64, Value::Number(number)) => {
                if !whole(number, scalar == Scalar::Int32) {
                    self.misfit(&format!("number {number}"), &go_shape(shape), of);
                }
            }
            (Scalar::IntOrString, Value::Number(number)) => {
                if !whole(number, true) {
                    self.misfit(&format!("number {number}"), "int32", of);
                }
            }
            (Scalar::IntOrString, other) => self.misfit(word(other), "int32", of),
            (Scalar::Quantity, Value::Number(_)) => {}
            (Scalar::Quantity, Value::String(text)) => {
                if let Some(why) = quantity_error(text) {
                    self.refuse(|| why.into());
                }
            }
            (Scalar::Quantity, _) => self.refuse(|| QUANTITY_FORMAT.into()),
            (Scalar::Time | Scalar::MicroTime, Value::String(text)) => {
                let (layout, rest) = match scalar {
                    Scalar::Time => ("2006-01-02T15:04:05Z07:00", None),
                    _ => ("2006-01-02T15:04:05.000000Z07:00", micro_rest(text)),
                };
                if text.parse::<jiff::Timestamp>().is_err() {
                    self.refuse(|| time_error(text, layout, text, "2006"));
                } else if let Some((rest, part)) = rest {
                    self.refuse(|| time_error(text, layout, rest, part));
                }
            }
            (Scalar::Time | Scalar::MicroTime, other) => self.misfit(word(other), "string", of),
            (_, other) => self.misfit(word(other), &go_shape(shape), of),
        }
    }
}

const QUANTITY_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// What is wrong with a quantity (apimachinery `resource.ParseQuantity`).
fn quantity_error(text: &str) -> Option<&'static str> {
    const SUFFIX: &str = "unable to parse quantity's suffix";
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest =
        digits.strip_prefix('.').map_or(digits, |d| d.trim_start_matches(|c: char| c.is_ascii_digit()));
    let number = &unsigned[..unsigned.len() - rest.len()];
    if !number.contains(|c: char| c.is_ascii_digit()) {
        return Some(QUANTITY_FORMAT);
    }
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let exponent = rest.strip_prefix(['e', 'E']).is_some_and(|power| power.parse::<i32>().is_ok());
    if known.contains(&rest) || exponent {
        // Amounts of more digits than anybody writes have no form here.
        return Quantity::parse(text).is_none().then_some(QUANTITY_FORMAT);
    }
    let letters = rest.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let tail = letters.strip_prefix(['+', '-']).unwrap_or(letters);
    Some(if tail.chars().all(|c| c.is_ascii_digit()) { SUFFIX } else { QUANTITY_FORMAT })
}

/// What is wrong with a time, as Go's `time.Parse` says of one that is no time at all.
fn time_error(text: &str, layout: &str, rest: &str, part: &str) -> String {
    format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {part:?}")
}

/// What of a time doesn't fit a layout of exactly six places behind the second, and what should stand there.
fn micro_rest(text: &str) -> Option<(&str, &'static str)> {
    let rest = text.get(text.find(['T', 't', ' '])? + "T15:04:05".len()..)?;
    let Some(digits) = rest.strip_prefix(['.', ',']) else { return Some((rest, ".000000")) };
    let many = digits.chars().take_while(char::is_ascii_digit).count();
    match many {
        6 => None,
        0..6 => Some((rest, ".000000")),
        _ => Some((&digits[6..], "Z07:00")),
    }
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
            assert_eq!(check(&value, &deployment()).misfit.as_deref(), Some(expected));
        }
    }
}
