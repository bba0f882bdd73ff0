//! Reading through the protocol.

use http::{Request, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::support::*;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn pages_show_one_snapshot() {
    let server = server().await;
    for i in 0..5 {
        post(&server, &core("configmaps"), &configmap(&format!("c{i}"), &json!({}), &json!({}))).await;
    }
    let first = get(&server, &format!("{}?limit=2", core("configmaps"))).await.body;
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens between two pages is in neither.
    delete(&server, &core("configmaps/c3"), &Value::Null).await;
    post(&server, &core("configmaps"), &configmap("c2b", &json!({}), &json!({}))).await;
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let second = get(&server, &format!("{}?limit=2&continue={token}", core("configmaps"))).await.body;
    assert_eq!(names(&second), ["c2", "c3"]);
    assert_eq!(version(&second), version(&first));
    let token = second["metadata"]["continue"].as_str().expect("a token");
    let third = get(&server, &format!("{}?limit=2&continue={token}", core("configmaps"))).await.body;
    assert_eq!(names(&third), ["c4"]);
    assert!(third["metadata"].get("continue").is_none());

    let elsewhere = format!("/api/v1/namespaces/kube-system/secrets?limit=2&continue={token}");
    assert_eq!(get(&server, &elsewhere).await.code, 400, "a token opens no other collection");
}

#[tokio::test]
async fn a_page_of_forgotten_history_is_expired() {
    let store = portolan_store::embedded::Embedded::in_memory();
    let server = over(store.clone()).await;
    for i in 0..3 {
        post(&server, &core("configmaps"), &configmap(&format!("c{i}"), &json!({}), &json!({}))).await;
    }
    let first = get(&server, &format!("{}?limit=1", core("configmaps"))).await.body;
    post(&server, &core("configmaps"), &configmap("later", &json!({}), &json!({}))).await;
    use portolan_store::Store as _;
    let now = store.revision().await.expect("a revision");
    store.compact(now).await.expect("compaction");
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let late = get(&server, &format!("{}?limit=1&continue={token}", core("configmaps"))).await;
    assert_eq!((late.code.as_u16(), &late.body["reason"]), (410, &json!("Expired")));
    // The rest can be had as it is now.
    let token = late.body["metadata"]["continue"].as_str().expect("a token");
    let rest = get(&server, &format!("{}?limit=2&continue={token}", core("configmaps"))).await.body;
    assert_eq!(names(&rest), ["c1", "c2"]);
    assert_eq!(version(&rest), now.0.to_string());
    let token = rest["metadata"]["continue"].as_str().expect("a token");
    let end = get(&server, &format!("{}?limit=2&continue={token}", core("configmaps"))).await.body;
    assert_eq!(names(&end), ["later"]);
}

#[tokio::test]
async fn lists_select_by_label_and_field_and_read_what_was_written() {
    let server = server().await;
    for (name, app) in [("a", "x"), ("b", "y")] {
        let made =
            post(&server, &core("configmaps"), &configmap(name, &json!({"app": app}), &json!({}))).await;
        let list = get(&server, &core("configmaps")).await.body;
        assert!(names(&list).contains(&name), "a list after the write shows it");
        assert!(version(&list).parse::<u64>().ok() >= version(&made.body).parse().ok());
    }
    let by_label = get(&server, &format!("{}?labelSelector=app%20in%20(x)", core("configmaps"))).await.body;
    assert_eq!(names(&by_label), ["a"]);
    let by_name = get(&server, "/api/v1/configmaps?fieldSelector=metadata.name%3Db").await.body;
    assert_eq!(names(&by_name), ["b"]);
    post(&server, &core("pods"), &pod("p1", "n1")).await;
    post(&server, &core("pods"), &pod("p2", "n2")).await;
    let by_node =
        get(&server, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2,status.phase!%3DFailed").await.body;
    assert_eq!(names(&by_node), ["p2"]);
    assert_eq!(get(&server, "/api/v1/pods?fieldSelector=spec.nonsense%3D1").await.code, 400);
}

#[tokio::test]
async fn a_list_can_be_had_as_it_was() {
    let server = server().await;
    let made = post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await.body;
    post(&server, &core("configmaps"), &configmap("b", &json!({}), &json!({}))).await;
    let exact =
        format!("{}?resourceVersion={}&resourceVersionMatch=Exact", core("configmaps"), version(&made));
    assert_eq!(names(&get(&server, &exact).await.body), ["a"]);
    let future = get(&server, &format!("{}?resourceVersion=100000", core("configmaps"))).await;
    assert_eq!(future.code, 504);
    assert_eq!(future.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn tables_have_rows_with_metadata() {
    let server = server().await;
    post(&server, &core("services"), &service("web", "ClusterIP")).await;
    let ask = |path: String| {
        let server = server.clone();
        async move {
            let request =
                Request::get(path).header(header::ACCEPT, TABLE).body(Full::default()).expect("a request");
            send(&server, request).await.body
        }
    };
    let table = ask(core("services")).await;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"].as_array().map(Vec::len), Some(2));
    assert_eq!(table["rows"][1]["cells"][0], "web");
    assert_eq!(table["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    let whole = ask(format!("{}?includeObject=Object", core("services/web"))).await;
    assert_eq!(whole["rows"][0]["object"]["kind"], "Service");
}

#[tokio::test]
async fn discovery_names_each_kind_once_in_both_forms() {
    let server = server().await;
    let plain = get(&server, "/api/v1").await.body;
    let resources = plain["resources"].as_array().expect("resources");
    for name in ["pods", "pods/log", "pods/status", "services", "namespaces", "nodes"] {
        assert_eq!(resources.iter().filter(|r| r["name"] == name).count(), 1, "{name}");
    }
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let request =
        Request::get("/apis").header(header::ACCEPT, accept).body(Full::default()).expect("a request");
    let aggregated = send(&server, request).await;
    assert_eq!(aggregated.body["kind"], "APIGroupDiscoveryList");
    assert_eq!(aggregated.headers["content-type"], accept.split(',').next().expect("the first"));
    let groups = get(&server, "/apis").await.body;
    assert_eq!(
        groups["groups"].as_array().map(Vec::len),
        aggregated.body["items"].as_array().map(Vec::len),
        "both name the same groups"
    );
    let root = get(&server, "/openapi/v3").await.body;
    let url = root["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a URL");
    let document = get(&server, url).await.body;
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
}

#[tokio::test]
async fn history_is_forgotten_after_its_time_and_the_present_stays() {
    let mut config = config();
    config.history = std::time::Duration::from_millis(100);
    let server = portolan_server::Server::open(config, portolan_store::embedded::Embedded::in_memory()).await;
    let server = server.expect("the server opens");
    let made = post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await.body;
    let exact =
        format!("{}?resourceVersion={}&resourceVersionMatch=Exact", core("configmaps"), version(&made));
    let mut n = 0;
    let forgotten = async {
        loop {
            // Something has to happen, else the newest revision is the one that is asked for.
            n += 1;
            patch(&server, &core("configmaps/a"), "merge", &json!({"data": {"n": n.to_string()}})).await;
            let answer = get(&server, &exact).await;
            if answer.code == 410 {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let answer =
        tokio::time::timeout(std::time::Duration::from_secs(10), forgotten).await.expect("forgotten in time");
    assert_eq!(answer.body["reason"], "Expired");
    assert_eq!(names(&get(&server, &core("configmaps")).await.body), ["a"]);
}

#[tokio::test]
async fn a_server_whose_store_is_gone_lives_and_is_not_ready() {
    let store = portolan_store::embedded::Embedded::in_memory();
    let server = over(store.clone()).await;
    assert_eq!(get(&server, "/readyz").await.text, "ok");
    store.close().await;
    assert_eq!(get(&server, "/livez").await.text, "ok");
    let unready = get(&server, "/readyz").await;
    assert_eq!(unready.code, 500);
    assert!(unready.text.contains("[-]store failed"), "{}", unready.text);
    let refused = post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await;
    assert_eq!((refused.code.as_u16(), &refused.body["reason"]), (503, &json!("ServiceUnavailable")));
}
