//! What of two states differs, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Of each kind, its objects as texts.
pub type State = BTreeMap<String, Vec<String>>;

/// What one says and the other doesn't, but for what was reported before.
pub fn parted(a: &State, b: &State, known: &BTreeSet<String>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (kind, texts) in a {
        let mut theirs = b.get(kind).cloned().unwrap_or_default();
        for text in texts {
            match theirs.iter().position(|other| other == text) {
                Some(at) => drop(theirs.swap_remove(at)),
                None if !known.contains(text) => out.push((kind.clone(), text.clone())),
                None => {}
            }
        }
    }
    out
}

/// What differs, a line a field: `Kind name path: theirs | ours`. Objects that are most alike are held against each other.
pub fn fields(of_real: &[(String, String)], of_ours: &[(String, String)]) -> Vec<String> {
    let read = |text: &str| -> Value { serde_json::from_str(text).expect("a text of ours") };
    let mut left: Vec<(&str, Value)> =
        of_ours.iter().map(|(kind, text)| (kind.as_str(), read(text))).collect();
    let mut lines = Vec::new();
    for (kind, text) in of_real {
        let real = read(text);
        let apart = |ours: &Value| {
            let mut out = Vec::new();
            compare("", &real, ours, &mut out);
            out
        };
        let best = (0..left.len())
            .filter(|at| left[*at].0 == kind && named(&left[*at].1) == named(&real))
            .min_by_key(|at| apart(&left[*at].1).len());
        match best {
            Some(at) => {
                let (_, ours) = left.swap_remove(at);
                lines.extend(apart(&ours).iter().map(|line| format!("{kind} {}{line}", named(&real))));
            }
            None => lines.push(format!("{kind} {}: {real} | nothing", named(&real))),
        }
    }
    lines.extend(left.iter().map(|(kind, ours)| format!("{kind} {}: nothing | {ours}", named(ours))));
    lines
}

/// What an object is called; of an event, what it is about.
fn named(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match object["involvedObject"].is_object() {
        true => format!("{} {}", text(&object["involvedObject"]["name"]), text(&object["reason"])),
        false => text(&object["metadata"]["name"]),
    }
}

fn compare(place: &str, real: &Value, ours: &Value, out: &mut Vec<String>) {
    match (real, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let at = format!("{place}.{key}");
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => compare(&at, a, b, out),
                    (a, b) => {
                        let shown = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
                        out.push(format!("{at}: {} | {}", shown(a), shown(b)));
                    }
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{place}[{index}]"), a, b, out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{place}: {a} | {b}")),
    }
}
