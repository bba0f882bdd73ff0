//! What each kind of patch promises.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{PatchError, json as json_patch, merge, strategic};
use crate::kind::find;

fn apply(plural: &str, mut object: Value, patch: Value) -> Value {
    let group = if plural == "deployments" { "apps" } else { "" };
    strategic(&mut object, &patch, find(group, "v1", plural).unwrap()).unwrap();
    object
}

#[test]
fn containers_merge_by_name_and_env_within_them() {
    let old = json!({"spec": {"containers": [
        {"name": "a", "image": "x", "env": [{"name": "A", "value": "1"}]}, {"name": "b", "image": "y"}]}});
    let patch =
        json!({"spec": {"containers": [{"name": "a", "image": "z", "env": [{"name": "B", "value": "2"}]}]}});
    assert_eq!(
        apply("pods", old, patch),
        json!({"spec": {"containers": [
            {"name": "a", "image": "z", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]},
            {"name": "b", "image": "y"}]}})
    );
}

#[test]
fn the_template_of_a_deployment_merges_as_a_pod_does() {
    let old =
        json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}});
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "y"}]}}}});
    assert_eq!(
        apply("deployments", old, patch),
        json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "y"}]}}}})
    );
}

#[test]
fn ports_of_a_service_merge_by_number_alone() {
    let old = json!({"spec": {"ports": [{"name": "d", "port": 53, "protocol": "TCP", "nodePort": 30053}]}});
    let patch = json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}]}});
    assert_eq!(
        apply("services", old, patch),
        json!({"spec": {"ports": [{"name": "d", "port": 53, "protocol": "UDP", "nodePort": 30053}]}})
    );
}

#[test]
fn the_directives_delete_replace_and_order() {
    let ports = |list: Value| json!({"spec": {"ports": list}});
    let old = || ports(json!([{"port": 1}, {"port": 2}, {"port": 3}]));
    let rows = [
        (json!([{"port": 2, "$patch": "delete"}]), json!([{"port": 1}, {"port": 3}])),
        (json!([{"$patch": "replace"}, {"port": 9}, {"port": 1, "$patch": "delete"}]), json!([{"port": 9}])),
        (
            json!([{"port": 2, "$patch": "merge", "name": "x"}]),
            json!([{"port": 1}, {"port": 2, "name": "x"}, {"port": 3}]),
        ),
        // What the patch brings stands before what it does not know.
        (json!([{"port": 4}]), json!([{"port": 4}, {"port": 1}, {"port": 2}, {"port": 3}])),
        (json!([{"port": 2}, {"port": 4}]), json!([{"port": 1}, {"port": 2}, {"port": 4}, {"port": 3}])),
        (json!([{"port": 7, "$patch": "delete"}]), json!([{"port": 1}, {"port": 2}, {"port": 3}])),
    ];
    for (patch, want) in rows {
        assert_eq!(apply("services", old(), ports(patch.clone())), ports(want), "{patch}");
    }
    let ordered = json!({"spec": {
        "$setElementOrder/ports": [{"port": 3}, {"port": 5}, {"port": 1}], "ports": [{"port": 5}]}});
    assert_eq!(
        apply("services", old(), ordered),
        ports(json!([{"port": 2}, {"port": 3}, {"port": 5}, {"port": 1}]))
    );
}

#[test]
fn an_order_that_forgets_a_patched_item_is_refused() {
    let mut object = json!({"spec": {"ports": [{"port": 1}]}});
    let patch = json!({"spec": {"$setElementOrder/ports": [{"port": 1}], "ports": [{"port": 2}]}});
    let before = object.clone();
    assert!(strategic(&mut object, &patch, find("", "v1", "services").unwrap()).is_err());
    assert_eq!(object, before);
}

#[test]
fn an_item_without_its_key_is_refused() {
    let mut object = json!({"spec": {"ports": [{"port": 1}]}});
    let patch = json!({"spec": {"ports": [{"name": "x"}]}});
    assert_eq!(
        strategic(&mut object, &patch, find("", "v1", "services").unwrap()),
        Err(PatchError::Unexpected("map: map[name:x] does not contain declared merge key: port".into()))
    );
}

#[test]
fn maps_delete_replace_and_retain() {
    let rows = [
        (json!({"metadata": {"labels": {"a": null}}}), json!({"metadata": {"labels": {"b": "2"}}})),
        (
            json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}),
            json!({"metadata": {"labels": {"c": "3"}}}),
        ),
        (json!({"metadata": {"labels": {"$patch": "delete"}}}), json!({"metadata": {"labels": {}}})),
        (
            json!({"metadata": {"labels": {"$retainKeys": ["b", "c"], "c": "3"}}}),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
        ),
        (json!({"metadata": {"labels": null}}), json!({"metadata": {}})),
    ];
    for (patch, want) in rows {
        let old = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        assert_eq!(apply("services", old, patch.clone()), want, "{patch}");
    }
}

#[test]
fn finalizers_are_a_set_and_other_lists_are_whole() {
    let old = || json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"tolerations": [{"key": "x"}], "externalIPs": ["1.1.1.1"]}});
    assert_eq!(
        apply("services", old(), json!({"metadata": {"finalizers": ["b", "c"]}}))["metadata"]["finalizers"],
        json!(["a", "b", "c"])
    );
    assert_eq!(
        apply("services", old(), json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}))["metadata"],
        json!({"finalizers": ["b"]})
    );
    assert_eq!(
        apply("services", old(), json!({"spec": {"externalIPs": ["2.2.2.2"]}}))["spec"]["externalIPs"],
        json!(["2.2.2.2"])
    );
    assert_eq!(
        apply("pods", old(), json!({"spec": {"tolerations": [{"key": "y"}]}}))["spec"]["tolerations"],
        json!([{"key": "y"}])
    );
}

#[test]
fn what_a_patch_adds_holds_no_nulls_and_no_directives() {
    let patch = json!({"spec": {"template": {"metadata": {"labels": {"a": null, "b": "1"}}, "spec": {"containers": [
        {"name": "a", "env": [{"name": "X", "$patch": "delete"}, {"name": "Y"}]}]}}}});
    assert_eq!(
        apply("deployments", json!({}), patch),
        json!({"spec": {"template": {"metadata": {"labels": {"b": "1"}}, "spec": {"containers": [
            {"name": "a", "env": [{"name": "Y"}]}]}}}})
    );
}

#[test]
fn a_json_patch_that_fails_changes_nothing() {
    let mut object = json!({"a": 1});
    let patch =
        json!([{"op": "replace", "path": "/a", "value": 2}, {"op": "test", "path": "/a", "value": 3}]);
    assert!(matches!(json_patch(&mut object, &patch), Err(PatchError::Unapplicable(_))));
    assert_eq!(object, json!({"a": 1}));
    assert!(matches!(json_patch(&mut object, &json!({"op": "x"})), Err(PatchError::Malformed(_))));
    json_patch(&mut object, &json!([{"op": "add", "path": "/b", "value": [1]}])).unwrap();
    assert_eq!(object, json!({"a": 1, "b": [1]}));
}

/// The merge patch that turns `a` into `b`, for objects without nulls.
fn diff(a: &Map<String, Value>, b: &Map<String, Value>) -> Value {
    let mut out = Map::new();
    for key in a.keys().filter(|k| !b.contains_key(*k)) {
        out.insert(key.clone(), Value::Null);
    }
    for (key, new) in b {
        match (a.get(key), new) {
            (Some(Value::Object(x)), Value::Object(y)) => {
                out.insert(key.clone(), diff(x, y));
            }
            (Some(old), new) if old == new => {}
            _ => {
                out.insert(key.clone(), new.clone());
            }
        }
    }
    Value::Object(out)
}

fn object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0..5i64).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from)
    ];
    let value = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|m| m.into_iter().collect()),
        ]
    });
    proptest::collection::btree_map("[a-d]", value, 0..4).prop_map(|m| m.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merging_the_difference_yields_the_other(a in object(), b in object()) {
        let patch = diff(a.as_object().unwrap(), b.as_object().unwrap());
        let mut merged = a.clone();
        merge(&mut merged, &patch).unwrap();
        prop_assert_eq!(&merged, &b);
        // Where no list has a key, the strategic merge is the plain one.
        let mut strategically = a;
        strategic(&mut strategically, &patch, find("", "v1", "configmaps").unwrap()).unwrap();
        prop_assert_eq!(&strategically, &b);
    }

    #[test]
    fn merging_twice_is_merging_once(a in object(), p in object()) {
        let kind = find("", "v1", "services").unwrap();
        let mut once = a;
        strategic(&mut once, &p, kind).unwrap();
        let mut twice = once.clone();
        strategic(&mut twice, &p, kind).unwrap();
        prop_assert_eq!(once, twice);
    }
}

#[test]
fn a_json_patch_that_copies_copies_is_refused_before_it_fills_the_memory() {
    let copy = |n: usize| json!({"op": "copy", "from": "/data", "path": format!("/data/{n}")});
    let mut object = json!({"data": {"text": "x".repeat(1000)}});
    let before = object.clone();
    let refused = json_patch(&mut object, &(0..64).map(copy).collect());
    assert!(matches!(refused, Err(PatchError::Unapplicable(_))), "{refused:?}");
    assert_eq!(object, before);
    let many = Value::Array(vec![json!({"op": "test", "path": "/data/text", "value": "x"}); 10_001]);
    assert!(matches!(json_patch(&mut object, &many), Err(PatchError::Malformed(_))));
}

#[test]
fn a_json_patch_can_not_nest_an_object_deeper_than_can_be_read_again() {
    let chain = |levels: usize| (0..levels).fold(json!({}), |inside, _| json!({"a": inside}));
    let bottom = |levels: usize| "/a".repeat(levels);
    // Step by step, each one shallow enough for a parser.
    let steps = (0..40).map(|step| json!({"op": "add", "path": bottom(step * 60), "value": chain(60)}));
    let mut object = json!({});
    let refused = json_patch(&mut object, &steps.collect());
    assert!(matches!(refused, Err(PatchError::Unapplicable(_))), "{refused:?}");
    let moved = json!([
        {"op": "add", "path": "/b", "value": chain(60)},
        {"op": "add", "path": "/a", "value": chain(59)},
        {"op": "move", "from": "/b", "path": format!("{}/b", bottom(60))},
    ]);
    let refused = json_patch(&mut object, &moved);
    assert!(matches!(refused, Err(PatchError::Unapplicable(_))), "{refused:?}");
    let fits = json!([{"op": "add", "path": bottom(1), "value": chain(90)}]);
    assert_eq!(json_patch(&mut object, &fits), Ok(()));
}
