//! What all objects share: names, labels, owners, versions, and the rules of `metadata`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::walk;

mod rules;
pub use rules::*;

/// The object's name.
pub fn name(object: &Value) -> &str {
    walk::text(object, "metadata.name")
}

/// The object's namespace, empty if it has none.
pub fn namespace(object: &Value) -> &str {
    walk::text(object, "metadata.namespace")
}

/// The object's UID.
pub fn uid(object: &Value) -> &str {
    walk::text(object, "metadata.uid")
}

/// The object's resource version, empty if it has none.
pub fn resource_version(object: &Value) -> &str {
    walk::text(object, "metadata.resourceVersion")
}

/// Writes the resource version, which is the store's revision in decimal.
pub fn set_resource_version(object: &mut Value, revision: u64) {
    walk::set(object, "metadata.resourceVersion", revision.to_string());
}

/// Removes the resource version: the store adds it when it reads.
pub fn clear_resource_version(object: &mut Value) {
    walk::remove(object, "metadata.resourceVersion");
}

/// How often the desired state has changed.
pub fn generation(object: &Value) -> i64 {
    walk::int(object, "metadata.generation").unwrap_or(0)
}

/// Writes or removes the generation.
pub fn set_generation(object: &mut Value, generation: Option<i64>) {
    match generation {
        Some(n) => walk::set(object, "metadata.generation", n),
        None => {
            walk::remove(object, "metadata.generation");
        }
    }
}

/// The object's labels.
pub fn labels(object: &Value) -> &Map<String, Value> {
    walk::map(object, "metadata.labels")
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    walk::map(object, "metadata.annotations").get(key).and_then(Value::as_str)
}

/// The objects that own this one.
pub fn owner_references(object: &Value) -> &[Value] {
    walk::list(object, "metadata.ownerReferences")
}

/// The one owner that controls this object.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|r| walk::flag(r, "controller") == Some(true))
}

/// When deletion was asked for.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    walk::at(object, "metadata.deletionTimestamp").and_then(Value::as_str)
}

/// Who must agree before the object goes.
pub fn finalizers(object: &Value) -> Vec<&str> {
    walk::list(object, "metadata.finalizers").iter().filter_map(Value::as_str).collect()
}

/// Marks an object as being deleted. Asking again may shorten the grace and never lengthens it.
pub fn mark_deleted(object: &mut Value, now: Timestamp, grace_seconds: i64) {
    let grace = grace_seconds.max(0);
    let at = rfc3339(now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now));
    if deletion_timestamp(object).is_none() {
        // Deletion is a change of the desired state and counts as one (apiserver registry/rest/delete.go).
        if generation(object) > 0 {
            let next = generation(object) + 1;
            set_generation(object, Some(next));
        }
        walk::set(object, "metadata.deletionTimestamp", at);
        walk::set(object, "metadata.deletionGracePeriodSeconds", grace);
    } else if walk::int(object, "metadata.deletionGracePeriodSeconds").unwrap_or(0) > grace {
        walk::set(object, "metadata.deletionTimestamp", at);
        walk::set(object, "metadata.deletionGracePeriodSeconds", grace);
    }
}

/// Gives a new object what only the server may give: UID, time of creation, namespace; and drops what it may not bring.
pub fn fill_system_fields(object: &mut Value, namespace: Option<&str>, uid: &str, now: Timestamp) {
    let Some(meta) = walk::map_mut(object, "metadata") else { return };
    // A generation that nobody counts stays as the client wrote it, as in Kubernetes.
    for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta.shift_remove(field);
    }
    meta.insert("uid".into(), uid.into());
    meta.insert("creationTimestamp".into(), rfc3339(now).into());
    match namespace {
        Some(ns) => {
            meta.insert("namespace".into(), ns.into());
        }
        None => {
            meta.shift_remove("namespace");
        }
    }
}

/// Drops owners that are named twice; says which, by their UIDs.
pub fn dedup_owners(object: &mut Value) -> Vec<String> {
    let owners = owner_references(object);
    let mut once: Vec<Value> = Vec::with_capacity(owners.len());
    let mut twice = Vec::new();
    for owner in owners {
        if once.contains(owner) {
            twice.push(walk::text(owner, "uid").to_owned());
        } else {
            once.push(owner.clone());
        }
    }
    if !twice.is_empty() {
        walk::set(object, "metadata.ownerReferences", once);
    }
    twice
}

/// Makes a name out of `generateName` if the object has none. `random` draws a number below its argument.
pub fn generate_name(object: &mut Value, random: &mut dyn FnMut(u64) -> u64) {
    if !name(object).is_empty() {
        return;
    }
    let base = walk::text(object, "metadata.generateName");
    if base.is_empty() {
        return;
    }
    // Five letters without vowels or look-alikes, after at most 58 of the base, so that 63 are never passed
    // (apiserver storage/names/generate.go).
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut made: String = base.chars().take(58).collect();
    for _ in 0..5 {
        let i = random(LETTERS.len() as u64) as usize % LETTERS.len();
        made.push(char::from(LETTERS[i]));
    }
    walk::set(object, "metadata.name", made);
}

/// In an update, keeps the parts of metadata that clients do not own: a field left out or changed there is no change.
pub fn keep_system_fields(new: &mut Value, old: &Value) {
    let old_meta = walk::map(old, "metadata");
    let Some(meta) = walk::map_mut(new, "metadata") else { return };
    for field in ["generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        match old_meta.get(field) {
            Some(value) => {
                meta.insert(field.into(), value.clone());
            }
            // Deletion can't be begun like this, which is for the rules to say.
            None if field.starts_with("deletion") => {}
            None => {
                meta.shift_remove(field);
            }
        }
    }
    // Long out of use, and kept by nobody.
    meta.shift_remove("selfLink");
    for field in ["uid", "name", "namespace"] {
        let absent = meta.get(field).and_then(Value::as_str).is_none_or(str::is_empty);
        if let (true, Some(value)) = (absent, old_meta.get(field)) {
            meta.insert(field.into(), value.clone());
        }
    }
}

/// A timestamp as Kubernetes writes it: whole seconds, UTC.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A timestamp with microseconds, as Lease and Event carry it.
pub fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A reference to an owner that controls.
pub fn controller_reference(api_version: &str, kind: &str, owner: &Value) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind, "name": name(owner), "uid": uid(owner),
        "controller": true, "blockOwnerDeletion": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{Kind, find};

    fn texts(plural: &str, object: &Value) -> Vec<String> {
        let Kind::Listed(entry) = find("", "v1", plural).unwrap() else { panic!("a kind of the table") };
        validate(object, entry.namespaced, entry.names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_checked_as_each_kind_demands() {
        let of = |name: &str| json!({"metadata": {"name": name, "namespace": "d"}});
        assert!(texts("services", &of("1a")).is_empty());
        assert!(texts("configmaps", &of("a.b")).is_empty());
        let dotted = texts("services", &of("a.b"));
        assert_eq!(dotted, ["metadata.name: Invalid value: \"a.b\": must not contain dots"]);
        let capital = texts("configmaps", &of("A"));
        assert!(
            capital[0]
                .starts_with("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must")
        );
        assert_eq!(
            texts("services", &of(&"a".repeat(64))),
            [format!(
                "metadata.name: Invalid value: \"{}\": must be no more than 63 characters",
                "a".repeat(64)
            )]
        );
        assert_eq!(
            texts("services", &json!({"metadata": {"namespace": "d"}})),
            ["metadata.name: Required value: name or generateName is required"]
        );
        assert_eq!(
            texts("namespaces", &json!({"metadata": {"name": "a", "namespace": "d"}})),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
    }

    #[test]
    fn labels_owners_and_finalizers_are_checked() {
        let object = json!({"metadata": {"name": "a", "namespace": "d", "labels": {"-x": "ok", "y": "no!"},
            "finalizers": ["a/b/c"], "ownerReferences": [{"apiVersion": "v1", "kind": "", "name": "n", "uid": "u"}]}});
        let found = texts("configmaps", &object);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].starts_with("metadata.labels: Invalid value: \"-x\": name part must consist"));
        assert!(
            found[1].starts_with(
                "metadata.labels: Invalid value: \"no!\": a valid label must be an empty string"
            )
        );
        assert_eq!(found[2], "metadata.ownerReferences.kind: Invalid value: \"\": must not be empty");
        assert!(
            found[3].starts_with("metadata.finalizers: Invalid value: \"a/b/c\": a valid label key must")
        );
    }

    #[test]
    fn what_clients_do_not_own_survives_an_update() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "t", "generation": 3}});
        let mut new = json!({"metadata": {"name": "a", "creationTimestamp": "later", "generation": 9}});
        keep_system_fields(&mut new, &old);
        assert_eq!(
            new["metadata"],
            json!({"name": "a", "uid": "u", "creationTimestamp": "t", "generation": 3})
        );
        let mut other = json!({"metadata": {"name": "a", "uid": "v"}});
        keep_system_fields(&mut other, &old);
        assert_eq!(
            validate_update(&other, &old)[0].to_string(),
            "metadata.uid: Invalid value: \"v\": field is immutable"
        );
    }

    #[test]
    fn finalizers_may_go_and_none_may_come_on_the_way_out() {
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["x/a"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["x/a", "x/b"]);
        assert_eq!(
            validate_update(&new, &old)[0].to_string(),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
             finalizers []string{\"x/b\"}"
        );
        new["metadata"]["finalizers"] = json!([]);
        assert!(validate_update(&new, &old).is_empty());
    }

    #[test]
    fn deletion_asked_for_twice_shortens_the_grace_and_never_lengthens_it() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut object = json!({"metadata": {"generation": 1}});
        mark_deleted(&mut object, now, 30);
        assert_eq!(
            object["metadata"],
            json!({"generation": 2, "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30})
        );
        mark_deleted(&mut object, now, 60);
        assert_eq!(object["metadata"]["deletionGracePeriodSeconds"], 30);
        mark_deleted(&mut object, now, 1);
        assert_eq!(object["metadata"]["deletionTimestamp"], "2026-01-01T00:00:01Z");
        assert_eq!(object["metadata"]["generation"], 2);
    }

    #[test]
    fn generated_names_are_names() {
        let mut object = json!({"metadata": {"generateName": format!("{}-", "a".repeat(70))}});
        generate_name(&mut object, &mut |n| n - 1);
        assert_eq!(name(&object), format!("{}99999", "a".repeat(58)));
        let mut named = json!({"metadata": {"generateName": "a-", "name": "b"}});
        generate_name(&mut named, &mut |_| 0);
        assert_eq!(name(&named), "b");
    }

    #[test]
    fn timestamps_are_written_as_kubernetes_does() {
        let at: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        assert_eq!(rfc3339(at), "2026-01-02T03:04:05Z");
        assert_eq!(rfc3339_micro(at), "2026-01-02T03:04:05.678901Z");
    }
}
