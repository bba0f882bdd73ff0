//! The kinds as clients see them: one object of each is made, read, shown, changed and deleted.

use portolan_api::KINDS;
use serde_json::{Value, json};

use crate::support::*;

/// A small object of each kind and the path of its collection.
fn manifests() -> Vec<(String, Value)> {
    let rows: Vec<Value> = serde_json::from_str(include_str!("kinds.json")).expect("a list");
    rows.into_iter()
        .map(|row| (row["path"].as_str().unwrap_or_default().to_owned(), row["object"].clone()))
        .collect()
}

#[tokio::test]
async fn an_object_of_each_kind_is_made_read_shown_changed_and_deleted() {
    let server = server().await;
    let all = manifests();
    for (path, object) in &all {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let made = post(&server, path, object).await;
        assert_eq!(made.code, 201, "{path} {name}: {}", made.text);
        let one = format!("{path}/{name}");
        let mut read = get(&server, &one).await;
        if path.contains("customresourcedefinitions") {
            // It has been given its names since.
            assert!(read.text.contains("NoConflicts"), "{}", read.text);
            read.body = made.body.clone();
        }
        assert_eq!((read.code.as_u16(), &read.body), (200, &made.body), "{one}");
        let request = http::Request::get(path.as_str())
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Default::default())
            .expect("a request");
        let table = send(&server, request).await.body;
        let columns = table["columnDefinitions"].as_array().map_or(0, Vec::len);
        let rows = table["rows"].as_array().expect("rows");
        assert!(!rows.is_empty() && columns > 1, "{path}: {table}");
        assert!(
            rows.iter().all(|row| row["cells"].as_array().map_or(0, Vec::len) == columns),
            "{path}: {table}"
        );
        let patch = json!({"metadata": {"labels": {"changed": "yes"}}});
        let patched = patch_merge(&server, &one, &patch).await;
        assert_eq!(patched.code, 200, "{one}: {}", patched.text);
        let put = put(&server, &one, &patched.body).await;
        assert_eq!(
            (put.code.as_u16(), &put.body),
            (200, &patched.body),
            "what is read can be written: {one}"
        );
    }
    for (path, object) in all.iter().rev() {
        let one = format!("{path}/{}", object["metadata"]["name"].as_str().expect("a name"));
        let gone = delete(&server, &one, &json!({})).await;
        assert_eq!(gone.code, 200, "{one}: {}", gone.text);
    }
    for kind in KINDS.iter().filter(|kind| {
        !matches!(
            kind.plural(),
            "namespaces"
                | "nodes"
                | "pods"
                | "services"
                | "endpoints"
                | "configmaps"
                | "secrets"
                | "serviceaccounts"
                | "deployments"
                | "replicasets"
                | "leases"
                | "endpointslices"
        )
    }) {
        let end = format!("/{}", kind.plural());
        let version = kind.api_version();
        assert!(
            all.iter().any(|(path, object)| path.ends_with(&end) && object["apiVersion"] == version),
            "kinds.json has no {version} {}",
            kind.kind()
        );
    }
}

async fn patch_merge(server: &std::sync::Arc<portolan_server::Server>, path: &str, body: &Value) -> Answer {
    patch(server, path, "merge", body).await
}

#[tokio::test]
async fn an_event_is_one_object_in_two_shapes() {
    let server = server().await;
    let new = "/apis/events.k8s.io/v1/namespaces/default/events";
    let (path, object) = manifests().into_iter().find(|(path, _)| path == new).expect("an event");
    let mut watch = Watch::open(&server, &format!("{}?watch=true", core("events"))).await;
    let made = post(&server, &path, &object).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(watch.brief().await, "ADDED y");
    let old = get(&server, &core("events/y")).await.body;
    assert_eq!(old["apiVersion"], "v1");
    assert_eq!(old["message"], "it is");
    assert_eq!(old["involvedObject"]["name"], "p");
    assert_eq!(old["reportingComponent"], "example.com/c");
    assert_eq!(old["metadata"], made.body["metadata"], "one object: one UID, one version");
    let list = get(&server, &format!("{new}?fieldSelector=regarding.name=p")).await.body;
    assert_eq!(list["items"][0]["note"], "it is");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    let patch = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}});
    assert_eq!(patch_merge(&server, &format!("{new}/y"), &patch).await.code, 200);
    assert_eq!(get(&server, &core("events/y")).await.body["series"]["count"], 2);
    let refused = patch_merge(&server, &format!("{new}/y"), &json!({"note": "other"})).await;
    assert_eq!(refused.code, 422);
    assert!(refused.text.contains("field is immutable"), "{}", refused.text);
    assert_eq!(delete(&server, &core("events/y"), &json!({})).await.code, 200);
    assert_eq!(get(&server, &format!("{new}/y")).await.code, 404);
}

#[tokio::test]
async fn an_autoscaler_is_one_object_in_two_versions() {
    let server = server().await;
    let of =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let spec = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 5,
        "targetCPUUtilizationPercentage": 60});
    let object = json!({"metadata": {"name": "h"}, "spec": spec});
    let made = post(&server, &of("v1"), &object).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let newer = get(&server, &format!("{}/h", of("v2"))).await.body;
    assert_eq!(newer["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60);
    let more = json!({"spec": {"metrics": [{"type": "Resource", "resource": {"name": "memory",
        "target": {"type": "AverageValue", "averageValue": "1Gi"}}}]}});
    assert_eq!(patch_merge(&server, &format!("{}/h", of("v2")), &more).await.code, 200);
    // A client of the older version doesn't lose what it doesn't know.
    assert_eq!(
        patch_merge(&server, &format!("{}/h", of("v1")), &json!({"spec": {"maxReplicas": 7}})).await.code,
        200
    );
    let newer = get(&server, &format!("{}/h", of("v2"))).await.body;
    assert_eq!(newer["spec"]["metrics"][0]["resource"]["name"], "memory");
    assert_eq!(newer["spec"]["maxReplicas"], 7);
}

#[tokio::test]
async fn a_certificate_request_says_who_asks_and_is_approved_once() {
    let server = server().await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let (_, mut object) = manifests().into_iter().find(|(p, _)| p == path).expect("a request");
    object["spec"]["username"] = "somebody-else".into();
    let made = post(&server, path, &object).await;
    assert_eq!(made.body["spec"]["username"], "kubernetes-admin", "{}", made.text);
    let condition = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": "r", "message": "m"}]}});
    let refused = patch_merge(&server, &format!("{path}/x/status"), &condition("Approved")).await;
    assert_eq!(refused.code, 422, "{}", refused.text);
    let approved = patch_merge(&server, &format!("{path}/x/approval"), &condition("Approved")).await;
    assert_eq!(approved.code, 200, "{}", approved.text);
    assert_eq!(approved.body["status"]["conditions"][0]["type"], "Approved");
    let refused = patch_merge(&server, &format!("{path}/x/approval"), &condition("Denied")).await;
    assert!(refused.text.contains("updates may not remove a condition of type"), "{}", refused.text);
    let signed =
        patch_merge(&server, &format!("{path}/x/status"), &json!({"status": {"certificate": "eA=="}})).await;
    assert_eq!(signed.body["status"]["certificate"], "eA==", "{}", signed.text);
}
