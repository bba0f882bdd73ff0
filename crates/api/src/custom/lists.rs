//! Lists that are sets or maps (`x-kubernetes-list-type`): that nothing is in them twice.

use serde_json::{Map, Value};

use crate::fielderror::FieldError;
use crate::walk;

/// What is in lists more often than once.
pub fn validate(schema: &Value, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    within(schema, value, "", &mut errors);
    errors
}

fn within(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            let properties = walk::map(schema, "properties");
            let values = walk::at(schema, "additionalProperties").filter(|of| of.is_object());
            for (name, value) in map {
                if let Some(of) = values {
                    within(of, value, &format!("{path}[{name}]"), errors);
                }
                if let Some(of) = properties.get(name) {
                    let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    within(of, value, &place, errors);
                }
            }
        }
        Value::Array(items) => {
            match walk::text(schema, "x-kubernetes-list-type") {
                "set" => twice(items, path, |item| item.clone(), errors),
                "map" => {
                    let misfit = items.iter().position(|item| !item.is_object() && !item.is_null());
                    if let Some(index) = misfit {
                        let why = "must be an object for an array of list-type map";
                        errors.push(FieldError::invalid(
                            format!("{path}[{index}]"),
                            items[index].clone(),
                            why,
                        ));
                    } else {
                        twice(items, path, |item| key(schema, item), errors);
                    }
                }
                _ => {}
            }
            if let Some(of) = walk::at(schema, "items").filter(|of| of.is_object()) {
                for (index, item) in items.iter().enumerate() {
                    within(of, item, &format!("{path}[{index}]"), errors);
                }
            }
        }
        _ => {}
    }
}

/// The fields by which an item is known.
fn key(schema: &Value, item: &Value) -> Value {
    let names = walk::list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let key: Map<String, Value> =
        names.into_iter().filter_map(|name| Some((name.to_owned(), item.get(name)?.clone()))).collect();
    Value::Object(key)
}

/// Names each thing that is there more often than once, at its second place.
fn twice(items: &[Value], path: &str, of: impl Fn(&Value) -> Value, errors: &mut Vec<FieldError>) {
    let keys: Vec<Value> = items.iter().map(of).collect();
    for (index, key) in keys.iter().enumerate() {
        if keys[..index].iter().filter(|before| *before == key).count() == 1 {
            errors.push(FieldError::duplicate(format!("{path}[{index}]"), key.clone()));
        }
    }
}
