//! Fields by JSON pointers (RFC 6901), made where they are not.

use serde_json::{Map, Value};

fn steps(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}

/// Puts a value at a place; what is on the way there is made. A list grows by one at most.
pub fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for step in steps(pointer) {
        if let (Value::Array(list), Ok(index)) = (&mut *at, step.parse::<usize>()) {
            let index = index.min(list.len());
            if index == list.len() {
                list.push(Value::Null);
            }
            at = match at {
                Value::Array(list) => &mut list[index],
                _ => unreachable!("it is a list"),
            };
            continue;
        }
        if !at.is_object() {
            // A place in a list that isn't there yet.
            if step == "0" {
                *at = Value::Array(vec![Value::Null]);
                at = &mut at[0];
                continue;
            }
            *at = Value::Object(Map::new());
        }
        at = at.as_object_mut().expect("just made").entry(step).or_insert(Value::Null);
    }
    *at = value;
}

/// Takes away what is at a place, if anything is.
pub fn remove(object: &mut Value, pointer: &str) {
    let mut steps = steps(pointer);
    let Some(last) = steps.pop() else { return };
    let mut at = object;
    for step in steps {
        let next = match at {
            Value::Object(map) => map.get_mut(&step),
            Value::Array(list) => step.parse::<usize>().ok().and_then(|index| list.get_mut(index)),
            _ => None,
        };
        let Some(next) = next else { return };
        at = next;
    }
    match at {
        Value::Object(map) => {
            map.shift_remove(&last);
        }
        Value::Array(list) => {
            if let Ok(index) = last.parse::<usize>()
                && index < list.len()
            {
                list.remove(index);
            }
        }
        _ => {}
    }
}

/// Every smaller value that lacks one member or item of this one, the largest omissions first.
pub fn smaller(value: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    match value {
        Value::Object(map) => {
            for key in map.keys() {
                let mut less = map.clone();
                less.shift_remove(key);
                out.push(Value::Object(less));
            }
            for (key, inner) in map {
                for inner in smaller(inner) {
                    let mut less = map.clone();
                    less.insert(key.clone(), inner);
                    out.push(Value::Object(less));
                }
            }
        }
        Value::Array(list) => {
            for index in 0..list.len() {
                let mut less = list.clone();
                less.remove(index);
                out.push(Value::Array(less));
            }
            for (index, inner) in list.iter().enumerate() {
                for inner in smaller(inner) {
                    let mut less = list.clone();
                    less[index] = inner;
                    out.push(Value::Array(less));
                }
            }
        }
        _ => {}
    }
    out
}
