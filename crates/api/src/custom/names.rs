//! Which names a definition has been given, and what it says of itself (apiextensions-apiserver `controller/status`,
//! `controller/establish`, `controller/finalizer`).

use serde_json::{Value, json};

use crate::walk;

/// What removes a definition's objects before it goes.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Whether a condition of a definition is true.
pub fn is(definition: &Value, condition: &str) -> bool {
    let conditions = walk::list(definition, "status.conditions").iter();
    conditions.clone().any(|c| walk::text(c, "type") == condition && walk::text(c, "status") == "True")
}

/// Writes a condition; its time changes with its status.
pub fn set(definition: &mut Value, condition: [&str; 4], now: &str) {
    let [name, status, reason, message] = condition;
    let mut conditions = walk::list(definition, "status.conditions").to_vec();
    let time = |old: Option<&Value>| match old {
        Some(old) if walk::text(old, "status") == status => {
            old.get("lastTransitionTime").cloned().unwrap_or_else(|| now.into())
        }
        _ => now.into(),
    };
    let made = |old: Option<&Value>| json!({"lastTransitionTime": time(old), "message": message, "reason": reason, "status": status, "type": name});
    match conditions.iter_mut().find(|c| walk::text(c, "type") == name) {
        Some(found) => *found = made(Some(found)),
        None => conditions.push(made(None)),
    }
    walk::set(definition, "status.conditions", conditions);
}

fn texts<'v>(value: &'v Value, path: &str) -> Vec<&'v str> {
    walk::list(value, path).iter().filter_map(Value::as_str).collect()
}

/// What others of the group have: names of resources, and of kinds.
fn taken(others: &[Value]) -> [Vec<&str>; 2] {
    let (mut resources, mut kinds) = (Vec::new(), Vec::new());
    for other in others {
        let name = |field: &str| walk::text(other, &format!("status.acceptedNames.{field}"));
        resources.extend([name("plural"), name("singular")]);
        resources.extend(texts(other, "status.acceptedNames.shortNames"));
        kinds.extend([name("kind"), name("listKind")]);
    }
    [resources, kinds]
}

/// The definition with the names that it may have, others of its group considered, and established if all of them are.
/// `others` are the definitions of the group but this one.
pub fn accept(definition: &Value, others: &[Value], now: &str) -> Value {
    let mut new = definition.clone();
    let [resources, kinds] = taken(others);
    let mut fault: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{} is already in use", crate::fielderror::quote(name));
    for (field, reason, taken) in [
        ("plural", "PluralConflict", &resources),
        ("singular", "SingularConflict", &resources),
        ("shortNames", "ShortNamesConflict", &resources),
        ("kind", "KindConflict", &kinds),
        ("listKind", "ListKindConflict", &kinds),
    ] {
        let (from, to) = (format!("spec.names.{field}"), format!("status.acceptedNames.{field}"));
        if walk::at(definition, &from) == walk::at(definition, &to) {
            continue;
        }
        let asked = match field {
            "shortNames" => {
                let have = texts(definition, &to);
                texts(definition, &from).into_iter().filter(|name| !have.contains(name)).collect()
            }
            _ => vec![walk::text(definition, &from)],
        };
        let clashes: Vec<String> =
            asked.into_iter().filter(|name| taken.contains(name)).map(in_use).collect();
        match clashes.as_slice() {
            [] => match walk::at(definition, &from) {
                Some(value) => walk::set(&mut new, &to, value.clone()),
                None => drop(walk::remove(&mut new, &to)),
            },
            [one] => fault = Some((reason, one.clone())),
            several => fault = Some((reason, format!("[{}]", several.join(", ")))),
        }
    }
    match walk::at(definition, "spec.names.categories") {
        Some(value) => walk::set(&mut new, "status.acceptedNames.categories", value.clone()),
        None => drop(walk::remove(&mut new, "status.acceptedNames.categories")),
    }
    match fault {
        None => {
            set(&mut new, ["NamesAccepted", "True", "NoConflicts", "no conflicts found"], now);
            if !is(definition, "Established") {
                let why = "the initial names have been accepted";
                set(&mut new, ["Established", "True", "InitialNamesAccepted", why], now);
            }
        }
        Some((reason, message)) => {
            set(&mut new, ["NamesAccepted", "False", reason, &message], now);
            if !is(definition, "Established") {
                set(&mut new, ["Established", "False", "NotAccepted", "not all names are accepted"], now);
            }
        }
    }
    new
}

/// Whether the definition has yet to get names.
pub fn is_unsettled(definition: &Value) -> bool {
    let (asked, have) = (walk::at(definition, "spec.names"), walk::at(definition, "status.acceptedNames"));
    asked != have || !is(definition, "Established")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        let names = json!({
            "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
            "shortNames": short,
        });
        json!({"spec": {"group": "example.com", "names": names}, "status": {"storedVersions": ["v1"]}})
    }

    #[test]
    fn names_are_given_once() {
        let first = accept(&definition("foos", "Foo", &["f"]), &[], "now");
        assert!(is(&first, "Established") && is(&first, "NamesAccepted"));
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        let second = accept(&definition("bars", "Foo", &["f", "b"]), std::slice::from_ref(&first), "now");
        assert!(!is(&second, "Established") && !is(&second, "NamesAccepted"));
        let condition = &second["status"]["conditions"][0];
        assert_eq!(condition["reason"], "ListKindConflict");
        assert_eq!(condition["message"], "\"FooList\" is already in use");
        assert_eq!(second["status"]["acceptedNames"], json!({"plural": "bars"}));
        // When the first is gone the second gets what it asked for.
        let again = accept(&second, &[], "later");
        assert!(is(&again, "Established"));
        assert_eq!(again["status"]["acceptedNames"], again["spec"]["names"]);
    }
}
