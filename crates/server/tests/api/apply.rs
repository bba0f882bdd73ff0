//! Server-side apply, and the owners that every write leaves behind.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use portolan_server::Server;
use serde_json::{Value, json};

use crate::support::*;

async fn apply(server: &Arc<Server>, path: &str, query: &str, config: &Value) -> Answer {
    call(server, Method::PATCH, &format!("{path}?{query}"), "application/apply-patch+yaml", config).await
}

/// The owners of an object's fields, without times.
fn owners(answer: &Answer) -> Vec<(String, String, Value)> {
    let entries = answer.body["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let row = |entry: &Value| (text(entry, "manager"), text(entry, "operation"), entry["fieldsV1"].clone());
    entries.iter().map(row).collect()
}

fn service(ports: Value, more: &Value) -> Value {
    let mut spec = json!({"ports": ports});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec})
}

#[tokio::test]
async fn what_is_applied_is_made_shared_taken_and_given_up() {
    let server = server().await;
    let path = core("services/s");
    let made =
        apply(&server, &path, "fieldManager=a", &service(json!([{"port": 80, "name": "w"}]), &json!({})))
            .await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.text);
    assert!(made.body["spec"]["clusterIP"].is_string());
    // What the server fills in is nobody's.
    let port = json!({"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}});
    assert_eq!(owners(&made), [("a".into(), "Apply".into(), json!({"f:spec": {"f:ports": port}}))]);

    let again =
        apply(&server, &path, "fieldManager=a", &service(json!([{"port": 80, "name": "w"}]), &json!({})))
            .await;
    assert_eq!(again.body["metadata"]["resourceVersion"], made.body["metadata"]["resourceVersion"]);

    let other = service(json!([{"port": 80, "name": "x"}]), &json!({"selector": {"a": "b"}}));
    let refused = apply(&server, &path, "fieldManager=b", &other).await;
    assert_eq!(refused.code, StatusCode::CONFLICT, "{}", refused.text);
    let field = ".spec.ports[port=80,protocol=\"TCP\"].name";
    assert_eq!(
        refused.body["message"],
        format!("Apply failed with 1 conflict: conflict with \"a\": {field}")
    );
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": field}])
    );
    let tried = apply(&server, &path, "fieldManager=b&force=true&dryRun=All", &other).await;
    assert_eq!(tried.body["spec"]["ports"][0]["name"], "x", "{}", tried.text);
    assert_eq!(get(&server, &path).await.body["spec"]["ports"][0]["name"], "w");
    let forced = apply(&server, &path, "fieldManager=b&force=true", &other).await;
    assert_eq!(forced.body["spec"]["ports"][0]["name"], "x", "{}", forced.text);

    let less =
        apply(&server, &path, "fieldManager=b", &service(json!([{"port": 80, "name": "x"}]), &json!({})))
            .await;
    assert_eq!(less.body["spec"].get("selector"), None, "{}", less.text);
    assert_eq!(less.code, StatusCode::OK);
}

#[tokio::test]
async fn every_write_is_counted_for_whoever_makes_it() {
    let server = server().await;
    let body = configmap("c", &json!({"x": "y"}), &json!({"a": "1"}));
    let request = Request::post(core("configmaps")).header("user-agent", "tool/1.2 (linux)");
    let request = request.header("content-type", "application/json");
    let made = send(&server, request.body(Full::new(body.to_string().into())).expect("a request")).await;
    let all = json!({"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:labels": {".": {}, "f:x": {}}}});
    assert_eq!(owners(&made), [("tool".into(), "Update".into(), all)], "{}", made.text);
    let path = core("configmaps/c?fieldManager=m");
    let patched = patch(&server, &path, "merge", &json!({"data": {"a": "2"}})).await;
    // By time first, and only within a second by name.
    let patch_is = ("m".into(), "Update".into(), json!({"f:data": {"f:a": {}}}));
    assert!(owners(&patched).contains(&patch_is), "{}", patched.text);
    // A write that changes nothing leaves the times as they are, and so is none.
    let same = patch(&server, &path, "merge", &json!({"data": {"a": "2"}})).await;
    assert_eq!(same.body, patched.body);
    let reset = json!([{"op": "replace", "path": "/metadata/managedFields", "value": []}]);
    let reset = patch(&server, &path, "json", &reset).await;
    assert_eq!(owners(&reset), [], "{}", reset.text);
    let after = apply(
        &server,
        &core("configmaps/c"),
        "fieldManager=z",
        &configmap("c", &json!({}), &json!({"a": "2"})),
    )
    .await;
    let names: Vec<String> = owners(&after).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["z", "before-first-apply"]);
}

#[tokio::test]
async fn status_and_scale_are_owned_by_their_own_doors() {
    let server = server().await;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let made = apply(&server, path, "fieldManager=a", &deployment).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.text);
    let scale =
        patch(&server, &format!("{path}/scale?fieldManager=s"), "merge", &json!({"spec": {"replicas": 3}}))
            .await;
    assert_eq!(scale.code, StatusCode::OK, "{}", scale.text);
    let refused = apply(&server, path, "fieldManager=a", &deployment).await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"s\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let status = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 9}, "status": {"replicas": 2},
    });
    let said = apply(&server, &format!("{path}/status"), "fieldManager=st", &status).await;
    assert_eq!(said.body["status"]["replicas"], 2, "{}", said.text);
    assert_eq!(said.body["spec"]["replicas"], 3);
    let entry = owners(&said).into_iter().find(|(name, ..)| name == "st");
    assert_eq!(entry.map(|(.., fields)| fields), Some(json!({"f:status": {"f:replicas": {}}})));
    let absent =
        apply(&server, &path.replace("deployments/d", "deployments/e"), "fieldManager=st", &json!({})).await;
    assert_eq!(absent.code, StatusCode::BAD_REQUEST, "{}", absent.text);
    let missing = path.replace("deployments/d", "deployments/e/status");
    assert_eq!(apply(&server, &missing, "fieldManager=st", &status).await.code, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_apply_says_who_and_fits_its_kind() {
    let server = server().await;
    let path = core("configmaps/c");
    let config = configmap("c", &json!({}), &json!({"a": "b"}));
    let rows = [
        (
            "",
            config.clone(),
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ),
        (
            "fieldManager=a",
            json!({"apiVersion": "v1", "kind": "Secret"}),
            400,
            "invalid object type: /v1, Kind=Secret",
        ),
        (
            "fieldManager=a",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"managedFields": []}}),
            400,
            "metadata.managedFields must be nil",
        ),
        (
            "fieldManager=a",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "datum": 1}),
            500,
            "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .datum: field not declared in schema",
        ),
        (
            "fieldManager=a",
            configmap("d", &json!({}), &json!({})),
            400,
            "the name of the object (d) does not match the name on the URL (c)",
        ),
    ];
    for (query, config, code, message) in rows {
        let answer = apply(&server, &path, query, &config).await;
        assert_eq!((answer.code.as_u16(), answer.body["message"].as_str()), (code, Some(message)));
    }
    let forced = patch(&server, &format!("{path}?force=true"), "merge", &json!({})).await;
    assert_eq!(forced.code, 422, "{}", forced.text);
    // In YAML, as the media type says.
    let request = Request::patch(format!("{path}?fieldManager=y"))
        .header("content-type", "application/apply-patch+yaml");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  mode: \"0644\"\n";
    let made = send(&server, request.body(Full::new(yaml.into())).expect("a request")).await;
    assert_eq!(made.body["data"], json!({"mode": "0644"}), "{}", made.text);
}
