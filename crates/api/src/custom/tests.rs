//! What a definition says of its objects, held against objects.

use super::*;

fn definition(schema: Value) -> Value {
    let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"});
    let mut definition = json!({
        "metadata": {"name": "foos.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": names,
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                }},
            }],
        },
        "status": {"acceptedNames": names, "storedVersions": ["v1"]},
    });
    definition::default(&mut definition);
    definition
}

fn custom(schema: Value) -> Custom {
    let definition = definition(schema);
    assert_eq!(definition::validate(&definition), []);
    Custom::all(&definition).pop().unwrap()
}

fn schema() -> Value {
    json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "string", "enum": ["small", "large"]},
            "replicas": {"type": "integer", "format": "int32", "minimum": 0, "default": 1},
            "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
            "port": {"x-kubernetes-int-or-string": true},
            "maybe": {"type": "string", "nullable": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "pools": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}},
            "ids": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
            "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        }},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
    }})
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a", "namespace": "x"}, "spec": spec})
}

/// What is said of a new object with this spec.
fn said(spec: Value) -> Vec<String> {
    let custom = custom(schema());
    let mut object = object(spec);
    let _ = custom.read(&mut object).unwrap();
    custom.prepare_create(&mut object);
    custom.check_create(&object).iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_not_known_goes_and_defaults_come() {
    let custom = custom(schema());
    let mut object = object(json!({
        "size": "small", "bar": 1, "free": {"x": {"y": null}}, "maybe": null, "name": null, "pools": [{"name": "a", "z": 1}],
    }));
    object["metadata"]["foo"] = json!(1);
    object["more"] = json!({});
    assert_eq!(custom.read(&mut object).unwrap(), ["metadata.foo", "more", "spec.bar", "spec.pools[0].z"]);
    custom.default(&mut object);
    assert_eq!(
        object["spec"],
        json!({"size": "small", "free": {"x": {"y": null}}, "maybe": null, "pools": [{"name": "a"}], "replicas": 1})
    );
    let mut wrong = self::object(json!({}));
    wrong["metadata"]["labels"] = json!("x");
    assert_eq!(
        custom.read(&mut wrong).unwrap_err(),
        "json: cannot unmarshal string into Go struct field ObjectMeta.labels of type map[string]string"
    );
}

#[test]
fn values_are_held_against_the_schema_in_kubernetes_words() {
    let rows = [
        (json!({"size": "small"}), &[][..]),
        (json!({}), &["spec.size: Required value"]),
        (
            json!({"size": "huge"}),
            &["spec.size: Unsupported value: \"huge\": supported values: \"small\", \"large\""],
        ),
        (
            json!({"size": "small", "replicas": -1}),
            &[
                "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
                ".spec.replicas: Invalid value: -1: should be a non-negative integer",
            ],
        ),
        (
            json!({"size": "small", "name": "A"}),
            &["spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'"],
        ),
        (json!({"size": "small", "name": "abcdef"}), &["spec.name: Too long: may not be more than 5 bytes"]),
        (
            json!({"size": "small", "name": 1}),
            &["spec.name: Invalid value: \"integer\": spec.name in body must be of type string: \"integer\""],
        ),
        (json!({"size": "small", "port": "http"}), &[]),
        (
            json!({"size": "small", "port": true}),
            &[
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ],
        ),
        (
            json!({"size": "small", "pools": [{"name": "a"}, {"name": "a"}]}),
            &["spec.pools[1]: Duplicate value: {\"name\":\"a\"}"],
        ),
        (json!({"size": "small", "ids": [1, 2, 1]}), &["spec.ids[2]: Duplicate value: 1"]),
        (
            json!({"size": "small", "one": {}}),
            &[
                "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
                "spec.one.a: Required value",
            ],
        ),
    ];
    for (spec, expected) in rows {
        assert_eq!(said(spec.clone()), expected, "{spec}");
    }
}

#[test]
fn a_change_is_not_held_to_what_was_wrong_before() {
    let custom = custom(schema());
    let old = object(json!({"size": "huge", "replicas": 1}));
    let mut new = object(json!({"size": "huge", "replicas": 2}));
    assert_eq!(custom.check_update(&new, &old).len(), 0);
    new["spec"]["size"] = json!("huger");
    assert_eq!(custom.check_update(&new, &old).len(), 1);
}

#[test]
fn through_status_nothing_else_changes() {
    let custom = custom(schema());
    let old = object(json!({"size": "small"}));
    let mut new = object(json!({"size": "large"}));
    new["metadata"]["labels"] = json!({"a": "b"});
    new["status"] = json!({"replicas": 3});
    custom.prepare_status_update(&mut new, &old);
    let mut expected = old.clone();
    expected["status"] = json!({"replicas": 3});
    assert_eq!(new, expected);
    assert_eq!(custom.to_scale(&json!({"spec": {"replicas": 2}})).unwrap()["spec"], json!({"replicas": 2}));
    assert!(custom.to_scale(&old).unwrap_err().contains("does not exist"));
}

#[test]
fn definitions_are_held_to_the_rules_of_structural_schemas() {
    let rows = [
        (json!({}), "spec.validation.openAPIV3Schema.type: Required value: must not be empty at the root"),
        (
            json!({"type": "object", "properties": {"spec": {}}}),
            "spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object \
             fields",
        ),
        (
            json!({"type": "object", "properties": {"spec": {"type": "array"}}}),
            "spec.validation.openAPIV3Schema.properties[spec].items: Required value: must be specified",
        ),
        (
            json!({"type": "object", "properties": {"spec": {"type": "object", "anyOf": [{"required": ["a"]}, {"type": "object"}]}}}),
            "spec.validation.openAPIV3Schema.properties[spec].anyOf[1].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "properties": {"n": {"type": "integer", "default": "x"}}}),
            // The words have no place for a name that is empty.
            "spec.validation.openAPIV3Schema.properties[n].default: Invalid value: \"string\":  in body must be of type \
             integer: \"string\"",
        ),
        (
            json!({"type": "object", "properties": {"n": {"type": "foo"}}}),
            "spec.validation.openAPIV3Schema.properties[n].type: Unsupported value: \"foo\": supported values: \"array\", \
             \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ),
        (
            json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "string"}, "uniqueItems": true}}}),
            "spec.validation.openAPIV3Schema.properties[l].uniqueItems: Forbidden: uniqueItems cannot be set to true since \
             the runtime complexity becomes quadratic",
        ),
    ];
    for (schema, expected) in rows {
        let errors: Vec<String> =
            definition::validate(&definition(schema.clone())).iter().map(ToString::to_string).collect();
        assert!(errors.iter().any(|error| error == expected), "{schema}: {errors:#?}");
    }
}

#[test]
fn versions_have_an_order_and_objects_are_of_each() {
    let mut definition = definition(schema());
    let mut older = definition["spec"]["versions"][0].clone();
    older["name"] = json!("v1beta1");
    older["storage"] = json!(false);
    older["deprecated"] = json!(true);
    older["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("name");
    definition["spec"]["versions"].as_array_mut().unwrap().push(older);
    assert_eq!(definition::validate(&definition), []);
    let all = Custom::all(&definition);
    let names: Vec<&str> = all.iter().map(|custom| custom.version.as_str()).collect();
    assert_eq!(names, ["v1", "v1beta1"]);
    assert_eq!(all[1].deprecation(), Some("example.com/v1beta1 Foo is deprecated; use example.com/v1 Foo"));
    let stored = all[0].keep(&object(json!({"size": "small", "name": "a"})));
    let shown = all[1].show(stored);
    assert_eq!(shown["apiVersion"], "example.com/v1beta1");
    assert_eq!(shown["spec"], json!({"size": "small", "replicas": 1}));
    assert_eq!(all[1].keep(&shown)["apiVersion"], "example.com/v1");
}

#[test]
fn columns_show_what_their_paths_lead_to() {
    let mut definition = definition(schema());
    definition["spec"]["versions"][0]["additionalPrinterColumns"] = json!([
        {"name": "Size", "type": "string", "jsonPath": ".spec.size"},
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        {"name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let custom = Custom::all(&definition).pop().unwrap();
    let mut object = object(json!({"size": "small", "replicas": 2}));
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    object["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    let now = "2026-01-01T00:01:00Z".parse().unwrap();
    assert_eq!(
        custom.cells(&object, now),
        json!(["a", "small", 2, "True", "60s"]).as_array().unwrap().clone()
    );
}
