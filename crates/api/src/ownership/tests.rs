//! Who owns what after a write, by the rules of Kubernetes' field manager.

use super::*;
use crate::kind::find;

const NOW: &str = "2026-01-01T00:00:00Z";

fn by(manager: &str) -> Author<'_> {
    Author { manager, subresource: "", now: NOW }
}

fn deployments() -> (&'static Kind, TypeRef) {
    let kind = find("apps", "v1", "deployments").unwrap();
    (kind, type_of(kind).unwrap())
}

fn deployment(replicas: Value, containers: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": containers}}},
    });
    if !replicas.is_null() {
        object["spec"]["replicas"] = replicas;
    }
    object
}

fn applied(config: &Value, old: &Value, manager: &str, force: bool) -> Result<Value, Status> {
    let (kind, of) = deployments();
    let mut new = apply(config, old, kind, &of, by(manager), force)?;
    go::drop_nulls(&mut new, &crate::schema::Shape::Object(of));
    walk::set(&mut new, "metadata.uid", "u");
    Ok(new)
}

fn owned(object: &Value, manager: &str) -> Value {
    let entries = walk::list(object, "metadata.managedFields");
    let entry = entries.iter().find(|entry| entry["manager"] == manager);
    entry.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn a_creation_is_owned_field_by_field_and_structs_by_their_fields() {
    let (kind, of) = deployments();
    let mut new = deployment(json!(1), json!([{"name": "x", "image": "i"}]));
    update(&mut new, &Value::Null, kind, &of, by("m"));
    assert_eq!(
        new["metadata"]["managedFields"],
        json!([{
            "manager": "m", "operation": "Update", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {
                "f:replicas": {}, "f:selector": {},
                "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"x\"}": {
                    ".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}}}},
            }},
        }])
    );
}

#[test]
fn an_update_takes_what_it_changes_and_leaves_the_rest() {
    let (kind, of) = deployments();
    let old = applied(&deployment(json!(1), json!([{"name": "x", "image": "i"}])), &Value::Null, "a", false)
        .unwrap();
    let mut new = old.clone();
    new["spec"]["replicas"] = 3.into();
    update(&mut new, &old, kind, &of, by("b"));
    assert_eq!(owned(&new, "b"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owned(&new, "a")["f:spec"].get("f:replicas"), None);
    let mut reset = new.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update(&mut reset, &new, kind, &of, by("b"));
    assert_eq!(reset["metadata"].get("managedFields"), None);
}

#[test]
fn an_apply_over_another_owner_conflicts_unless_it_is_forced() {
    let one = applied(&deployment(json!(1), json!([{"name": "x", "image": "i"}])), &Value::Null, "a", false)
        .unwrap();
    let other = deployment(json!(2), json!([{"name": "x", "image": "j"}]));
    let refused = applied(&other, &one, "b", false).unwrap_err();
    assert_eq!((refused.code, refused.reason), (409, "Conflict"));
    assert_eq!(
        refused.message,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.replicas\n\
         - .spec.template.spec.containers[name=\"x\"].image"
    );
    assert_eq!(
        refused.details["causes"][0],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.replicas"})
    );
    let forced = applied(&other, &one, "b", true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(owned(&forced, "a")["f:spec"].get("f:replicas"), None);
    // Who agrees shares.
    let shared = applied(&deployment(json!(1), json!([])), &one, "b", false).unwrap();
    assert_eq!(owned(&shared, "b")["f:spec"]["f:replicas"], json!({}));
    assert_eq!(owned(&shared, "a")["f:spec"]["f:replicas"], json!({}));
}

#[test]
fn what_is_no_longer_applied_goes_if_nobody_else_owns_it() {
    let two = json!([{"name": "x", "image": "i"}, {"name": "y", "image": "i"}]);
    let one = applied(&deployment(json!(1), two), &Value::Null, "a", false).unwrap();
    let two = applied(&deployment(json!(1), json!([{"name": "x", "image": "i"}])), &one, "b", false).unwrap();
    let rest =
        applied(&deployment(Value::Null, json!([{"name": "y", "image": "i"}])), &two, "a", false).unwrap();
    assert_eq!(rest["spec"]["replicas"], 1);
    let names = |object: &Value| -> Vec<String> {
        let containers = walk::list(object, "spec.template.spec.containers").iter();
        containers.map(|c| walk::text(c, "name").to_owned()).collect()
    };
    assert_eq!(names(&rest), ["x", "y"]);
    let gone =
        applied(&deployment(Value::Null, json!([{"name": "x", "image": "i"}])), &rest, "b", false).unwrap();
    assert_eq!(gone["spec"].get("replicas"), None);
    assert_eq!(names(&gone), ["x", "y"]);
}

#[test]
fn what_kubectl_applied_by_the_older_way_is_no_conflict_to_it() {
    let (kind, of) = deployments();
    let config = deployment(json!(1), json!([{"name": "x", "image": "i"}]));
    let mut old = config.clone();
    walk::set(&mut old, "metadata.annotations", json!({LAST_APPLIED: config.to_string()}));
    update(&mut old, &Value::Null, kind, &of, by("kubectl-client-side-apply"));
    walk::set(&mut old, "metadata.uid", "u");
    let new = deployment(json!(5), json!([{"name": "x", "image": "i"}]));
    assert!(applied(&new, &old, "other", false).is_err());
    let taken = applied(&new, &old, "kubectl", false).unwrap();
    assert_eq!(taken["spec"]["replicas"], 5);
    let said = meta::annotation(&taken, LAST_APPLIED).unwrap();
    assert!(said.contains("\"replicas\":5") && said.ends_with('\n'), "{said}");
}

#[test]
fn the_oldest_of_many_updaters_are_put_together() {
    let (kind, of) = deployments();
    let mut object = deployment(json!(0), json!([{"name": "x", "image": "i"}]));
    update(&mut object, &Value::Null, kind, &of, by("m0"));
    walk::set(&mut object, "metadata.uid", "u");
    for n in 1..15 {
        let old = object.clone();
        walk::set(&mut object, "metadata.labels", json!({format!("k{n}"): "v"}));
        if let Some(labels) = walk::map_mut(&mut object, "metadata.labels") {
            labels.extend(walk::map(&old, "metadata.labels").clone());
        }
        let (manager, now) = (format!("m{n}"), format!("2026-01-01T00:00:{n:02}Z"));
        update(&mut object, &old, kind, &of, Author { manager: &manager, subresource: "", now: &now });
    }
    let entries = walk::list(&object, "metadata.managedFields");
    assert_eq!(entries.len(), UPDATERS);
    assert!(owned(&object, ANCIENT)["f:metadata"]["f:labels"].get("f:k5").is_some());
}

#[test]
fn a_configuration_must_fit_its_type() {
    let mut config = deployment(json!("x"), json!([{"name": "x"}, {"name": "x"}]));
    config["spec"]["nonsense"] = 1.into();
    let refused = applied(&config, &Value::Null, "a", false).unwrap_err();
    for part in [
        ".spec.replicas: expected numeric (int or float), got string",
        ".spec.nonsense: field not declared in schema",
        "duplicate entries for key [name=\"x\"]",
    ] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }
}

#[test]
fn sets_and_lists_merge_item_by_item() {
    let kind = find("", "v1", "services").unwrap();
    let of = type_of(kind).unwrap();
    let service = |ports: Value, finalizers: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "finalizers": finalizers},
            "spec": {"ports": ports}})
    };
    let one = service(json!([{"port": 53, "protocol": "UDP"}, {"port": 80}]), json!(["a/x"]));
    let old = apply(&one, &Value::Null, kind, &of, by("a"), false).unwrap();
    let two = service(json!([{"port": 53}, {"port": 80, "name": "w"}]), json!(["b/y"]));
    let new = apply(&two, &old, kind, &of, by("b"), false).unwrap();
    assert_eq!(new["metadata"]["finalizers"], json!(["a/x", "b/y"]));
    let ports: Vec<(i64, &str)> = walk::list(&new, "spec.ports")
        .iter()
        .map(|port| (walk::int(port, "port").unwrap(), walk::text(port, "protocol")))
        .collect();
    assert_eq!(ports, [(53, "UDP"), (53, ""), (80, "")]);
    assert!(owned(&new, "b")["f:spec"]["f:ports"].get("k:{\"port\":53,\"protocol\":\"TCP\"}").is_some());
}
