//! What becomes of an object on its way through Go's structs: what may be left out when empty is, other fields are there
//! with their zero.

use serde_json::{Map, Value};

use super::{Field, Scalar, Shape, Type};

/// What Go's `encoding/json` does with the fields of an object that was read into a struct.
pub fn complete(of: &Type, object: &mut Map<String, Value>) {
    for field in of.flat() {
        match object.get(&field.name) {
            Some(value) if left_out(field, value) => {
                object.shift_remove(&field.name);
            }
            Some(_) => {}
            None => {
                if let Some(value) = absent(field) {
                    object.insert(field.name.clone(), value);
                }
            }
        }
    }
}

/// Gives this time to conditions that came without one. `meta.v1.Condition` demands a time, yet clients leave it out, and
/// kube-apiserver then keeps `null`, with which clients of languages stricter than Go can't read the object, nor the list
/// that it is in.
pub fn date_conditions(object: &mut Value, of: &Type, now: &str) {
    fn items(field: &Field) -> Option<&Type> {
        match &field.shape {
            Shape::List(item) => match &**item {
                Shape::Object(of) => Some(of.get()),
                _ => None,
            },
            _ => None,
        }
    }
    let status = of.field("status").and_then(|status| match &status.shape {
        Shape::Object(of) => of.get().field("conditions"),
        _ => None,
    });
    if status.and_then(items).is_none_or(|of| of.name != "meta/v1.Condition") {
        return;
    }
    let conditions = object.get_mut("status").and_then(|status| status.get_mut("conditions"));
    for condition in conditions.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            let time = condition.entry("lastTransitionTime").or_insert(Value::Null);
            if time.is_null() {
                *time = now.into();
            }
        }
    }
}

/// In a list or a map, a null is the zero of what belongs there.
pub fn fill_nulls(map: &mut Map<String, Value>, of: &Type) {
    fn fill(value: &mut Value, shape: &Shape) {
        let item = |value: &mut Value, inner: &Shape| match value {
            Value::Null => {
                *value = match inner {
                    Shape::Object(_) => Value::Object(Map::new()),
                    inner => zero(inner),
                }
            }
            value => fill(value, inner),
        };
        match (value, shape) {
            (Value::Object(map), Shape::Object(inner)) => fill_nulls(map, inner.get()),
            (Value::Array(items), Shape::List(inner)) => {
                items.iter_mut().for_each(|value| item(value, inner))
            }
            (Value::Object(map), Shape::Map(inner)) => map.values_mut().for_each(|value| item(value, inner)),
            _ => {}
        }
    }
    for (key, value) in map {
        if let Some(field) = of.field(key) {
            fill(value, &field.shape);
        }
    }
}

/// The object as it stands in Go's struct, written out again: what a typed client would have sent, nulls included.
pub fn typed(value: &Value, shape: &Shape) -> Value {
    match (value, shape) {
        (Value::Object(map), Shape::Object(inner)) => Value::Object(typed_fields(map, inner.get())),
        (Value::Null, Shape::Object(_)) => zero(shape),
        (Value::Array(items), Shape::List(inner)) => {
            Value::Array(items.iter().map(|item| typed(item, inner)).collect())
        }
        (Value::Object(map), Shape::Map(inner)) => {
            Value::Object(map.iter().map(|(key, item)| (key.clone(), typed(item, inner))).collect())
        }
        _ => value.clone(),
    }
}

/// The same of a type's fields.
pub fn typed_fields(map: &Map<String, Value>, of: &Type) -> Map<String, Value> {
    let mut out: Map<String, Value> = map
        .iter()
        .map(|(key, value)| {
            let value = match of.field(key) {
                Some(field) if value.is_null() && field.pointer => Value::Null,
                Some(field) => typed(value, &field.shape),
                None => value.clone(),
            };
            (key.clone(), value)
        })
        .collect();
    complete(of, &mut out);
    out
}

/// An object of this type of which nothing is said.
pub fn empty(of: &Type) -> Value {
    Value::Object(typed_fields(&Map::new(), of))
}

/// Whether Go has a struct for it, which is never empty to `omitempty`.
fn is_struct(shape: &Shape) -> bool {
    match shape {
        Shape::Object(_) => true,
        Shape::Scalar(scalar) => matches!(
            scalar,
            Scalar::IntOrString | Scalar::Quantity | Scalar::Time | Scalar::MicroTime | Scalar::Raw
        ),
        _ => false,
    }
}

fn left_out(field: &Field, value: &Value) -> bool {
    match (field.omit_empty || field.omit_zero, field.pointer) {
        (false, _) => false,
        (true, true) => value.is_null(),
        (true, false) if is_struct(&field.shape) => field.omit_zero && value.is_null(),
        (true, false) => is_empty(value, &field.shape),
    }
}

/// What stands for a field that isn't there: nothing if it may be left out. A struct can't be.
fn absent(field: &Field) -> Option<Value> {
    // A field of no number is one of `TypeMeta`, or one of a custom resource.
    if field.number == 0 || field.omit_zero {
        return None;
    }
    match (&field.shape, field.omit_empty, field.pointer) {
        (_, true, true) => None,
        (_, false, true) => Some(Value::Null),
        (shape, _, false) if is_struct(shape) => Some(zero(shape)),
        (_, true, false) => None,
        (shape, false, false) => Some(zero(shape)),
    }
}

/// The zero of a shape in JSON.
pub fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::Scalar(Scalar::String) => "".into(),
        Shape::Scalar(Scalar::Bool) => false.into(),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString) => 0.into(),
        Shape::Scalar(Scalar::Quantity) => "0".into(),
        Shape::Object(inner) => empty(inner.get()),
        _ => Value::Null,
    }
}

/// Drops what a type doesn't have: Go's structs have no place for it.
pub fn prune(value: &mut Value, shape: &Shape) {
    match (value, shape) {
        (Value::Object(map), Shape::Object(inner)) => prune_fields(map, inner.get()),
        (Value::Array(items), Shape::List(inner)) => items.iter_mut().for_each(|item| prune(item, inner)),
        (Value::Object(map), Shape::Map(inner)) => map.values_mut().for_each(|item| prune(item, inner)),
        _ => {}
    }
}

/// The same of a type's fields.
pub fn prune_fields(map: &mut Map<String, Value>, of: &Type) {
    map.retain(|key, value| match of.field(key) {
        Some(field) => {
            prune(value, &field.shape);
            true
        }
        None => of.open,
    });
}

fn is_empty(value: &Value, shape: &Shape) -> bool {
    match (value, shape) {
        (Value::Null, _) => true,
        (Value::Bool(flag), _) => !flag,
        (Value::Number(number), _) => number.as_f64() == Some(0.0),
        (Value::String(text), _) => text.is_empty(),
        (Value::Array(items), _) => items.is_empty(),
        (Value::Object(map), Shape::Map(_)) => map.is_empty(),
        (Value::Object(_), _) => false,
    }
}
