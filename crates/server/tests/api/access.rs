//! Who asks and who may: tokens, roles, nodes, and asking as somebody else.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use portolan_server::{AuditLog, Identity, InProcess, Server};
use portolan_store::embedded::Embedded;
use serde_json::{Value, json};

use crate::support::*;

/// One request by somebody, with headers.
async fn ask(
    service: InProcess,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Answer {
    let mut request =
        Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    send_by(service, request.body(Full::new(bytes)).expect("a request")).await
}

/// One request with a token.
async fn with_token(server: &Arc<Server>, token: &str, method: Method, path: &str, body: &Value) -> Answer {
    ask(server.stranger(), method, path, &[("authorization", &format!("Bearer {token}"))], body).await
}

/// One request by a user.
async fn by(server: &Arc<Server>, user: &Identity, method: Method, path: &str, body: &Value) -> Answer {
    ask(server.service(user.clone()), method, path, &[], body).await
}

async fn made(server: &Arc<Server>, path: &str, body: &Value) -> Value {
    let answer = post(server, path, body).await;
    assert_eq!(answer.code, StatusCode::CREATED, "{path}: {}", answer.text);
    answer.body
}

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1";
const ACCESS: &str = "/apis/authorization.k8s.io/v1";

async fn account(server: &Arc<Server>, name: &str) {
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    made(server, &core("serviceaccounts"), &body).await;
}

async fn token(server: &Arc<Server>, name: &str, spec: &Value) -> Answer {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    post(server, &format!("{}/{name}/token", core("serviceaccounts")), &body).await
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

async fn whoami(server: &Arc<Server>, token: &str) -> Result<Value, StatusCode> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = format!("{REVIEWS}/selfsubjectreviews");
    let answer = with_token(server, token, Method::POST, &path, &body).await;
    if answer.code == StatusCode::CREATED {
        Ok(answer.body["status"]["userInfo"].clone())
    } else {
        Err(answer.code)
    }
}

/// Waits until a token is known no more: memory hears of a deletion a moment after it is acknowledged.
async fn is_refused(server: &Arc<Server>, token: &str) {
    let refused = async {
        while whoami(server, token).await != Err(StatusCode::UNAUTHORIZED) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), refused).await.expect("the token is refused");
}

#[tokio::test]
async fn a_service_accounts_token_is_good_for_as_long_as_what_it_is_bound_to_is_there() {
    let server = server().await;
    account(&server, "web").await;
    let plain = token(&server, "web", &json!({})).await;
    assert_eq!(plain.code, StatusCode::CREATED, "{}", plain.text);
    let who = whoami(&server, text(&plain.body["status"]["token"])).await.expect("known");
    assert_eq!(who["username"], "system:serviceaccount:default:web");
    assert_eq!(
        who["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    assert!(text(&who["extra"]["authentication.kubernetes.io/credential-id"][0]).starts_with("JTI="));

    let mut body = pod("p", "n1");
    body["spec"]["serviceAccountName"] = "web".into();
    made(&server, &core("pods"), &body).await;
    let reference = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}});
    let bound = token(&server, "web", &reference).await;
    let bound = text(&bound.body["status"]["token"]).to_owned();
    let who = whoami(&server, &bound).await.expect("known");
    assert_eq!(who["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert_eq!(who["extra"]["authentication.kubernetes.io/node-name"], json!(["n1"]));
    delete(&server, &format!("{}/p", core("pods")), &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(whoami(&server, &bound).await, Err(StatusCode::UNAUTHORIZED));
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": bound}});
    let review = post(&server, &format!("{REVIEWS}/tokenreviews"), &review).await;
    let why = "[invalid bearer token, service account token has been invalidated]";
    assert_eq!(review.body["status"], json!({"user": {}, "error": why}));

    // Another account of the same name is another account.
    let old = text(&plain.body["status"]["token"]);
    delete(&server, &format!("{}/web", core("serviceaccounts")), &json!({})).await;
    is_refused(&server, old).await;
    account(&server, "web").await;
    is_refused(&server, old).await;
}

#[tokio::test]
async fn a_request_for_a_token_is_refused_in_kubernetes_words() {
    let server = server().await;
    account(&server, "web").await;
    made(&server, &core("pods"), &pod("p", "")).await;
    let bind =
        |kind: &str, name: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}});
    for (spec, code, message) in [
        (
            json!({"expirationSeconds": 599}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not \
             specify a duration less than 10 minutes",
        ),
        (
            json!({"expirationSeconds": 4_294_967_297_i64}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 4294967297: may \
             not specify a duration larger than 2^32 seconds",
        ),
        (bind("Pod", "no"), 404, "pods \"no\" not found"),
        (bind("Foo", "no"), 400, "cannot bind token to object of type /v1, Kind=Foo"),
        (
            bind("Pod", "p"),
            400,
            "cannot bind token for serviceaccount \"web\" to pod running with different serviceaccount name.",
        ),
    ] {
        let answer = token(&server, "web", &spec).await;
        assert_eq!((answer.code.as_u16(), text(&answer.body["message"])), (code, message), "{spec}");
    }
    assert_eq!(token(&server, "no", &json!({})).await.code, StatusCode::NOT_FOUND);

    let other = token(&server, "web", &json!({"audiences": ["vault"]})).await;
    let other = text(&other.body["status"]["token"]).to_owned();
    assert_eq!(whoami(&server, &other).await, Err(StatusCode::UNAUTHORIZED), "it is for somebody else");
    let review = |audiences: Value| json!({"spec": {"token": other.as_str(), "audiences": audiences}});
    let good = post(&server, &format!("{REVIEWS}/tokenreviews"), &review(json!(["x", "vault"]))).await;
    assert_eq!(
        (&good.body["status"]["authenticated"], &good.body["status"]["audiences"]),
        (&json!(true), &json!(["vault"]))
    );
    let bad = post(&server, &format!("{REVIEWS}/tokenreviews"), &review(json!(["x"]))).await;
    assert_eq!(
        bad.body["status"]["error"],
        "[invalid bearer token, token audiences [\"vault\"] is invalid for the target audiences [\"x\"]]"
    );
}

#[tokio::test]
async fn a_secret_for_an_accounts_token_is_filled_and_ends_with_its_deletion() {
    let server = server().await;
    account(&server, "web").await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "old", "annotations": {"kubernetes.io/service-account.name": "web"}},
    });
    made(&server, &core("secrets"), &secret).await;
    let filled = get(&server, &format!("{}/old", core("secrets"))).await.body;
    assert!(filled["metadata"]["annotations"]["kubernetes.io/service-account.uid"].is_string(), "{filled}");
    let decode = |text: &str| {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        String::from_utf8(bytes).expect("text")
    };
    assert_eq!(decode(text(&filled["data"]["namespace"])), "default");
    let token = decode(text(&filled["data"]["token"]));
    let who = whoami(&server, &token).await.expect("known");
    assert_eq!(who["username"], "system:serviceaccount:default:web");
    delete(&server, &format!("{}/old", core("secrets")), &json!({})).await;
    is_refused(&server, &token).await;
}

/// Makes a role and binds a user to it, in `default`.
async fn grant(server: &Arc<Server>, name: &str, user: &str, rules: Value) {
    let namespace = format!("{RBAC}/namespaces/default");
    let role = json!({"metadata": {"name": name}, "rules": rules});
    made(server, &format!("{namespace}/roles"), &role).await;
    made(server, &format!("{namespace}/rolebindings"), &binding(name, "Role", name, user)).await;
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
    })
}

#[tokio::test]
async fn a_role_allows_what_it_names_from_its_binding_to_its_end() {
    let server = server().await;
    let user = Identity::new("jane", &["system:authenticated"]);
    let refused = by(&server, &user, Method::GET, &core("configmaps"), &Value::Null).await;
    assert_eq!(
        refused.body,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the \
                        namespace \"default\"",
            "reason": "Forbidden", "details": {"kind": "configmaps"}, "code": 403,
        })
    );
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "create"]}]);
    grant(&server, "reader", "jane", rules).await;
    // At once: a refusal is given only with all that was acknowledged before.
    let list = by(&server, &user, Method::GET, &core("configmaps"), &Value::Null).await;
    assert_eq!(list.code, StatusCode::OK, "{}", list.text);
    let all = by(&server, &user, Method::GET, "/api/v1/configmaps", &Value::Null).await;
    assert_eq!(all.code, StatusCode::FORBIDDEN);
    let made =
        by(&server, &user, Method::POST, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.text);
    let gone = by(&server, &user, Method::DELETE, &format!("{}/a", core("configmaps")), &Value::Null).await;
    assert_eq!(gone.code, StatusCode::FORBIDDEN);
    // What there is no kind for is forbidden, too, before it is unknown.
    let unknown = by(&server, &user, Method::GET, "/apis/foo.io/v1/bars", &Value::Null).await;
    assert_eq!(unknown.code, StatusCode::FORBIDDEN);
    assert_eq!(by(&server, &user, Method::GET, "/apis", &Value::Null).await.code, StatusCode::OK);

    let path = format!("{RBAC}/namespaces/default/rolebindings/reader");
    delete(&server, &path, &json!({})).await;
    // A right that is taken is gone when memory knows, a moment later.
    let gone = async {
        while by(&server, &user, Method::GET, &core("configmaps"), &Value::Null).await.code
            != StatusCode::FORBIDDEN
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), gone).await.expect("the role holds no more");
}

#[tokio::test]
async fn nobody_gives_away_more_than_they_have() {
    let server = server().await;
    let user = Identity::new("jane", &["dev", "system:authenticated"]);
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings", "clusterroles"],
         "verbs": ["create", "update", "get"]},
    ]);
    grant(&server, "author", "jane", rules).await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let role = |name: &str, verbs: Value| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]});
    let fine = by(&server, &user, Method::POST, &roles, &role("fine", json!(["get"]))).await;
    assert_eq!(fine.code, StatusCode::CREATED, "{}", fine.text);
    let more =
        by(&server, &user, Method::POST, &roles, &role("more", json!(["get", "delete", "watch"]))).await;
    assert_eq!(
        text(&more.body["message"]),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"jane\" (groups=[\"dev\" \"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], \
         Verbs:[\"delete\" \"watch\"]}"
    );
    let wider = role("fine", json!(["*"]));
    assert_eq!(
        by(&server, &user, Method::PUT, &format!("{roles}/fine"), &wider).await.code,
        StatusCode::FORBIDDEN
    );
    let own = by(&server, &user, Method::POST, &bindings, &binding("own", "Role", "fine", "joe")).await;
    assert_eq!(own.code, StatusCode::CREATED, "{}", own.text);
    let all = binding("all", "ClusterRole", "cluster-admin", "jane");
    let all = by(&server, &user, Method::POST, &bindings, &all).await;
    assert!(text(&all.body["message"]).contains("not currently held:\n{APIGroups:[\"*\"]"), "{}", all.text);
    let none = by(&server, &user, Method::POST, &bindings, &binding("none", "Role", "no", "jane")).await;
    assert_eq!(
        (none.code, text(&none.body["message"])),
        (StatusCode::NOT_FOUND, "rolebindings.rbac.authorization.k8s.io \"no\" not found")
    );

    // Who may bind, binds; who may escalate, writes what they like.
    let rules = json!([
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["view"], "verbs": ["bind"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["escalate"]},
    ]);
    grant(&server, "binder", "jane", rules).await;
    let view =
        by(&server, &user, Method::POST, &bindings, &binding("view", "ClusterRole", "view", "joe")).await;
    assert_eq!(view.code, StatusCode::CREATED, "{}", view.text);
    let more = by(&server, &user, Method::POST, &roles, &role("more", json!(["*"]))).await;
    assert_eq!(more.code, StatusCode::CREATED, "{}", more.text);
}

#[tokio::test]
async fn access_is_reviewed_as_it_is_decided() {
    let server = server().await;
    let rules = json!([{"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}]);
    grant(&server, "logs", "jane", rules).await;
    let review = |spec: Value| json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
    let reviews = format!("{ACCESS}/subjectaccessreviews");
    let logs = json!({"verb": "get", "resource": "pods", "subresource": "log", "namespace": "default"});
    let asked = post(&server, &reviews, &review(json!({"user": "jane", "resourceAttributes": logs}))).await;
    assert_eq!(asked.code, StatusCode::CREATED, "{}", asked.text);
    let reason = "RBAC: allowed by RoleBinding \"logs/default\" of Role \"logs\" to User \"jane\"";
    assert_eq!(asked.body["status"], json!({"allowed": true, "reason": reason}));
    let none = post(&server, &reviews, &review(json!({"user": "joe", "resourceAttributes": logs}))).await;
    assert_eq!(none.body["status"], json!({"allowed": false}));
    let empty = post(&server, &reviews, &review(json!({"resourceAttributes": logs}))).await;
    assert_eq!(
        (empty.code.as_u16(), text(&empty.body["message"])),
        (
            422,
            ".authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or group must be specified"
        )
    );

    let jane = Identity::new("jane", &["system:authenticated"]);
    let own = json!({"spec": {"resourceAttributes": logs}});
    let own = by(&server, &jane, Method::POST, &format!("{ACCESS}/selfsubjectaccessreviews"), &own).await;
    assert_eq!(own.body["status"]["allowed"], true, "{}", own.text);
    let others = by(&server, &jane, Method::POST, &reviews, &review(json!({"user": "joe"}))).await;
    assert_eq!(others.code, StatusCode::FORBIDDEN, "of others only who may ask");
    let mine = json!({"spec": {"namespace": "default"}});
    let mine = by(&server, &jane, Method::POST, &format!("{ACCESS}/selfsubjectrulesreviews"), &mine).await;
    let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"]});
    let list = mine.body["status"]["resourceRules"].as_array().expect("rules").clone();
    assert!(list.contains(&rule), "{}", mine.text);
    assert_eq!(get(&server, &reviews).await.code, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn who_may_impersonate_is_answered_as_somebody_else() {
    let server = server().await;
    let headers = [("impersonate-user", "joe"), ("impersonate-group", "dev")];
    let as_joe = |who: Identity| {
        let server = server.clone();
        async move { ask(server.service(who), Method::GET, "/api/v1/pods", &headers, &Value::Null).await }
    };
    let admin = as_joe(Identity::admin()).await;
    assert!(
        text(&admin.body["message"]).contains("User \"joe\" cannot list resource \"pods\""),
        "{}",
        admin.text
    );
    let jane = Identity::new("jane", &["system:authenticated"]);
    let refused = as_joe(jane.clone()).await;
    assert!(
        text(&refused.body["message"]).starts_with(
            "pods is forbidden: User \"jane\" cannot impersonate-on:user-info:list resource \"pods\""
        ),
        "{}",
        refused.text
    );
    let role = json!({"metadata": {"name": "as-joe"}, "rules": [
        {"apiGroups": [""], "resources": ["users"], "resourceNames": ["joe"], "verbs": ["impersonate"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"]},
    ]});
    made(&server, &format!("{RBAC}/clusterroles"), &role).await;
    let bind = binding("as-joe", "ClusterRole", "as-joe", "jane");
    made(&server, &format!("{RBAC}/clusterrolebindings"), &bind).await;
    let joe = as_joe(jane).await;
    assert!(text(&joe.body["message"]).contains("User \"joe\" cannot list"), "{}", joe.text);
}

#[tokio::test]
async fn a_node_reads_and_writes_its_own_things_alone() {
    let server = server().await;
    let node = Identity::node("n1");
    for (name, account) in [("a", "one"), ("b", "two")] {
        let mut body = pod(name, if name == "a" { "n1" } else { "n2" });
        body["spec"]["serviceAccountName"] = account.into();
        body["spec"]["volumes"] = json!([
            {"name": "s", "secret": {"secretName": name}},
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ]);
        made(&server, &core("pods"), &body).await;
        made(&server, &core("secrets"), &json!({"metadata": {"name": name}})).await;
    }
    for name in ["one", "two"] {
        account(&server, name).await;
    }
    let ask = |method: Method, path: String, body: Value| {
        let (server, node) = (server.clone(), node.clone());
        async move { by(&server, &node, method, &path, &body).await }
    };
    let own = ask(Method::GET, format!("{}/a", core("secrets")), Value::Null).await;
    assert_eq!(own.code, StatusCode::OK, "{}", own.text);
    let other = ask(Method::GET, format!("{}/b", core("secrets")), Value::Null).await;
    assert!(
        text(&other.body["message"]).ends_with(": no relationship found between node 'n1' and this object"),
        "{}",
        other.text
    );
    for (method, path, allowed) in [
        (Method::GET, core("secrets"), false),
        (Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".into(), true),
        (Method::GET, "/api/v1/pods".into(), false),
        (Method::GET, "/api/v1/services".into(), true),
        (Method::GET, "/api/v1/nodes".into(), true),
        (Method::GET, "/apis/discovery.k8s.io/v1/endpointslices".into(), true),
        (Method::DELETE, "/api/v1/nodes/n1".into(), false),
        (Method::GET, core("configmaps"), false),
        (Method::GET, format!("{RBAC}/clusterroles"), false),
    ] {
        let answer = ask(method.clone(), path.clone(), Value::Null).await;
        assert_eq!(answer.code == StatusCode::OK, allowed, "{method} {path}: {}", answer.text);
    }

    let register = |name: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}});
    assert_eq!(ask(Method::POST, "/api/v1/nodes".into(), register("n1")).await.code, StatusCode::CREATED);
    let other = ask(Method::POST, "/api/v1/nodes".into(), register("n2")).await;
    assert_eq!(
        text(&other.body["message"]),
        "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""
    );
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".to_owned();
    assert_eq!(ask(Method::POST, leases.clone(), lease("n1")).await.code, StatusCode::CREATED);
    assert_eq!(ask(Method::POST, leases, lease("n2")).await.code, StatusCode::FORBIDDEN);

    let status = json!({"status": {"phase": "Running"}});
    for (name, code) in [("a", StatusCode::OK), ("b", StatusCode::FORBIDDEN)] {
        let path = format!("{}/{name}/status", core("pods"));
        let headers = [("content-type", "application/merge-patch+json")];
        let request = Request::patch(&path).header(headers[0].0, headers[0].1);
        let request = request.body(Full::new(Bytes::from(status.to_string()))).expect("a request");
        let answer = send_by(server.service(node.clone()), request).await;
        assert_eq!(answer.code, code, "{name}: {}", answer.text);
    }
    for (pod, account, code) in [("a", "one", StatusCode::CREATED), ("b", "two", StatusCode::FORBIDDEN)] {
        let uid = get(&server, &format!("{}/{pod}", core("pods"))).await.body["metadata"]["uid"].clone();
        let bound =
            json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}});
        let path = format!("{}/{account}/token", core("serviceaccounts"));
        assert_eq!(ask(Method::POST, path, bound).await.code, code, "{account}");
    }
    let unbound =
        ask(Method::POST, format!("{}/one/token", core("serviceaccounts")), json!({"spec": {}})).await;
    assert!(
        text(&unbound.body["message"]).ends_with("node requested token not bound to a pod"),
        "{}",
        unbound.text
    );
    for (name, gone) in [("a", true), ("b", false)] {
        let answer =
            ask(Method::DELETE, format!("{}/{name}", core("pods")), json!({"gracePeriodSeconds": 0})).await;
        assert_eq!(answer.code == StatusCode::OK, gone, "{name}: {}", answer.text);
    }
}

#[tokio::test]
async fn what_is_done_is_written_to_the_audit_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.log");
    let mut config = config();
    config.audit_log = Some(AuditLog::at(&path));
    let server = Server::open(config, Embedded::in_memory()).await.expect("the server opens");
    post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({"secret": "x"}))).await;
    let headers = [("authorization", "Bearer letmein"), ("impersonate-user", "joe"), ("audit-id", "mine")];
    let joe = ask(server.stranger(), Method::DELETE, &core("pods"), &headers, &Value::Null).await;
    assert_eq!(
        (joe.code, &joe.headers["audit-id"]),
        (StatusCode::FORBIDDEN, &header::HeaderValue::from_static("mine"))
    );
    assert_eq!(
        with_token(&server, "wrong", Method::GET, "/version", &Value::Null).await.code,
        StatusCode::UNAUTHORIZED
    );
    drop(Watch::open(&server, "/api/v1/pods?watch=true&resourceVersion=0").await);

    let wanted = [
        ("RequestReceived", "create", 0),
        ("ResponseComplete", "create", 201),
        ("RequestReceived", "deletecollection", 0),
        ("ResponseComplete", "deletecollection", 403),
        ("ResponseComplete", "", 401),
        ("RequestReceived", "watch", 0),
        ("ResponseStarted", "watch", 200),
        ("ResponseComplete", "watch", 200),
    ];
    let lines = loop {
        let text = std::fs::read_to_string(&path).expect("the log");
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if lines.len() >= wanted.len() {
            break lines;
        }
        tokio::task::yield_now().await;
    };
    let brief = |line: &Value| {
        let code = line["responseStatus"]["code"].as_u64().unwrap_or(0);
        (text(&line["stage"]).to_owned(), text(&line["verb"]).to_owned(), code)
    };
    let wanted = wanted.map(|(stage, verb, code)| (stage.to_owned(), verb.to_owned(), code));
    assert_eq!(lines.iter().map(brief).collect::<Vec<_>>(), wanted);
    let made = json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"});
    assert_eq!((&lines[1]["objectRef"], &lines[1]["level"]), (&made, &json!("Metadata")));
    assert!(!lines[1].to_string().contains("secret"), "what is written is not told");
    let refused = &lines[3];
    assert_eq!(
        (&refused["user"]["username"], &refused["impersonatedUser"]["username"], &refused["auditID"]),
        (&json!("kubernetes-admin"), &json!("joe"), &json!("mine"))
    );
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
}

#[tokio::test]
async fn a_body_of_more_than_three_mebibytes_is_refused() {
    let server = server().await;
    let large = json!({"metadata": {"name": "a"}, "data": {"a": "x".repeat(3 << 20)}});
    let refused = post(&server, &core("configmaps"), &large).await;
    assert_eq!(refused.code, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(refused.body["reason"], "RequestEntityTooLarge");
    assert_eq!(refused.body["message"], "Request entity too large: limit is 3145728");
}
