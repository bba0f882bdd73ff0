//! Bodies in Kubernetes' protobuf (`application/vnd.kubernetes.protobuf`), read to the JSON that says the same.
//!
//! The form is four bytes, then a `runtime.Unknown` that names the kind and holds the object (apimachinery
//! `runtime/serializer/protobuf`). The object is read with the table of types, so every kind of the table can be. Answers are
//! always JSON: every client that prefers protobuf takes it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use crate::schema::{self, Scalar, SchemaOr, Shape, Type, TypeRef, go};
use crate::{meta, walk};

/// The media type.
pub const MEDIA: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";

/// Why a body could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a body of this form.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    /// It ends too soon, or a part of it has another form than its type says.
    #[error("the protobuf message is malformed at {0}")]
    Malformed(String),
    /// A kind that is not in the table.
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Unknown {
        /// `apps/v1`.
        version: String,
        /// `Deployment`.
        kind: String,
    },
}

/// The object in a body. What it says of its own kind is kept; `expected` (`apiVersion` and `kind`) is what it is where it
/// says nothing.
pub fn decode(body: &[u8], expected: (&str, &str)) -> Result<Value, Error> {
    let body = body.strip_prefix(MAGIC).ok_or(Error::Prefix)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in Parts(body) {
        match part.map_err(|()| malformed("its envelope"))? {
            (1, Wire::Bytes(types)) => {
                for part in Parts(types) {
                    match part.map_err(|()| malformed("its envelope"))? {
                        (1, Wire::Bytes(text)) => version = utf8(text),
                        (2, Wire::Bytes(text)) => kind = utf8(text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    if version.is_empty() {
        version = expected.0.into();
    }
    if kind.is_empty() {
        kind = expected.1.into();
    }
    let Some(found) = schema::of(&version, &kind) else { return Err(Error::Unknown { version, kind }) };
    let mut object = Map::new();
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), version.into());
    message(raw, found.get(), &mut object, 0)?;
    Ok(Value::Object(object))
}

fn malformed(place: impl Into<String>) -> Error {
    Error::Malformed(place.into())
}

/// A text. In Go it may be any bytes; JSON then gets the replacement character, as `encoding/json` writes.
fn utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One field as it stands on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message in their order.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn part(&mut self) -> Option<(u32, Wire<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let count = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(count)?)
            }
            5 => Wire::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((number, wire))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), ()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_none() {
            self.0 = &[];
        }
        Some(part.ok_or(()))
    }
}

/// Reads a message into an object, then writes and leaves out what Go's encoder would.
fn message(bytes: &[u8], of: &Type, into: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    if depth > walk::DEPTH {
        return Err(malformed(format!("{}: nested too deep", of.name)));
    }
    for part in Parts(bytes) {
        let (number, wire) = part.map_err(|()| malformed(&*of.name))?;
        let Some(field) = of.fields.iter().find(|field| field.number == number) else { continue };
        let place = || malformed(format!("{}.{}", of.name, field.name));
        match (&field.shape, wire) {
            (Shape::Object(inner), Wire::Bytes(bytes)) if field.name.is_empty() => {
                message(bytes, inner.get(), into, depth + 1)?;
            }
            (Shape::List(items), wire) => {
                let list = into.entry(&*field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { return Err(place()) };
                match (&**items, wire) {
                    // Packed, which Go's encoder for proto2 doesn't write and any decoder must read.
                    (Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool), Wire::Bytes(packed)) => {
                        let mut rest = Parts(packed);
                        while !rest.0.is_empty() {
                            let number = rest.varint().ok_or_else(place)?;
                            list.push(value(items, Wire::Number(number), depth)?.ok_or_else(place)?);
                        }
                    }
                    (items, wire) => list.push(value(items, wire, depth)?.ok_or_else(place)?),
                }
            }
            (Shape::Map(values), Wire::Bytes(entry)) => {
                let (mut key, mut of_key) = (String::new(), None);
                for part in Parts(entry) {
                    match part.map_err(|()| place())? {
                        (1, Wire::Bytes(text)) => key = utf8(text),
                        (2, wire) => of_key = value(values, wire, depth)?,
                        _ => {}
                    }
                }
                let map = into.entry(&*field.name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = map else { return Err(place()) };
                map.insert(key, of_key.unwrap_or_else(|| go::zero(values)));
            }
            (shape, wire) => {
                let read = value(shape, wire, depth)?.ok_or_else(place)?;
                into.insert(field.name.clone(), read);
            }
        }
    }
    go::complete(of, into);
    Ok(())
}

/// A value of some shape; none if the wire has another form.
fn value(shape: &Shape, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, Error> {
    Ok(match (shape, wire) {
        (Shape::Scalar(scalar), wire) => match (scalar, wire) {
            (Scalar::String, Wire::Bytes(text)) => Some(utf8(text).into()),
            (Scalar::Bytes, Wire::Bytes(bytes)) => Some(BASE64.encode(bytes).into()),
            (Scalar::Bool, Wire::Number(number)) => Some((number != 0).into()),
            // Negative numbers are sent as 64 bits of two's complement.
            (Scalar::Int32, Wire::Number(number)) => Some((number as i32).into()),
            (Scalar::Int64, Wire::Number(number)) => Some((number as i64).into()),
            (Scalar::Double, Wire::Number(bits)) => {
                let number = f64::from_bits(bits);
                let whole = number.fract() == 0.0 && number.abs() < 1e15;
                Some(if whole { (number as i64).into() } else { number.into() })
            }
            (_, Wire::Bytes(bytes)) => special(*scalar, bytes)?,
            _ => None,
        },
        (Shape::Object(inner), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            message(bytes, inner.get(), &mut object, depth + 1)?;
            Some(Value::Object(object))
        }
        (Shape::Strings, Wire::Bytes(bytes)) => {
            let mut list = Vec::new();
            for part in Parts(bytes) {
                if let (1, Wire::Bytes(text)) = part.map_err(|()| malformed("a list"))? {
                    list.push(utf8(text).into());
                }
            }
            Some(Value::Array(list))
        }
        (Shape::SchemaOr(or), Wire::Bytes(bytes)) => Some(schema_or(*or, bytes, depth)?),
        _ => None,
    })
}

/// The messages that have a JSON form of their own. None stands for null.
fn special(scalar: Scalar, bytes: &[u8]) -> Result<Option<Value>, Error> {
    let (mut numbers, mut text) = ([0_i64; 4], &[][..]);
    for part in Parts(bytes) {
        match part.map_err(|()| malformed(format!("{scalar:?}")))? {
            (number @ 1..=3, Wire::Number(n)) => numbers[number as usize] = n as i64,
            (_, Wire::Bytes(bytes)) => text = bytes,
            _ => {}
        }
    }
    Ok(Some(match scalar {
        Scalar::Quantity => {
            let text = utf8(text);
            if text.is_empty() { "0".into() } else { text.into() }
        }
        Scalar::IntOrString if numbers[1] == 0 => (numbers[2] as i32).into(),
        Scalar::IntOrString => utf8(text).into(),
        Scalar::Time | Scalar::MicroTime => {
            // The zero of Go's time, the first of January of the year 1, is null in JSON; on the wire it is an empty message.
            if bytes.is_empty() || numbers[1] == -62_135_596_800 {
                return Ok(Some(Value::Null));
            }
            let at = jiff::Timestamp::new(numbers[1], numbers[2] as i32)
                .map_err(|error| malformed(error.to_string()))?;
            if scalar == Scalar::Time { meta::rfc3339(at).into() } else { meta::rfc3339_micro(at).into() }
        }
        Scalar::Fields | Scalar::Raw | Scalar::Json if text.is_empty() => Value::Null,
        Scalar::Fields | Scalar::Raw | Scalar::Json => {
            serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?
        }
        _ => return Ok(None),
    }))
}

/// A schema, or what stands in its place (apiextensions.k8s.io/v1 `JSONSchemaPropsOr…`).
fn schema_or(or: SchemaOr, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let props: Option<TypeRef> = schema::find("apiextensions/v1.JSONSchemaProps");
    let (mut flag, mut single, mut list) = (false, None, Vec::new());
    let read = |bytes| {
        let mut object = Map::new();
        if let Some(props) = &props {
            message(bytes, props.get(), &mut object, depth + 1)?;
        }
        Ok(Value::Object(object))
    };
    for part in Parts(bytes) {
        match (or, part.map_err(|()| malformed("a schema"))?) {
            (SchemaOr::Bool, (1, Wire::Number(n))) => flag = n != 0,
            (SchemaOr::Bool, (2, Wire::Bytes(bytes))) | (_, (1, Wire::Bytes(bytes))) => {
                single = Some(read(bytes)?);
            }
            (SchemaOr::Array, (2, Wire::Bytes(bytes))) => list.push(read(bytes)?),
            (SchemaOr::Strings, (2, Wire::Bytes(text))) => list.push(utf8(text).into()),
            _ => {}
        }
    }
    Ok(match (or, single) {
        (_, Some(schema)) => schema,
        (SchemaOr::Bool, None) => flag.into(),
        (_, None) => Value::Array(list),
    })
}

#[cfg(test)]
mod tests;
