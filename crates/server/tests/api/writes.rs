//! Writing through the protocol.

use std::collections::BTreeSet;

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn an_update_of_an_old_version_conflicts_and_one_without_a_version_does_not() {
    let server = server().await;
    let made = post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({"k": "1"}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let path = core("configmaps/a");
    let mut new = made.body.clone();
    new["data"]["k"] = "2".into();
    assert_eq!(put(&server, &path, &new).await.code, 200);
    let again = put(&server, &path, &new).await;
    assert_eq!(again.code, 409);
    assert_eq!(again.body["reason"], "Conflict");
    assert_eq!(
        again.body["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the \
         latest version and try again"
    );
    new["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    new["data"]["k"] = "3".into();
    assert_eq!(put(&server, &path, &new).await.body["data"]["k"], "3");
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_the_resource_version() {
    let server = server().await;
    let made = post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({"k": "1"}))).await;
    let path = core("configmaps/a");
    let same = put(&server, &path, &configmap("a", &json!({}), &json!({"k": "1"}))).await;
    assert_eq!(version(&same.body), version(&made.body));
    let same = patch(&server, &path, "merge", &json!({"data": {"k": "1"}})).await;
    assert_eq!(version(&same.body), version(&made.body));
    let other = patch(&server, &path, "merge", &json!({"data": {"k": "2"}})).await;
    assert_ne!(version(&other.body), version(&made.body));
}

#[tokio::test]
async fn generated_names_are_unique_and_begin_as_asked() {
    let server = server().await;
    let mut names = BTreeSet::new();
    for _ in 0..20 {
        let mut object = configmap("", &json!({}), &json!({}));
        object["metadata"] = json!({"generateName": "web-"});
        let made = post(&server, &core("configmaps"), &object).await;
        assert_eq!(made.code, 201, "{}", made.text);
        let name = made.body["metadata"]["name"].as_str().expect("a name").to_owned();
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        names.insert(name);
    }
    assert_eq!(names.len(), 20);
}

#[tokio::test]
async fn a_namespace_must_exist_and_not_be_on_its_way_out() {
    let server = server().await;
    let object = configmap("a", &json!({}), &json!({}));
    let lost = post(&server, "/api/v1/namespaces/nowhere/configmaps", &object).await;
    assert_eq!(
        (lost.code.as_u16(), lost.body["message"].as_str()),
        (404, Some("namespaces \"nowhere\" not found"))
    );

    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
    assert_eq!(post(&server, "/api/v1/namespaces", &space).await.code, 201);
    assert_eq!(post(&server, "/api/v1/namespaces/x/configmaps", &object).await.code, 201);
    let going = delete(&server, "/api/v1/namespaces/x", &Value::Null).await;
    assert_eq!(going.body["status"]["phase"], "Terminating", "{}", going.text);
    let late =
        post(&server, "/api/v1/namespaces/x/configmaps", &configmap("b", &json!({}), &json!({}))).await;
    assert_eq!((late.code.as_u16(), &late.body["reason"]), (403, &json!("Forbidden")));
    assert_eq!(late.body["details"]["causes"][0]["reason"], "NamespaceTerminating");

    let mut done = going.body.clone();
    done["spec"]["finalizers"] = json!([]);
    assert_eq!(put(&server, "/api/v1/namespaces/x/finalize", &done).await.code, 200);
    assert_eq!(get(&server, "/api/v1/namespaces/x").await.code, 404);
    assert_eq!(delete(&server, "/api/v1/namespaces/default", &Value::Null).await.code, 403);
}

#[tokio::test]
async fn unknown_fields_are_refused_or_warned_of() {
    let server = server().await;
    let mut object = service("web", "ClusterIP");
    object["spec"]["sesionAffinity"] = "None".into();
    let strict = post(&server, &format!("{}?fieldValidation=Strict", core("services")), &object).await;
    assert_eq!(strict.code, 400);
    let text = strict.body["message"].as_str().unwrap_or_default();
    assert!(text.contains("strict decoding error: unknown field \"spec.sesionAffinity\""), "{text}");
    let warned = post(&server, &core("services"), &object).await;
    assert_eq!(warned.code, 201, "{}", warned.text);
    let warning = warned.headers["warning"].to_str().expect("text");
    assert_eq!(warning, "299 - \"unknown field \\\"spec.sesionAffinity\\\"\"");
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_stores_nothing() {
    let server = server().await;
    let made = post(&server, &format!("{}?dryRun=All", core("services")), &service("web", "NodePort")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(get(&server, &core("services/web")).await.code, 404);
    let made = post(&server, &core("services"), &service("web", "NodePort")).await;
    assert_eq!(made.code, 201);
    let dry = format!("{}?dryRun=All", core("services/web"));
    assert_eq!(delete(&server, &dry, &Value::Null).await.code, 200);
    let patched = patch(&server, &dry, "merge", &json!({"spec": {"sessionAffinity": "ClientIP"}})).await;
    assert_eq!(patched.body["spec"]["sessionAffinity"], "ClientIP");
    assert_eq!(version(&get(&server, &core("services/web")).await.body), version(&made.body));
}

#[tokio::test]
async fn patches_of_all_three_ways_apply() {
    let server = server().await;
    let mut object = service("web", "ClusterIP");
    object["spec"]["ports"] = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let made = post(&server, &core("services"), &object).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let path = core("services/web");
    let strategic = json!({"spec": {"ports": [{"port": 81, "name": "c"}]}});
    let merged = patch(&server, &path, "strategic-merge", &strategic).await;
    assert_eq!(merged.code, 200, "{}", merged.text);
    let names: Vec<_> =
        merged.body["spec"]["ports"].as_array().expect("ports").iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["a", "c"]);
    let pointed = patch(&server, &path, "json", &json!([{"op": "remove", "path": "/spec/ports/1"}])).await;
    assert_eq!(pointed.body["spec"]["ports"].as_array().map(Vec::len), Some(1), "{}", pointed.text);
    let plain = patch(&server, &path, "merge", &json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(plain.body["metadata"]["labels"]["x"], "y");

    let stale = json!({"metadata": {"resourceVersion": version(&made.body), "labels": {"x": "z"}}});
    assert_eq!(patch(&server, &path, "merge", &stale).await.code, 409);
    let apply = call(&server, Method::PATCH, &path, "application/x-patch", &json!({})).await;
    assert_eq!(apply.code, 415);
}

#[tokio::test]
async fn patches_that_meet_are_all_applied() {
    let server = server().await;
    post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await;
    let patches = (0..40).map(|i| {
        let server = server.clone();
        tokio::spawn(async move {
            let change = json!({"data": {format!("k{i}"): "v"}});
            patch(&server, &core("configmaps/a"), "merge", &change).await.code
        })
    });
    for done in futures_util::future::join_all(patches).await {
        assert_eq!(done.expect("joined"), 200);
    }
    let all = get(&server, &core("configmaps/a")).await;
    assert_eq!(all.body["data"].as_object().map(serde_json::Map::len), Some(40));
}

#[tokio::test]
async fn a_hundred_services_made_at_once_get_a_hundred_ports_and_addresses() {
    let server = server().await;
    let makers = (0..100).map(|i| {
        let server = server.clone();
        tokio::spawn(
            async move { post(&server, &core("services"), &service(&format!("s{i}"), "NodePort")).await },
        )
    });
    let (mut ports, mut ips) = (BTreeSet::new(), BTreeSet::new());
    for made in futures_util::future::join_all(makers).await {
        let made = made.expect("joined");
        assert_eq!(made.code, 201, "{}", made.text);
        ports.insert(made.body["spec"]["ports"][0]["nodePort"].as_u64().expect("a port"));
        ips.insert(made.body["spec"]["clusterIP"].as_str().expect("an address").to_owned());
    }
    assert_eq!((ports.len(), ips.len()), (100, 100));
}

#[tokio::test]
async fn of_two_services_that_ask_for_one_port_one_gets_it_until_it_is_deleted() {
    let server = server().await;
    let asking = |name: &str| {
        let mut object = service(name, "NodePort");
        object["spec"]["ports"][0]["nodePort"] = 30163.into();
        object
    };
    let rivals = (0..8).map(|i| {
        let (server, object) = (server.clone(), asking(&format!("s{i}")));
        tokio::spawn(async move { post(&server, &core("services"), &object).await })
    });
    let answers: Vec<_> = futures_util::future::join_all(rivals).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("joined")).collect();
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.code == 201);
    assert_eq!((won.len(), lost.len()), (1, 7));
    for answer in lost {
        assert_eq!(answer.code, 422);
        assert!(answer.text.contains("provided port is already allocated"), "{}", answer.text);
    }
    let winner = won[0].body["metadata"]["name"].as_str().expect("a name");
    assert_eq!(delete(&server, &core(&format!("services/{winner}")), &Value::Null).await.code, 200);
    assert_eq!(post(&server, &core("services"), &asking("next")).await.code, 201);
}

#[tokio::test]
async fn the_kubernetes_service_is_there_with_the_first_address() {
    let server = server().await;
    let service = get(&server, &core("services/kubernetes")).await.body;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(service["metadata"]["labels"], json!({"component": "apiserver", "provider": "kubernetes"}));
    assert!(service["spec"].get("selector").is_none());
    let slice =
        get(&server, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.body;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.10"]));
    assert_eq!(slice["ports"][0]["port"], 6443);
    let endpoints = get(&server, &core("endpoints/kubernetes")).await.body;
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.10");
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        assert_eq!(get(&server, &format!("/api/v1/namespaces/{name}")).await.code, 200);
    }
}

#[tokio::test]
async fn with_ipv6_first_the_kubernetes_service_has_the_first_address_of_that_range() {
    let mut config = config();
    config.service_cidrs.reverse();
    config.advertise_addresses = vec!["2001:db8::7".parse().expect("an address")];
    let server = portolan_server::Server::open(config, portolan_store::embedded::Embedded::in_memory()).await;
    let server = server.expect("the server opens");
    assert_eq!(get(&server, &core("services/kubernetes")).await.body["spec"]["clusterIP"], "fd00:96::1");
    let slice =
        get(&server, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.body;
    assert_eq!(
        (&slice["addressType"], &slice["endpoints"][0]["addresses"][0]),
        (&json!("IPv6"), &json!("2001:db8::7"))
    );
}

#[tokio::test]
async fn endpoints_go_with_their_service() {
    let server = server().await;
    post(&server, &core("services"), &service("web", "ClusterIP")).await;
    let endpoints =
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": []});
    assert_eq!(post(&server, &core("endpoints"), &endpoints).await.code, 201);
    let gone = delete(&server, &core("services/web"), &Value::Null).await;
    assert_eq!(gone.body["kind"], "Service");
    assert_eq!(get(&server, &core("endpoints/web")).await.code, 404);
}

#[tokio::test]
async fn pods_go_at_once_or_after_their_grace() {
    let server = server().await;
    assert_eq!(post(&server, &core("pods"), &pod("idle", "")).await.code, 201);
    assert_eq!(delete(&server, &core("pods/idle"), &Value::Null).await.code, 200);
    assert_eq!(get(&server, &core("pods/idle")).await.code, 404, "a pod on no node goes at once");

    assert_eq!(post(&server, &core("pods"), &pod("busy", "n1")).await.code, 201);
    let going = delete(&server, &core("pods/busy"), &json!({"gracePeriodSeconds": 20})).await;
    assert_eq!(going.body["metadata"]["deletionGracePeriodSeconds"], 20, "{}", going.text);
    let longer = delete(&server, &core("pods/busy"), &json!({"gracePeriodSeconds": 60})).await;
    assert_eq!(longer.body["metadata"]["deletionGracePeriodSeconds"], 20, "grace is never lengthened");
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "not-me"}});
    assert_eq!(delete(&server, &core("pods/busy"), &wrong).await.code, 409);
    assert_eq!(delete(&server, &core("pods/busy"), &json!({"gracePeriodSeconds": 0})).await.code, 200);
    assert_eq!(get(&server, &core("pods/busy")).await.code, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_has_gone() {
    let server = server().await;
    let mut object = configmap("a", &json!({}), &json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    post(&server, &core("configmaps"), &object).await;
    let going = delete(&server, &core("configmaps/a"), &json!({"propagationPolicy": "Foreground"})).await;
    assert_eq!(going.body["metadata"]["finalizers"], json!(["example.com/hold", "foregroundDeletion"]));
    assert!(going.body["metadata"]["deletionTimestamp"].is_string());
    let last =
        patch(&server, &core("configmaps/a"), "merge", &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(last.code, 200, "{}", last.text);
    assert_eq!(get(&server, &core("configmaps/a")).await.code, 404);
}

#[tokio::test]
async fn how_dependents_go_that_an_object_says_itself_comes_before_its_kinds_way() {
    let server = server().await;
    let job = |finalizers: Value| {
        json!({"metadata": {"generateName": "j", "finalizers": finalizers}, "spec": {"template": {"spec": {
            "containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}}})
    };
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    for (said, held) in [
        (json!(["e.org/f"]), json!(["e.org/f", "orphan"])),
        (json!(["e.org/f", "foregroundDeletion"]), json!(["e.org/f", "foregroundDeletion"])),
    ] {
        let made = post(&server, jobs, &job(said)).await;
        assert_eq!(made.code, 201, "{}", made.text);
        let path = format!("{jobs}/{}", made.body["metadata"]["name"].as_str().expect("a name"));
        let gone = delete(&server, &path, &json!({})).await;
        assert_eq!(gone.body["metadata"]["finalizers"], held, "{}", gone.text);
    }
}

#[tokio::test]
async fn a_collection_is_deleted_by_label() {
    let server = server().await;
    for (name, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
        post(&server, &core("configmaps"), &configmap(name, &json!({"app": app}), &json!({}))).await;
    }
    let gone = delete(&server, &format!("{}?labelSelector=app%3Dx", core("configmaps")), &Value::Null).await;
    assert_eq!(gone.body["items"].as_array().map(Vec::len), Some(2), "{}", gone.text);
    let left = get(&server, &core("configmaps")).await.body;
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let server = server().await;
    let made = post(&server, &core("pods"), &pod("p", "n1")).await.body;
    let status =
        json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}, "metadata": {"labels": {"a": "b"}}});
    let running = patch(&server, &core("pods/p/status"), "strategic-merge", &status).await;
    assert_eq!(running.body["status"]["phase"], "Running", "{}", running.text);
    assert_eq!(running.body["spec"], made["spec"]);
    let change = json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"x": "y"}}});
    let labelled = patch(&server, &core("pods/p"), "strategic-merge", &change).await;
    assert_eq!(labelled.body["status"]["phase"], "Running");
    assert_eq!(labelled.body["metadata"]["labels"]["x"], "y");
}

#[tokio::test]
async fn binding_and_eviction_and_scale_do_their_part() {
    let server = server().await;
    post(&server, &core("pods"), &pod("p", "")).await;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"},
    });
    assert_eq!(post(&server, &core("pods/p/binding"), &binding).await.code, 201);
    assert_eq!(post(&server, &core("pods/p/binding"), &binding).await.code, 409);
    let bound = get(&server, &core("pods/p")).await.body;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(post(&server, &core("pods/p/eviction"), &eviction).await.code, 201);
    assert!(get(&server, &core("pods/p")).await.body["metadata"]["deletionTimestamp"].is_string());

    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "template": {
                "metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "echo"}]},
            },
        },
    });
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let made = post(&server, path, &deployment).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let scaled = patch(&server, &format!("{path}/d/scale"), "merge", &json!({"spec": {"replicas": 4}})).await;
    assert_eq!(
        (scaled.body["kind"].as_str(), scaled.body["spec"]["replicas"].as_u64()),
        (Some("Scale"), Some(4))
    );
    let now = get(&server, &format!("{path}/d")).await.body;
    assert_eq!(
        (now["spec"]["replicas"].as_u64(), now["metadata"]["generation"].as_u64()),
        (Some(4), Some(2))
    );
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let server = server().await;
    let object = configmap("a", &json!({}), &json!({"k": "x".repeat(4 << 20)}));
    let refused = post(&server, &core("configmaps"), &object).await;
    assert_eq!((refused.code.as_u16(), &refused.body["reason"]), (413, &json!("RequestEntityTooLarge")));
}

#[tokio::test]
async fn a_port_that_an_update_gives_up_is_free_and_one_it_takes_is_taken() {
    let server = server().await;
    let first = post(&server, &core("services"), &service("a", "NodePort")).await.body;
    let port = first["spec"]["ports"][0]["nodePort"].clone();
    let mut rival = service("b", "NodePort");
    rival["spec"]["ports"][0]["nodePort"] = port.clone();
    assert_eq!(post(&server, &core("services"), &rival).await.code, 422);
    let plain = patch(&server, &core("services/a"), "merge", &json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!(plain.code, 200, "{}", plain.text);
    assert!(plain.body["spec"]["ports"][0].get("nodePort").is_none());
    assert_eq!(plain.body["spec"]["clusterIP"], first["spec"]["clusterIP"], "the address stays");
    assert_eq!(post(&server, &core("services"), &rival).await.code, 201);
    let ports = json!([{"port": 80, "nodePort": port}]);
    let back = json!({"spec": {"type": "NodePort", "ports": ports}});
    let refused = patch(&server, &core("services/a"), "merge", &back).await;
    assert_eq!(refused.code, 422, "{}", refused.text);
}

#[tokio::test]
async fn a_put_makes_a_service_and_no_other_kind() {
    let server = server().await;
    let made = put(&server, &core("services/web"), &service("web", "ClusterIP")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let missing = put(&server, &core("configmaps/a"), &configmap("a", &json!({}), &json!({}))).await;
    assert_eq!(missing.code, 404);
    let mut stale = service("old", "ClusterIP");
    stale["metadata"]["resourceVersion"] = "1".into();
    let made = put(&server, &core("services/old"), &stale).await;
    assert_eq!(made.code, 201, "the version of an object that isn't there has no meaning: {}", made.text);
}

#[tokio::test]
async fn an_object_nested_too_deep_to_be_listed_is_refused() {
    let server = server().await;
    let chain = |levels: usize| (0..levels).fold(json!({}), |inside, _| json!({"a": inside}));
    let mut object = configmap("deep", &json!({}), &json!({}));
    object["unknown"] = chain(105);
    let refused = post(&server, &core("configmaps"), &object).await;
    assert_eq!(
        (refused.code.as_u16(), refused.text.contains("levels deep")),
        (400, true),
        "{}",
        refused.text
    );
    object["unknown"] = chain(95);
    assert_eq!(post(&server, &core("configmaps"), &object).await.code, 201);
    let deeper = json!([{"op": "add", "path": format!("/unknown{}", "/a".repeat(95)), "value": chain(60)}]);
    let refused = patch(&server, &core("configmaps/deep"), "json", &deeper).await;
    assert_eq!(refused.code, 422, "{}", refused.text);
    assert_eq!(get(&server, &core("configmaps")).await.body["items"][0]["metadata"]["name"], "deep");
}

#[tokio::test]
async fn a_body_in_protobuf_is_an_object_like_any_other() {
    let server = server().await;
    // A ConfigMap `c` of namespace `default` with a=b, as kubectl sends it.
    let body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x22\x0a\x18\x0a\x01c\x12\0\x1a\x07default\"\0*\0\x32\08\0B\0\
                 \x12\x06\x0a\x01a\x12\x01b\x1a\0\"\0";
    let send_it = |path: String, method: Method, body: &[u8]| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("accept", "application/vnd.kubernetes.protobuf,application/json");
        let request = request.header("content-type", "application/vnd.kubernetes.protobuf");
        send(&server, request.body(Full::new(bytes::Bytes::copy_from_slice(body))).expect("a request"))
    };
    let made = send_it(core("configmaps"), Method::POST, body).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.text);
    assert_eq!(made.body["data"], json!({"a": "b"}));
    assert_eq!(made.headers["content-type"], "application/json");
    // DeleteOptions with preconditions { uid: "x" }.
    let options = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12\x05\x12\x03\x0a\x01x";
    let refused = send_it(format!("{}/c", core("configmaps")), Method::DELETE, options).await;
    assert_eq!(refused.code, StatusCode::CONFLICT, "{}", refused.text);
    let other = send_it(core("configmaps"), Method::POST, b"{}").await;
    assert_eq!(other.code, StatusCode::BAD_REQUEST, "{}", other.text);
}
