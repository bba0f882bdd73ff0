//! The document of version 2 as client-go asks for it: in the protobuf of gnostic (`openapiv2/OpenAPIv2.proto`).
//!
//! It is made from the JSON, by a table of the messages that this server's document has: field numbers by the names in JSON. What isn't
//! in the table is left out.

use serde_json::{Map, Value};

/// The media type, and the older spelling of it (kube-openapi, handler).
pub(crate) const MEDIA: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];

/// A message: its fields by their names in JSON, and the number of its `vendor_extension`.
struct Message {
    fields: &'static [(&'static str, u32, Form)],
    extensions: Option<u32>,
}

/// How a field is written.
enum Form {
    Text,
    Texts,
    Flag,
    Integer,
    Double,
    /// Anything, as YAML.
    Any,
    Anys,
    One(&'static Message),
    Many(&'static Message),
    /// A map: a message whose field of this number repeats pairs of a name and a message.
    Named(u32, &'static Message),
    /// A message whose only field, of this number, is the value's form.
    Within(u32, &'static Form),
    /// One text or several.
    TextOrTexts,
    /// True or false, or a schema.
    FlagOrSchema,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::One(&INFO)),
        ("paths", 8, Form::Named(2, &PATH_ITEM)),
        ("definitions", 9, Form::Named(1, &SCHEMA)),
    ],
    extensions: None,
};

static INFO: Message =
    Message { fields: &[("title", 1, Form::Text), ("version", 2, Form::Text)], extensions: None };

static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Form::One(&OPERATION)),
        ("put", 3, Form::One(&OPERATION)),
        ("post", 4, Form::One(&OPERATION)),
        ("delete", 5, Form::One(&OPERATION)),
        ("patch", 8, Form::One(&OPERATION)),
    ],
    extensions: Some(10),
};

static OPERATION: Message = Message {
    fields: &[
        ("description", 3, Form::Text),
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Texts),
        ("consumes", 7, Form::Texts),
        ("responses", 9, Form::Named(1, &RESPONSE_VALUE)),
    ],
    extensions: Some(13),
};

/// A response is wrapped, because there could be a reference in its place.
static RESPONSE_VALUE: Message = Message { fields: &[("", 1, Form::One(&RESPONSE))], extensions: None };

static RESPONSE: Message = Message { fields: &[("description", 1, Form::Text)], extensions: Some(5) };

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("title", 3, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("multipleOf", 6, Form::Double),
        ("maximum", 7, Form::Double),
        ("exclusiveMaximum", 8, Form::Flag),
        ("minimum", 9, Form::Double),
        ("exclusiveMinimum", 10, Form::Flag),
        ("maxLength", 11, Form::Integer),
        ("minLength", 12, Form::Integer),
        ("pattern", 13, Form::Text),
        ("maxItems", 14, Form::Integer),
        ("minItems", 15, Form::Integer),
        ("uniqueItems", 16, Form::Flag),
        ("maxProperties", 17, Form::Integer),
        ("minProperties", 18, Form::Integer),
        ("required", 19, Form::Texts),
        ("enum", 20, Form::Anys),
        ("additionalProperties", 21, Form::FlagOrSchema),
        ("type", 22, Form::TextOrTexts),
        ("items", 23, Form::Within(1, &Form::One(&SCHEMA))),
        ("allOf", 24, Form::Many(&SCHEMA)),
        ("properties", 25, Form::Named(1, &SCHEMA)),
        ("readOnly", 27, Form::Flag),
        ("example", 30, Form::Any),
    ],
    extensions: Some(31),
};

/// The document, written.
pub(crate) fn write(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, &DOCUMENT, document);
    out
}

fn message(out: &mut Vec<u8>, shape: &Message, value: &Value) {
    if let [("", number, inner)] = shape.fields {
        return field(out, *number, inner, value);
    }
    let Some(object) = value.as_object() else { return };
    for (name, number, form) in shape.fields {
        if let Some(value) = object.get(*name) {
            field(out, *number, form, value);
        }
    }
    if let Some(number) = shape.extensions {
        extensions(out, number, object);
    }
}

/// `vendor_extension`: pairs of a name and anything.
fn extensions(out: &mut Vec<u8>, number: u32, object: &Map<String, Value>) {
    for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
        nested(out, number, |out| {
            text(out, 1, name);
            field(out, 2, &Form::Any, value);
        });
    }
}

fn field(out: &mut Vec<u8>, number: u32, form: &Form, value: &Value) {
    match form {
        Form::Text => text(out, number, value.as_str().unwrap_or_default()),
        Form::Texts => {
            for one in value.as_array().into_iter().flatten() {
                text(out, number, one.as_str().unwrap_or_default());
            }
        }
        Form::Flag => {
            if value == true {
                key(out, number, 0);
                out.push(1);
            }
        }
        Form::Integer => {
            if let Some(value) = value.as_i64() {
                key(out, number, 0);
                varint(out, value.cast_unsigned());
            }
        }
        Form::Double => {
            if let Some(value) = value.as_f64() {
                key(out, number, 1);
                out.extend(value.to_le_bytes());
            }
        }
        // `Any` has two fields: a message of somebody's, and YAML, which JSON is.
        Form::Any => nested(out, number, |out| text(out, 2, &value.to_string())),
        Form::Anys => {
            for one in value.as_array().into_iter().flatten() {
                field(out, number, &Form::Any, one);
            }
        }
        Form::One(shape) => nested(out, number, |out| message(out, shape, value)),
        Form::Many(shape) => {
            for one in value.as_array().into_iter().flatten() {
                nested(out, number, |out| message(out, shape, one));
            }
        }
        Form::Named(pairs, shape) => nested(out, number, |out| {
            for (name, value) in value.as_object().into_iter().flatten() {
                nested(out, *pairs, |out| {
                    text(out, 1, name);
                    nested(out, 2, |out| message(out, shape, value));
                });
            }
        }),
        Form::Within(inner, form) => nested(out, number, |out| field(out, *inner, form, value)),
        Form::TextOrTexts => nested(out, number, |out| match value {
            Value::Array(_) => field(out, 1, &Form::Texts, value),
            _ => field(out, 1, &Form::Text, value),
        }),
        Form::FlagOrSchema => nested(out, number, |out| match value {
            Value::Bool(_) => field(out, 2, &Form::Flag, value),
            _ => field(out, 1, &Form::One(&SCHEMA), value),
        }),
    }
}

fn text(out: &mut Vec<u8>, number: u32, text: &str) {
    key(out, number, 2);
    varint(out, text.len() as u64);
    out.extend(text.as_bytes());
}

fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    key(out, number, 2);
    varint(out, inner.len() as u64);
    out.extend(inner);
}

fn key(out: &mut Vec<u8>, number: u32, wire: u32) {
    varint(out, u64::from(number << 3 | wire));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A field with its number: a length-delimited one has its bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let number = |bytes: &mut &[u8]| {
            let (mut value, mut shift) = (0_u64, 0);
            loop {
                let (first, rest) = bytes.split_first().expect("a whole number");
                *bytes = rest;
                value |= u64::from(first & 0x7f) << shift;
                shift += 7;
                if first & 0x80 == 0 {
                    return value;
                }
            }
        };
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let length = match key & 7 {
                0 => {
                    let value = number(&mut bytes);
                    all.push(((key >> 3) as u32, value.to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                _ => number(&mut bytes) as usize,
            };
            let (value, rest) = bytes.split_at(length);
            all.push(((key >> 3) as u32, value.to_vec()));
            bytes = rest;
        }
        all
    }

    fn inside(bytes: &[u8], path: &[u32]) -> Vec<u8> {
        path.iter().fold(bytes.to_vec(), |bytes, number| {
            let found = fields(&bytes).into_iter().find(|(n, _)| n == number);
            found.unwrap_or_else(|| panic!("no field {number} of {path:?}")).1
        })
    }

    #[test]
    fn a_document_is_written_with_the_numbers_of_gnostic() {
        let document = json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": "v1"},
            "paths": {"/api/v1/pods": {"get": {"produces": ["application/json"], "responses": {"200": {"description": "OK"}}}}},
            "definitions": {"v1.Pod": {
                "type": "object", "required": ["spec"], "x-kubernetes-group-version-kind": [{"kind": "Pod"}],
                "properties": {"n": {"type": "array", "items": {"type": "integer", "minimum": 1, "maxLength": 300}},
                    "m": {"additionalProperties": {"$ref": "#/definitions/x"}, "default": {}}},
            }},
        });
        let out = write(&document);
        assert_eq!(inside(&out, &[1]), b"2.0");
        assert_eq!(inside(&out, &[2, 1]), b"Kubernetes");
        // paths, path, its name; its value, get, responses, response_code, its value, response, description
        assert_eq!(inside(&out, &[8, 2, 1]), b"/api/v1/pods");
        assert_eq!(inside(&out, &[8, 2, 2, 2, 9, 1, 2, 1, 1]), b"OK");
        let pod = inside(&out, &[9, 1, 2]);
        assert_eq!(inside(&out, &[9, 1, 1]), b"v1.Pod");
        assert_eq!((inside(&pod, &[22, 1]), inside(&pod, &[19])), (b"object".to_vec(), b"spec".to_vec()));
        assert_eq!(inside(&pod, &[31, 1]), b"x-kubernetes-group-version-kind");
        assert_eq!(inside(&pod, &[31, 2, 2]), br#"[{"kind":"Pod"}]"#);
        let properties = fields(&inside(&pod, &[25]));
        let named = |name: &[u8]| {
            let found = properties.iter().find(|(_, pair)| inside(pair, &[1]) == name);
            inside(&found.expect("a property").1, &[2])
        };
        assert_eq!(inside(&named(b"n"), &[23, 1, 22, 1]), b"integer");
        assert_eq!(inside(&named(b"n"), &[23, 1, 9]), 1_f64.to_le_bytes());
        assert_eq!(inside(&named(b"n"), &[23, 1, 11]), 300_u64.to_le_bytes());
        assert_eq!(inside(&named(b"m"), &[21, 1, 1]), b"#/definitions/x");
        assert_eq!(inside(&named(b"m"), &[5, 2]), b"{}");
    }
}
