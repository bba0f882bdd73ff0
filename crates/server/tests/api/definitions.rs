//! Kinds that clients define: served at once, followed by other servers, gone after their objects.

use std::sync::Arc;

use http::Method;
use portolan_server::Server;
use portolan_store::embedded::Embedded;
use serde_json::{Value, json};

use crate::support::*;

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const FOOS: &str = "/apis/example.com/v1/namespaces/default/foos";

/// A definition of a namespaced kind with status and scale, in a newer and an older version.
pub fn definition() -> Value {
    let spec = json!({"type": "object", "properties": {
        "size": {"type": "string", "enum": ["small", "large"]},
        "replicas": {"type": "integer", "default": 1},
    }});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": spec, "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
    }}});
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "schema": schema,
            "subresources": {"status": {}, "scale": {
                "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
            }},
            "additionalPrinterColumns": [{"name": "Size", "type": "string", "jsonPath": ".spec.size"}],
            "selectableFields": [{"jsonPath": ".spec.size"}],
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo", "shortNames": ["fo"], "categories": ["all"]},
            "versions": [version("v1beta1", false), version("v1", true)],
        },
    })
}

pub fn foo(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

async fn defined() -> Arc<Server> {
    let server = server().await;
    let made = post(&server, DEFINITIONS, &definition()).await;
    assert_eq!(made.code, 201, "{}", made.text);
    server
}

fn condition<'v>(definition: &'v Value, name: &str) -> &'v str {
    let conditions = definition["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let found = conditions.iter().find(|condition| condition["type"] == name);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

#[tokio::test]
async fn what_is_defined_is_served_when_the_definition_is_made() {
    let server = defined().await;
    let made = post(&server, FOOS, &foo("a", json!({"size": "small"}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.body["spec"]["replicas"], 1, "a default");
    assert_eq!(made.body["metadata"]["generation"], 1);
    let definition = get(&server, &format!("{DEFINITIONS}/foos.example.com")).await.body;
    assert_eq!(
        (condition(&definition, "NamesAccepted"), condition(&definition, "Established")),
        ("True", "True")
    );
    assert_eq!(definition["status"]["acceptedNames"]["listKind"], "FooList");
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));

    // In every version, and found by all who look for kinds.
    let older = get(&server, "/apis/example.com/v1beta1/namespaces/default/foos/a").await;
    assert_eq!((older.code.as_u16(), &older.body["apiVersion"]), (200, &json!("example.com/v1beta1")));
    let group = get(&server, "/apis/example.com").await.body;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let resources = get(&server, "/apis/example.com/v1").await.body;
    let names: Vec<&Value> =
        resources["resources"].as_array().expect("a list").iter().map(|r| &r["name"]).collect();
    assert_eq!(json!(names), json!(["foos", "foos/status", "foos/scale"]));
    let document = get(&server, "/openapi/v3/apis/example.com/v1").await.body;
    let schema = &document["components"]["schemas"]["com.example.v1.Foo"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["type"], "string");
    let patch = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/foos/{name}"]["patch"];
    let ways = patch["requestBody"]["content"].as_object().expect("ways").keys();
    assert!(ways.clone().count() == 3 && ways.into_iter().all(|way| !way.contains("strategic")), "{patch}");
    let text = document.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap_or_default();
        assert!(!document["components"]["schemas"][name].is_null(), "{name}");
    }
    let swagger = get(&server, "/openapi/v2").await.body;
    assert_eq!(swagger["definitions"]["com.example.v1.FooList"]["required"], json!(["items"]));

    // Lists, pages, tables, selection, watches.
    post(&server, FOOS, &foo("b", json!({"size": "large"}))).await;
    let page = get(&server, &format!("{FOOS}?limit=1")).await.body;
    assert_eq!((&page["kind"], page["items"].as_array().map(Vec::len)), (&json!("FooList"), Some(1)));
    let next = page["metadata"]["continue"].as_str().expect("a page follows");
    let page = get(&server, &format!("{FOOS}?limit=1&continue={next}")).await.body;
    assert_eq!(page["items"][0]["metadata"]["name"], "b");
    let small = get(&server, &format!("{FOOS}?fieldSelector=spec.size%3Dsmall")).await.body;
    assert_eq!(small["items"].as_array().map(Vec::len), Some(1));
    let mut watch =
        Watch::open(&server, &format!("{FOOS}?watch=true&resourceVersion={}", version(&made.body))).await;
    assert_eq!(watch.brief().await, "ADDED b");
}

#[tokio::test]
async fn custom_objects_are_changed_by_every_way_but_the_strategic() {
    let server = defined().await;
    post(&server, FOOS, &foo("a", json!({"size": "small"}))).await;
    let one = format!("{FOOS}/a");
    let merged = patch(&server, &one, "merge", &json!({"spec": {"size": "large"}})).await;
    assert_eq!(
        (merged.code.as_u16(), &merged.body["metadata"]["generation"]),
        (200, &json!(2)),
        "{}",
        merged.text
    );
    let by_path = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    assert_eq!(patch(&server, &one, "json", &by_path).await.body["spec"]["replicas"], 3);
    let strategic = patch(&server, &one, "strategic-merge", &json!({"spec": {"size": "small"}})).await;
    assert_eq!(strategic.code, 415);
    let applied = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": {"size": "small"}});
    let path = format!("{one}?fieldManager=me");
    let conflict = call(&server, Method::PATCH, &path, "application/apply-patch+yaml", &applied).await;
    assert_eq!(conflict.code, 409, "{}", conflict.text);
    let path = format!("{path}&force=true");
    let forced = call(&server, Method::PATCH, &path, "application/apply-patch+yaml", &applied).await;
    assert_eq!(
        (forced.code.as_u16(), &forced.body["spec"]["size"]),
        (200, &json!("small")),
        "{}",
        forced.text
    );
    let status = patch(
        &server,
        &format!("{one}/status"),
        "merge",
        &json!({"status": {"replicas": 2}, "spec": {"size": "large"}}),
    )
    .await;
    assert_eq!(
        (&status.body["status"]["replicas"], &status.body["spec"]["size"]),
        (&json!(2), &json!("small"))
    );
    let scale = get(&server, &format!("{one}/scale")).await.body;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(3), &json!(2)));
    let scaled = patch(&server, &format!("{one}/scale"), "merge", &json!({"spec": {"replicas": 5}})).await;
    assert_eq!((scaled.code.as_u16(), &scaled.body["spec"]["replicas"]), (200, &json!(5)), "{}", scaled.text);
    let unknown =
        post(&server, &format!("{FOOS}?fieldValidation=Strict"), &foo("x", json!({"bar": 1}))).await;
    assert_eq!(unknown.code, 400);
    assert!(unknown.text.contains("unknown field \\\"spec.bar\\\""), "{}", unknown.text);
    let wrong = post(&server, FOOS, &foo("x", json!({"size": "huge"}))).await;
    assert_eq!(
        (wrong.code.as_u16(), &wrong.body["details"]["causes"][0]["field"]),
        (422, &json!("spec.size"))
    );
}

#[tokio::test]
async fn a_definition_goes_after_its_objects_and_its_names_are_free_again() {
    let server = defined().await;
    let mut held = foo("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    for object in [foo("a", json!({})), held] {
        assert_eq!(post(&server, FOOS, &object).await.code, 201);
    }
    // Another that asks for the same kind waits.
    let mut rival = definition();
    rival["metadata"]["name"] = json!("others.example.com");
    rival["spec"]["names"]["plural"] = json!("others");
    assert_eq!(post(&server, DEFINITIONS, &rival).await.code, 201);
    let rival_path = format!("{DEFINITIONS}/others.example.com");
    assert_eq!(condition(&get(&server, &rival_path).await.body, "NamesAccepted"), "False");
    assert_eq!(get(&server, "/apis/example.com/v1/others").await.code, 404);

    let mut watch = Watch::open(&server, &format!("{DEFINITIONS}?watch=true")).await;
    let gone = delete(&server, &format!("{DEFINITIONS}/foos.example.com"), &json!({})).await;
    assert_eq!(gone.code, 200, "{}", gone.text);
    assert_eq!(gone.body["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let refused = post(&server, FOOS, &foo("late", json!({}))).await;
    assert_eq!(refused.code, 403, "{}", refused.text);
    // The last object goes when nobody holds it.
    let freed = json!({"metadata": {"finalizers": null}});
    assert_eq!(patch(&server, &format!("{FOOS}/held"), "merge", &freed).await.code, 200);
    while watch.brief().await != "DELETED foos.example.com" {}
    assert_eq!(get(&server, FOOS).await.code, 404);
    loop {
        let event = watch.next().await.expect("an event");
        if event["object"]["metadata"]["name"] == "others.example.com"
            && condition(&event["object"], "Established") == "True"
        {
            break;
        }
    }
    let others = get(&server, "/apis/example.com/v1/others").await;
    assert_eq!((others.code.as_u16(), &others.body["kind"]), (200, &json!("FooList")), "{}", others.text);
}

#[tokio::test]
async fn a_changed_definition_changes_what_is_served() {
    let server = defined().await;
    post(&server, FOOS, &foo("a", json!({"size": "small"}))).await;
    let mut watch = Watch::open(&server, &format!("{FOOS}?watch=true")).await;
    assert_eq!(watch.brief().await, "ADDED a");
    let path = format!("{DEFINITIONS}/foos.example.com");
    let mut newer = get(&server, &path).await.body;
    for version in newer["spec"]["versions"].as_array_mut().expect("versions") {
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"] =
            json!({"type": "string"});
    }
    newer["spec"]["versions"][0]["served"] = json!(false);
    let changed = put(&server, &path, &newer).await;
    assert_eq!(
        (changed.code.as_u16(), &changed.body["metadata"]["generation"]),
        (200, &json!(2)),
        "{}",
        changed.text
    );
    assert_eq!(watch.next().await, None, "who watches what is no longer so begins anew");
    let made =
        post(&server, &format!("{FOOS}?fieldValidation=Strict"), &foo("b", json!({"color": "red"}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(get(&server, "/apis/example.com/v1beta1/foos").await.code, 404);
    let list = get(&server, FOOS).await.body;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    let mut other = newer.clone();
    other["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    other["metadata"]["resourceVersion"] = changed.body["metadata"]["resourceVersion"].clone();
    other["spec"]["names"]["kind"] = json!("Bar");
    let refused = put(&server, &path, &other).await;
    assert_eq!(refused.code, 422, "{}", refused.text);
}

#[tokio::test]
async fn two_servers_over_one_store_serve_what_either_takes_in() {
    let store = Embedded::in_memory();
    let (one, two) = (over(store.clone()).await, over(store.clone()).await);
    assert_eq!(post(&one, DEFINITIONS, &definition()).await.code, 201);
    assert_eq!(post(&two, FOOS, &foo("a", json!({}))).await.code, 201);
    assert_eq!(get(&one, &format!("{FOOS}/a")).await.code, 200);
    // And one that begins later serves them, and ends what was going.
    let mut held = foo("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    post(&one, FOOS, &held).await;
    delete(&one, &format!("{DEFINITIONS}/foos.example.com"), &json!({})).await;
    one.close();
    two.close();
    drop((one, two));
    let three = over(store).await;
    let mut watch = Watch::open(&three, &format!("{DEFINITIONS}?watch=true")).await;
    let freed = json!({"metadata": {"finalizers": null}});
    assert_eq!(patch(&three, &format!("{FOOS}/held"), "merge", &freed).await.code, 200);
    while watch.brief().await != "DELETED foos.example.com" {}
}
