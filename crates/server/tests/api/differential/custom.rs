//! Kinds that clients define: definitions good and bad, and objects of them good and bad, in both servers.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::each::{normal, spoilt};
use super::peer::Programs;
use super::step::{Outcome, call};
use super::world::{PLENTY, World, compare};
use super::{PROMISE, pointer, say};
use crate::definitions::DEFINITIONS;

const JSON: &str = "application/json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const THINGS: &str = "/apis/example.com/v1/namespaces/one/things";

/// A schema with one field of each sort.
fn schema() -> Value {
    serde_json::from_str(include_str!("schema.json")).expect("a schema")
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList", "shortNames": ["th"]},
            "versions": [
                {
                    "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema()},
                    "subresources": {"status": {}, "scale": {
                        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                        "labelSelectorPath": ".status.selector",
                    }},
                    "additionalPrinterColumns": [
                        {"name": "Size", "type": "string", "jsonPath": ".spec.size", "description": "How large."},
                        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
                        {"name": "Ratio", "type": "number", "jsonPath": ".spec.ratio"},
                        {"name": "On", "type": "boolean", "jsonPath": ".spec.on"},
                        {"name": "List", "type": "string", "jsonPath": ".spec.list"},
                        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                    ],
                    "selectableFields": [{"jsonPath": ".spec.size"}, {"jsonPath": ".spec.replicas"}],
                },
                {
                    "name": "v1beta1", "served": true, "storage": false, "deprecated": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                },
            ],
        },
    })
}

/// The definition of one version alone, with one place changed.
fn changed(place: &str, value: &Value) -> Value {
    let mut definition = definition();
    if let Some(versions) = definition["spec"]["versions"].as_array_mut() {
        versions.truncate(1);
        // Where there are fields to select by and the schema can't be read, the real one gives the connection up.
        if place.contains("/schema") {
            pointer::remove(&mut versions[0], "/selectableFields");
        }
    }
    match value {
        Value::Null => pointer::remove(&mut definition, place),
        value => pointer::set(&mut definition, place, value.clone()),
    }
    definition
}

/// Definitions that differ from a good one in one place.
fn definitions() -> Vec<(String, Value)> {
    const SCHEMA: &str = "/spec/versions/0/schema/openAPIV3Schema";
    const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/";
    let mut rows: Vec<(String, Value)> = Vec::new();
    let mut row = |place: &str, values: Vec<Value>| {
        rows.extend(values.into_iter().map(|value| (place.to_owned(), value)));
    };
    row("/metadata/name", vec![json!("other.example.com"), json!("Things.example.com")]);
    row("/spec/group", vec![Value::Null, json!(""), json!("Example.com"), json!("nodot")]);
    row("/spec/scope", vec![Value::Null, json!("Global"), json!("Cluster")]);
    for field in ["plural", "singular", "kind", "listKind"] {
        row(
            &format!("/spec/names/{field}"),
            vec![Value::Null, json!(""), json!("a_b"), json!("Thing"), json!("Über")],
        );
    }
    row("/spec/names/shortNames", vec![json!(["TH"]), json!([""]), json!(["th", "th"])]);
    row("/spec/names/categories", vec![json!(["All"]), json!(["all"])]);
    row("/spec/names/foo", vec![json!(1)]);
    row("/spec/versions", vec![Value::Null, json!([])]);
    row("/spec/versions/0/name", vec![Value::Null, json!("V1"), json!("1"), json!("x")]);
    row("/spec/versions/0/served", vec![Value::Null, json!(false), json!("yes")]);
    row("/spec/versions/0/storage", vec![Value::Null, json!(false)]);
    row("/spec/versions/0/deprecated", vec![json!(true)]);
    row("/spec/versions/0/deprecationWarning", vec![json!("old"), json!("")]);
    row("/spec/versions/0/schema", vec![Value::Null, json!({})]);
    row("/spec/versions/0/subresources", vec![Value::Null, json!({}), json!({"status": {}})]);
    row(
        "/spec/versions/0/subresources/scale/specReplicasPath",
        vec![Value::Null, json!("spec.replicas"), json!(".replicas"), json!(".status.replicas")],
    );
    row("/spec/versions/0/subresources/scale/statusReplicasPath", vec![Value::Null, json!(".spec.replicas")]);
    row("/spec/versions/0/subresources/scale/labelSelectorPath", vec![json!("x"), json!(".x")]);
    for (field, values) in [
        ("name", vec![Value::Null]),
        ("type", vec![Value::Null, json!("text")]),
        ("format", vec![json!("text"), json!("byte")]),
        ("jsonPath", vec![Value::Null, json!("spec")]),
    ] {
        row(&format!("/spec/versions/0/additionalPrinterColumns/0/{field}"), values);
    }
    row(
        "/spec/versions/0/selectableFields/0/jsonPath",
        vec![
            Value::Null,
            json!(".metadata.name"),
            json!(".spec.list"),
            json!(".spec.replicas"),
            json!(".spec"),
        ],
    );
    row(
        "/spec/conversion",
        vec![
            json!({"strategy": "None"}),
            json!({"strategy": "Magic"}),
            json!({"strategy": "Webhook"}),
            json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v9"], "clientConfig": {"url": "https://a/b"}}}),
            json!({"strategy": "None", "webhook": {"conversionReviewVersions": ["v1"]}}),
        ],
    );
    row("/spec/preserveUnknownFields", vec![json!(true), json!(false)]);
    row(
        SCHEMA,
        vec![
            json!({}),
            json!({"type": "string"}),
            json!({"type": "object", "nullable": true}),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}}}),
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            json!({"type": "object", "properties": {"metadata": {"type": "string"}, "kind": {"type": "integer"}}}),
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}),
            json!({"type": "object", "properties": {"spec": {"type": "object"}}, "foo": 1}),
        ],
    );
    for (name, values) in [
        (
            "x",
            vec![
                json!({}),
                json!({"type": "foo"}),
                json!({"type": "null"}),
                json!({"type": "array"}),
                json!({"type": "array", "items": {}}),
                json!({"type": "array", "items": [{"type": "string"}]}),
                json!({"type": "string", "$ref": "#/x"}),
                json!({"type": "string", "id": "x"}),
                json!({"type": "object", "patternProperties": {"a": {"type": "string"}}}),
                json!({"type": "object", "definitions": {"a": {"type": "string"}}}),
                json!({"type": "object", "dependencies": {"a": ["b"]}}),
                json!({"type": "array", "items": {"type": "string"}, "additionalItems": true}),
                json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
                json!({"type": "object", "additionalProperties": true}),
                json!({"type": "object", "additionalProperties": {"type": "string", "default": "x"}}),
                json!({"type": "string", "default": 1}),
                json!({"type": "integer", "default": 5, "maximum": 3}),
                json!({"type": "object", "default": {"b": 1}, "properties": {"a": {"type": "string"}}}),
                json!({"type": "string", "enum": ["a"], "default": "b"}),
                json!({"type": "string", "format": "color"}),
                json!({"type": "integer", "format": "int16"}),
                json!({"type": "object", "anyOf": [{"properties": {"a": {"minimum": 1}}}]}),
                json!({"type": "object", "allOf": [{"type": "object", "description": "x"}], "properties": {"a": {"type": "string"}}}),
                json!({"type": "object", "not": {"additionalProperties": {"maximum": 1}}}),
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
                json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"pattern": "a"}]}),
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "string"}, {"type": "integer"}]}),
                json!({"type": "string", "x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true}),
                json!({"type": "object", "x-kubernetes-embedded-resource": true}),
                json!({"x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
                json!({"type": "array", "x-kubernetes-list-type": "bag", "items": {"type": "string"}}),
                json!({"type": "string", "x-kubernetes-list-type": "set"}),
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object", "properties": {"a": {"type": "string"}}}}),
                json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}),
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "string"}}),
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "a"], "items": {"type": "object", "properties": {"a": {"type": "string"}}}}),
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "object"}}}}),
                json!({"type": "array", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}}),
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string", "nullable": true}}),
                json!({"type": "object", "x-kubernetes-map-type": "loose"}),
                json!({"type": "string", "x-kubernetes-map-type": "atomic"}),
                json!({"type": "object", "nullable": true, "title": "t", "description": "d", "example": {"a": null}, "externalDocs": {"url": "u"}}),
                json!({"type": "object", "x-kubernetes-validations": [{"rule": ""}]}),
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "true", "message": " "}]}),
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "true", "reason": "Because"}]}),
                json!("string"),
                json!({"type": 1}),
            ],
        ),
        ("size", vec![Value::Null]),
    ] {
        row(&format!("{SPEC}{name}"), values);
    }
    rows.iter().map(|(place, value)| (format!("{place} = {value}"), changed(place, value))).collect()
}

fn thing(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec})
}

/// An object with every field, each of them good.
fn full() -> Value {
    thing(
        "full",
        json!({
            "size": "small", "replicas": 2, "ratio": 0.5, "big": 5_000_000_000_i64, "name": "abc", "on": true, "port": 80,
            "maybe": null, "free": {"x": {"y": null}, "known": {"a": "b"}}, "labels": {"a": "b"}, "address": "10.0.0.1",
            "range": "10.0.0.0/8", "when": "2026-01-02T03:04:05Z", "day": "2026-01-02", "lasts": "1h",
            "id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "data": "YQ==", "list": ["a", "b"], "set": [1, 2],
            "pools": [{"name": "a"}, {"name": "b", "deep": {"x": "y"}}], "pairs": [{"a": "1", "b": "1"}, {"a": "1", "b": "2"}],
            "one": {"a": "x"}, "any": {"b": "x"}, "all": {"a": "x", "b": "y"}, "not": "ever",
            "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"x": 1}},
            "nested": {}, "whole": {"a": "b"},
        }),
    )
}

/// Specs, mostly bad in one thing.
fn specs() -> Vec<Value> {
    let rows = [
        json!({}),
        json!({"size": "huge"}),
        json!({"size": 1}),
        json!({"size": null}),
        json!({"size": "small", "bar": 1}),
        json!({"size": "small", "replicas": -1}),
        json!({"size": "small", "replicas": 10}),
        json!({"size": "small", "replicas": 1.5}),
        json!({"size": "small", "replicas": 2.0}),
        json!({"size": "small", "replicas": "2"}),
        json!({"size": "small", "replicas": null}),
        json!({"size": "small", "replicas": 99_999_999_999_i64}),
        json!({"size": "small", "ratio": 1.5}),
        json!({"size": "small", "ratio": 0.3}),
        json!({"size": "small", "ratio": 1}),
        json!({"size": "small", "big": 1e30}),
        json!({"size": "small", "name": "a"}),
        json!({"size": "small", "name": "abcdef"}),
        json!({"size": "small", "name": "AB"}),
        json!({"size": "small", "on": "true"}),
        json!({"size": "small", "port": "http"}),
        json!({"size": "small", "port": 1.5}),
        json!({"size": "small", "port": {}}),
        json!({"size": "small", "maybe": 1}),
        json!({"size": "small", "free": {"known": {"b": 1}, "x": [{"known": 1}]}}),
        json!({"size": "small", "free": 1}),
        json!({"size": "small", "labels": {}}),
        json!({"size": "small", "labels": {"a": "1", "b": "2", "c": "3"}}),
        json!({"size": "small", "labels": {"a": 1}}),
        json!({"size": "small", "labels": {"a": null}}),
        json!({"size": "small", "address": "10.0.0"}),
        json!({"size": "small", "range": "10.0.0.0"}),
        json!({"size": "small", "when": "now"}),
        json!({"size": "small", "day": "2026-13-01"}),
        json!({"size": "small", "lasts": "long"}),
        json!({"size": "small", "id": "x"}),
        json!({"size": "small", "data": "?"}),
        json!({"size": "small", "list": []}),
        json!({"size": "small", "list": ["1", "2", "3", "4"]}),
        json!({"size": "small", "list": "x"}),
        json!({"size": "small", "list": [null]}),
        json!({"size": "small", "set": [1, 1]}),
        json!({"size": "small", "set": [1, "1"]}),
        json!({"size": "small", "pools": [{"name": "a"}, {"name": "a"}]}),
        json!({"size": "small", "pools": [{}]}),
        json!({"size": "small", "pools": [1]}),
        json!({"size": "small", "pools": [{"name": "a", "z": 1}]}),
        json!({"size": "small", "pairs": [{"a": "1", "b": "1"}, {"a": "1", "b": "1"}]}),
        json!({"size": "small", "one": {}}),
        json!({"size": "small", "one": {"a": "1", "b": "2"}}),
        json!({"size": "small", "any": {}}),
        json!({"size": "small", "all": {"a": "1"}}),
        json!({"size": "small", "all": {}}),
        json!({"size": "small", "not": "never"}),
        json!({"size": "small", "inner": {}}),
        json!({"size": "small", "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "A_b"}}}),
        json!({"size": "small", "inner": {"apiVersion": "a/b/c", "kind": "p o d"}}),
        json!({"size": "small", "inner": {"apiVersion": 1, "kind": "Pod"}}),
        json!({"size": "small", "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": 1}}}),
        json!({"size": "small", "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"foo": 1}, "x": 1}}),
        json!({"size": "small", "nested": {"a": null}}),
        json!({"size": "small", "nested": null}),
        json!(1),
        json!("x"),
        json!([]),
    ];
    rows.into_iter().collect()
}

/// Whole bodies that are bad.
fn bodies() -> Vec<Value> {
    let of = |change: &dyn Fn(&mut Value)| {
        let mut body = thing("odd", json!({"size": "small"}));
        change(&mut body);
        body
    };
    vec![
        of(&|o| o["kind"] = json!("Other")),
        of(&|o| o["apiVersion"] = json!("example.com/v1beta1")),
        of(&|o| o["apiVersion"] = json!("v1")),
        of(&|o| drop(o.as_object_mut().map(|o| o.remove("kind")))),
        of(&|o| drop(o.as_object_mut().map(|o| o.remove("apiVersion")))),
        of(&|o| drop(o.as_object_mut().map(|o| o.remove("spec")))),
        of(&|o| drop(o.as_object_mut().map(|o| o.remove("metadata")))),
        of(&|o| o["metadata"]["name"] = json!("A")),
        of(&|o| o["metadata"]["labels"] = json!({"a b": "c"})),
        of(&|o| o["metadata"]["labels"] = json!(1)),
        of(&|o| o["metadata"]["annotations"] = json!({"a": 1})),
        of(&|o| o["metadata"]["foo"] = json!(1)),
        of(&|o| o["metadata"]["finalizers"] = json!(["x", "a.b", "a.b/c", "Not Valid!"])),
        of(&|o| o["metadata"]["namespace"] = json!("two")),
        of(&|o| o["metadata"]["generation"] = json!(7)),
        of(&|o| o["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p"}])),
        of(&|o| o["status"] = json!({"phase": "Sideways", "replicas": "x"})),
        of(&|o| o["more"] = json!({"a": 1})),
    ]
}

/// Identifiers, and objects within messages, are not the same.
fn alike(value: &mut Value, key: &str) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| alike(value, key)),
        Value::Array(items) => items.iter_mut().for_each(|item| alike(item, key)),
        Value::String(text) if key == "uid" => *text = "<uid>".into(),
        Value::String(text) if key == "message" => {
            if let (Some(from), Some(to)) = (text.find("\"{"), text.rfind("}\"")) {
                text.replace_range(from..to + 2, "<object>");
            }
            // A schema is shown as it was sent, and not in kube-apiserver's own form (docs/reference/differences.md).
            if let (Some(from), Some(to)) = (text.find("{\""), text.find("}: only [")) {
                text.replace_range(from..to + 1, "<schema>");
            }
        }
        _ => {}
    }
}

/// What is wrong with several fields is said in no order.
fn in_order(outcome: &mut Outcome) {
    alike(&mut outcome.body, "");
    let text = outcome.body["message"].as_str().unwrap_or_default().to_owned();
    if let Some(causes) = outcome.body["details"]["causes"].as_array_mut()
        && causes.len() > 1
    {
        causes.sort_by_key(Value::to_string);
        let head = text.split(": [").next().unwrap_or_default().to_owned();
        outcome.body["message"] = head.into();
    }
    // Of a definition, what its controllers make of it comes later.
    if outcome.body["kind"] == "CustomResourceDefinition"
        && let Some(status) = outcome.body["status"].as_object_mut()
    {
        status.shift_remove("conditions");
        status.shift_remove("acceptedNames");
    }
}

struct Asked<'w> {
    world: &'w World,
    asked: usize,
    different: Vec<String>,
}

impl Asked<'_> {
    async fn ask(
        &mut self,
        what: &str,
        method: Method,
        path: &str,
        media: &str,
        body: &Value,
    ) -> [Outcome; 2] {
        // Shown if the test fails: what was asked last.
        println!("{what}");
        let accept = if what.ends_with("table") { TABLE } else { JSON };
        let (mut real, mut ours) = tokio::join!(
            call(&self.world.real, method.clone(), path, media, accept, body),
            call(&self.world.ours, method, path, media, accept, body)
        );
        for outcome in [&mut real, &mut ours] {
            normal(outcome);
            in_order(outcome);
        }
        let whole = |o: &Outcome| json!({"code": o.code, "warnings": o.warnings, "body": o.body});
        let mut found = Vec::new();
        compare("", &whole(&real), &whole(&ours), &mut found);
        self.asked += 1;
        if !found.is_empty() {
            let lines = found
                .iter()
                .take(5)
                .map(|d| format!("{}\n      real {}\n      ours {}", d.place, d.real, d.ours));
            self.different.push(format!("{what}\n    {}", lines.collect::<Vec<_>>().join("\n    ")));
        }
        [real, ours]
    }

    async fn post(&mut self, what: &str, path: &str, body: &Value) -> [Outcome; 2] {
        self.ask(what, Method::POST, path, JSON, body).await
    }
}

/// Makes the definition in both, and waits until both serve it.
async fn define(world: &World) {
    for client in [&world.real, &world.ours] {
        let made = call(client, Method::POST, DEFINITIONS, JSON, JSON, &definition()).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let served = async {
            while call(client, Method::GET, THINGS, "", JSON, &Value::Null).await.code != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), served).await.expect("it is served");
    }
}

#[tokio::test]
async fn the_real_server_answers_alike_about_kinds_that_are_defined() {
    let Some(programs) = Programs::find() else {
        return say(&format!(
            "skipped: {PROMISE}: PORTOLAN_KUBE_APISERVER and PORTOLAN_ETCD name no programs"
        ));
    };
    let world = World::start(&programs, PLENTY).await;
    let mut asked = Asked { world: &world, asked: 0, different: Vec::new() };
    for (what, body) in definitions() {
        asked.post(&what, &format!("{DEFINITIONS}?dryRun=All"), &body).await;
    }
    asked
        .post("the definition", &format!("{DEFINITIONS}?dryRun=All&fieldValidation=Strict"), &definition())
        .await;
    define(&world).await;

    // New objects.
    let tried = format!("{THINGS}?dryRun=All");
    for spec in specs() {
        for strictness in ["Strict", "Warn", "Ignore"] {
            let path = format!("{tried}&fieldValidation={strictness}");
            asked.post(&format!("{strictness} {spec}"), &path, &thing("new", spec.clone())).await;
        }
    }
    for body in bodies() {
        asked.post(&body.to_string(), &tried, &body).await;
        asked.post(&format!("Strict {body}"), &format!("{tried}&fieldValidation=Strict"), &body).await;
    }
    for (what, body) in spoilt(&full()) {
        asked.post(&what, &tried, &body).await;
    }
    asked.post("old", "/apis/example.com/v1beta1/namespaces/one/things?dryRun=All", &json!({
        "apiVersion": "example.com/v1beta1", "kind": "Thing", "metadata": {"name": "old"}, "anything": {"goes": [1]},
    })).await;

    // One that is there.
    asked.post("full", THINGS, &full()).await;
    let one = format!("{THINGS}/full");
    for (what, path) in [
        ("read", one.clone()),
        ("read in the older version", "/apis/example.com/v1beta1/namespaces/one/things/full".into()),
        ("as a table", one.clone()),
        ("all as a table", THINGS.into()),
        ("selected", format!("{THINGS}?fieldSelector=spec.size%3Dlarge")),
        ("selected by number", format!("{THINGS}?fieldSelector=spec.replicas%3D2")),
        ("selected by what can't be", format!("{THINGS}?fieldSelector=spec.name%3Dabc")),
        ("scale", format!("{one}/scale")),
        ("status", format!("{one}/status")),
        ("another subresource", format!("{one}/foo")),
    ] {
        asked.ask(what, Method::GET, &path, "", &Value::Null).await;
    }
    let merge = "application/merge-patch+json";
    for body in [
        json!({"spec": {"replicas": 3}}),
        json!({"spec": {"size": "huge"}}),
        json!({"spec": {"bar": 1}}),
        json!({"metadata": {"labels": {"x": "y"}}}),
        json!({"status": {"phase": "Up"}}),
        json!({"spec": {"nested": null}}),
        json!({"spec": {"replicas": 77}}),
        json!({"metadata": {"finalizers": ["x"]}}),
        json!({"metadata": {"finalizers": null, "generation": 100}}),
        json!({"spec": {"pools": [{"name": "a"}, {"name": "a"}]}}),
        json!({"kind": "Other"}),
        json!({"spec": {"list": ["only"]}}),
        json!({"spec": null}),
        json!([]),
    ] {
        asked.ask(&format!("merge {body}"), Method::PATCH, &one, merge, &body).await;
        asked
            .ask(
                &format!("merge strictly {body}"),
                Method::PATCH,
                &format!("{one}?fieldValidation=Strict"),
                merge,
                &body,
            )
            .await;
    }
    for body in [
        json!({"status": {"phase": "Up", "replicas": 2, "selector": "a=b", "conditions": [{"type": "Ready", "status": "True"}]}, "spec": {"size": "large"}}),
        json!({"status": {"phase": "Sideways"}}),
        json!({"status": {"replicas": "x"}}),
        json!({"status": {"replicas": -1}}),
        json!({"status": {"foo": 1}}),
        json!({"metadata": {"labels": {"by": "status"}}}),
        json!({"status": null}),
        json!({"status": {"conditions": [{"type": "Ready", "status": "True"}], "replicas": 4}}),
    ] {
        asked.ask(&format!("status {body}"), Method::PATCH, &format!("{one}/status"), merge, &body).await;
    }
    asked.ask("with a status as a table", Method::GET, &one, "", &Value::Null).await;
    for body in [
        json!({"spec": {"replicas": 5}}),
        json!({"spec": {"replicas": -1}}),
        json!({"spec": {"replicas": "x"}}),
        json!({"spec": {"replicas": 50}}),
    ] {
        asked.ask(&format!("scale {body}"), Method::PATCH, &format!("{one}/scale"), merge, &body).await;
    }
    for (way, body) in [
        ("application/strategic-merge-patch+json", json!({"spec": {"size": "large"}})),
        ("application/json-patch+json", json!([{"op": "replace", "path": "/spec/size", "value": "large"}])),
        ("application/json-patch+json", json!([{"op": "replace", "path": "/spec/none/x", "value": 1}])),
        ("application/foo", json!({})),
    ] {
        asked.ask(&format!("{way} {body}"), Method::PATCH, &one, way, &body).await;
    }
    let apply = "application/apply-patch+yaml";
    for (manager, body) in [
        (
            "one",
            thing("applied", json!({"size": "small", "pools": [{"name": "a", "n": 1}], "whole": {"a": "1"}})),
        ),
        ("two", thing("applied", json!({"size": "large"}))),
        ("two", thing("applied", json!({"size": "small", "pools": [{"name": "b"}]}))),
        ("two", thing("applied", json!({"pools": [{"name": "a", "n": 2}]}))),
        ("two", thing("applied", json!({"size": "small", "whole": {"b": "2"}}))),
        ("two", thing("applied", json!({"size": "small", "bar": 1}))),
        ("two", thing("applied", json!({"size": "small", "pools": [{"n": 2}]}))),
        ("one", thing("applied", json!({"size": "small"}))),
        ("one", thing("applied", json!({"size": 1}))),
    ] {
        let path = format!("{THINGS}/applied?fieldManager={manager}");
        asked.ask(&format!("{manager} applies {body}"), Method::PATCH, &path, apply, &body).await;
        owners(&mut asked, &format!("{THINGS}/applied"), &format!("the owners after {manager} {body}")).await;
    }
    // Replaced.
    let fresh =
        async |client: &kube::Client| call(client, Method::GET, &one, "", JSON, &Value::Null).await.body;
    for change in [json!({"size": "large"}), json!({"size": "huge"}), json!({"size": "small", "bar": 1})] {
        let mut answers = Vec::new();
        for client in [&world.real, &world.ours] {
            let mut body = fresh(client).await;
            body["spec"] = change.clone();
            let mut answer = call(client, Method::PUT, &one, JSON, JSON, &body).await;
            normal(&mut answer);
            in_order(&mut answer);
            answers.push(json!({"code": answer.code, "warnings": answer.warnings, "body": answer.body}));
        }
        let mut found = Vec::new();
        compare("", &answers[0], &answers[1], &mut found);
        asked.asked += 1;
        asked.different.extend(
            found.iter().map(|d| format!("PUT {change} {}\n real {}\n ours {}", d.place, d.real, d.ours)),
        );
    }
    asked.ask("PUT without a version", Method::PUT, &one, JSON, &full()).await;
    asked
        .ask(
            "PUT of nothing that is there",
            Method::PUT,
            &format!("{THINGS}/none"),
            JSON,
            &thing("none", json!({"size": "small"})),
        )
        .await;
    asked.ask("DELETE", Method::DELETE, &one, JSON, &Value::Null).await;
    asked.ask("DELETE again", Method::DELETE, &one, JSON, &Value::Null).await;
    asked.ask("DELETE of all", Method::DELETE, THINGS, JSON, &Value::Null).await;

    // The definition, changed.
    let named = format!("{DEFINITIONS}/things.example.com");
    for body in [
        json!({"spec": {"scope": "Cluster"}}),
        json!({"spec": {"group": "other.com"}}),
        json!({"spec": {"names": {"plural": "others"}}}),
        json!({"spec": {"names": {"kind": "Other"}}}),
        json!({"spec": {"versions": []}}),
        json!({"spec": {"names": {"shortNames": ["tt"]}}}),
        json!({"spec": {"preserveUnknownFields": true}}),
        json!({"metadata": {"labels": {"a": "b"}}}),
    ] {
        asked
            .ask(&format!("definition {body}"), Method::PATCH, &format!("{named}?dryRun=All"), merge, &body)
            .await;
    }
    say(&format!(
        "kinds that are defined: {} requests, {} answers differ",
        asked.asked,
        asked.different.len()
    ));
    asked.different.iter().for_each(|text| say(text));
    assert!(asked.different.is_empty(), "{} of {} answers differ", asked.different.len(), asked.asked);
}

/// Compares who owns which field.
async fn owners(asked: &mut Asked<'_>, path: &str, what: &str) {
    let mut both = Vec::new();
    for client in [&asked.world.real, &asked.world.ours] {
        let object = call(client, Method::GET, path, "", JSON, &Value::Null).await.body;
        let mut entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        // Within a second their order is by parts of it that nobody sees.
        entries.sort_by_key(|entry| entry["manager"].to_string());
        for entry in &mut entries {
            entry["time"] = Value::Null;
        }
        both.push(Value::from(entries));
    }
    let mut found = Vec::new();
    compare("", &both[0], &both[1], &mut found);
    asked.asked += 1;
    if !found.is_empty() {
        asked.different.push(format!("{what}\n      real {}\n      ours {}", both[0], both[1]));
    }
}
