//! Who may: the same roles in both servers, and the same questions; what may be given away; and asking as somebody else.

use std::collections::BTreeMap;

use http::{Method, Request};
use serde_json::{Value, json};

use super::dice::Dice;
use super::peer::Programs;
use super::world::{NAMESPACES, PLENTY, World};
use super::{PROMISE, number, say};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// An answer: its code and its body.
type Said = (u16, Value);

async fn ask(
    client: &kube::Client,
    method: &Method,
    path: &str,
    headers: &[(String, String)],
    body: &Value,
) -> Said {
    use http_body_util::BodyExt as _;
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = request.body(kube::client::Body::from(bytes)).expect("a request");
    let response = client.send(request).await.expect("an answer");
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Asks both.
async fn both(
    world: &World,
    method: Method,
    path: &str,
    headers: &[(String, String)],
    body: &Value,
) -> (Said, Said) {
    tokio::join!(
        ask(&world.real, &method, path, headers, body),
        ask(&world.ours, &method, path, headers, body)
    )
}

fn some(dice: &mut Dice, of: &[&str], most: usize) -> Vec<String> {
    let mut left = of.to_vec();
    let count = 1 + dice.below(most.min(of.len()));
    (0..count).map(|_| left.swap_remove(dice.below(left.len())).to_owned()).collect()
}

const VERBS: [&str; 9] =
    ["get", "list", "watch", "create", "update", "delete", "deletecollection", "escalate", "*"];
const GROUPS: [&str; 4] = ["", "apps", GROUP, "*"];
const RESOURCES: [&str; 9] =
    ["pods", "pods/log", "deployments", "deployments/scale", "secrets", "roles", "*", "*/scale", "*/log"];
const PATHS: [&str; 6] = ["/healthz", "/healthz/*", "/metrics", "/api*", "/x/y", "*"];
const USERS: [&str; 4] = ["u1", "u2", "system:serviceaccount:one:s", "system:serviceaccount:two:s"];
const OF: [&str; 5] =
    ["g1", "g2", "system:authenticated", "system:unauthenticated", "system:serviceaccounts:one"];

fn rule(dice: &mut Dice, of_cluster: bool) -> Value {
    if of_cluster && dice.percent(20) {
        return json!({"verbs": some(dice, &["get", "post", "*"], 2), "nonResourceURLs": some(dice, &PATHS, 2)});
    }
    let mut rule = json!({
        "verbs": some(dice, &VERBS, 3), "apiGroups": some(dice, &GROUPS, 2), "resources": some(dice, &RESOURCES, 3),
    });
    if dice.percent(30) {
        rule["resourceNames"] = json!(some(dice, &["a", "b"], 2));
    }
    rule
}

fn rules(dice: &mut Dice, of_cluster: bool) -> Value {
    let count = dice.below(4);
    (0..count).map(|_| rule(dice, of_cluster)).collect()
}

fn subject(dice: &mut Dice) -> Value {
    match dice.below(3) {
        0 => json!({"kind": "User", "name": dice.pick(&USERS), "apiGroup": GROUP}),
        1 => {
            json!({"kind": "Group", "name": dice.pick(&["g1", "g2", "system:serviceaccounts:one"]), "apiGroup": GROUP})
        }
        _ => json!({"kind": "ServiceAccount", "name": "s", "namespace": dice.pick(&NAMESPACES)}),
    }
}

fn binding(dice: &mut Dice, name: &str, (kind, role): (&str, &str)) -> Value {
    let count = dice.below(3);
    let subjects: Vec<Value> = (0..count).map(|_| subject(dice)).collect();
    json!({
        "metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}, "subjects": subjects,
    })
}

/// Roles and bindings, some of them to roles that aren't there.
fn objects(dice: &mut Dice) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for n in 0..12 {
        let name = format!("r{n}");
        let role = |rules: Value| json!({"metadata": {"name": name}, "rules": rules});
        out.push((format!("{RBAC}/clusterroles"), role(rules(dice, true))));
        let to = ("ClusterRole", dice.pick(&[name.as_str(), "missing", "system:discovery"]).to_owned());
        out.push((format!("{RBAC}/clusterrolebindings"), binding(dice, &name, (to.0, &to.1))));
        for namespace in NAMESPACES {
            out.push((format!("{RBAC}/namespaces/{namespace}/roles"), role(rules(dice, false))));
            let to = if dice.percent(50) { ("Role", "r1") } else { ("ClusterRole", name.as_str()) };
            let to = if dice.percent(10) { (to.0, "missing") } else { to };
            out.push((format!("{RBAC}/namespaces/{namespace}/rolebindings"), binding(dice, &name, to)));
        }
    }
    out
}

/// A question about somebody's access; some are malformed.
fn review(dice: &mut Dice) -> Value {
    let groups = if dice.percent(70) { some(dice, &OF, 2) } else { Vec::new() };
    let user = if dice.percent(10) { "" } else { dice.pick(&USERS) };
    let mut spec = json!({"user": user, "groups": groups});
    if dice.percent(15) {
        let path = dice.pick(&["/healthz", "/healthz/ping", "/metrics", "/apis", "/x/y", "/version", ""]);
        spec["nonResourceAttributes"] = json!({"verb": dice.pick(&["get", "post"]), "path": path});
    }
    if spec.get("nonResourceAttributes").is_none() || dice.percent(3) {
        spec["resourceAttributes"] = json!({
            "verb": dice.pick(&VERBS), "group": dice.pick(&GROUPS),
            "resource": dice.pick(&["pods", "deployments", "secrets", "roles", "nodes", "*"]),
            "namespace": dice.pick(&["one", "two", "three", ""]), "name": dice.pick(&["", "a", "b", "c"]),
            "subresource": dice.pick(&["", "", "log", "scale"]),
        });
    }
    if dice.percent(2) {
        spec = json!({"user": "u1"});
    }
    json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
}

/// What of two answers must be alike: the decision; why it is none, in whatever order; and a refusal's words, whose lines
/// have no order either.
fn comparable((code, body): &Said) -> Value {
    let sorted = |text: &Value, by: &[char]| {
        let text = text.as_str().unwrap_or_default().replace("RBAC: ", "");
        let mut parts: Vec<String> =
            text.split(by).map(|part| part.trim_matches(['[', ']', ' ']).to_owned()).collect();
        parts.sort();
        parts
    };
    if *code >= 400 {
        return json!([code, body["reason"], sorted(&body["message"], &['\n'])]);
    }
    let status = &body["status"];
    match status["allowed"].as_bool() {
        Some(true) => json!([code, true]),
        Some(false) => json!([code, false, sorted(&status["reason"], &[','])]),
        None => json!([code, status]),
    }
}

/// Waits until the real server's memory, which follows its store by a moment, has seen all roles and bindings: it has when it
/// allows what the last ones of each kind allow.
async fn settled(world: &World) {
    let seen = json!([{"verbs": ["seen"], "apiGroups": [""], "resources": ["pods"]}]);
    let one = format!("{RBAC}/namespaces/one");
    let role = json!({"metadata": {"name": "last"}, "rules": seen});
    let bound = |kind: &str, user: &str| {
        let subject = json!({"kind": "User", "name": user, "apiGroup": GROUP});
        let role = json!({"apiGroup": GROUP, "kind": kind, "name": "last"});
        json!({"metadata": {"name": "last"}, "roleRef": role, "subjects": [subject]})
    };
    for (path, object) in [
        (format!("{RBAC}/clusterroles"), role.clone()),
        (format!("{RBAC}/clusterrolebindings"), bound("ClusterRole", "last of all")),
        (format!("{one}/roles"), role),
        (format!("{one}/rolebindings"), bound("Role", "last of one")),
    ] {
        let (real, ours) = both(world, Method::POST, &path, &[], &object).await;
        assert_eq!((real.0, ours.0), (201, 201), "{object}");
    }
    for user in ["last of all", "last of one"] {
        let request = json!({"verb": "seen", "resource": "pods", "namespace": "one"});
        let spec = json!({"user": user, "resourceAttributes": request});
        let review =
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let allowed = async || {
            ask(&world.real, &Method::POST, REVIEWS, &[], &review).await.1["status"]["allowed"] == true
        };
        let seen = async {
            while !allowed().await {
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(std::time::Duration::from_secs(30), seen).await;
        seen.expect("the real server has seen the roles");
    }
}

#[tokio::test]
async fn the_real_server_lets_the_same_users_do_the_same() {
    let Some(programs) = Programs::find() else {
        return say(&format!(
            "skipped: {PROMISE}: PORTOLAN_KUBE_APISERVER and PORTOLAN_ETCD name no programs"
        ));
    };
    let (seed, requests) = (number("PORTOLAN_SEED", 1), number("PORTOLAN_REQUESTS", 400) as usize);
    let mut dice = Dice(seed);
    let world = World::start(&programs, PLENTY).await;
    for plural in ["clusterroles", "clusterrolebindings", "roles", "rolebindings"] {
        let (real, ours) = both(&world, Method::GET, &format!("{RBAC}/{plural}"), &[], &Value::Null).await;
        let known = |said: &Said| -> BTreeMap<String, Value> {
            let items = said.1["items"].as_array().expect("a list").iter();
            let own = |item: &&Value| {
                !item["metadata"]["name"].as_str().unwrap_or_default().starts_with("portolan:")
            };
            let bare = |item: &Value| {
                let about = &item["metadata"];
                let content =
                    [&about["labels"], &about["annotations"], &item["rules"], &item["aggregationRule"]];
                let content = json!([content, item["roleRef"], item["subjects"]]);
                (format!("{}/{}", about["namespace"], about["name"]), content)
            };
            items.filter(own).map(bare).collect()
        };
        assert_eq!(known(&ours), known(&real), "the {plural} of a new cluster");
    }
    for (path, object) in objects(&mut dice) {
        let (real, ours) = both(&world, Method::POST, &path, &[], &object).await;
        assert_eq!((real.0, ours.0), (201, 201), "{object}: {} {}", real.1, ours.1);
    }
    // Who may write roles, and has something to give.
    let mut base = rules(&mut dice, true);
    let writes = json!({"verbs": ["create"], "apiGroups": [GROUP], "resources": ["roles", "rolebindings", "clusterroles"]});
    base.as_array_mut().expect("rules").push(writes);
    let role = json!({"metadata": {"name": "writer"}, "rules": base});
    let mut bound = binding(&mut dice, "writer", ("ClusterRole", "writer"));
    bound["subjects"] = json!([{"kind": "User", "name": "writer", "apiGroup": GROUP}]);
    for (plural, object) in [("clusterroles", &role), ("clusterrolebindings", &bound)] {
        both(&world, Method::POST, &format!("{RBAC}/{plural}"), &[], object).await;
    }
    settled(&world).await;

    let writer = [
        ("impersonate-user".to_owned(), "writer".to_owned()),
        ("impersonate-group".to_owned(), "g1".to_owned()),
    ];
    let (mut allowed, mut refused, mut differences) = (0, 0, Vec::new());
    for n in 0..requests {
        let (path, headers, body) = match dice.below(10) {
            0 => {
                let role = json!({"metadata": {"name": format!("w{n}")}, "rules": rules(&mut dice, false)});
                (format!("{RBAC}/namespaces/one/roles"), &writer[..], role)
            }
            1 => {
                let mut role =
                    json!({"metadata": {"name": format!("w{n}")}, "rules": rules(&mut dice, true)});
                if dice.percent(20) {
                    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
                }
                (format!("{RBAC}/clusterroles"), &writer[..], role)
            }
            2 => {
                let to = dice.pick(&[
                    ("Role", "r1"),
                    ("ClusterRole", "r2"),
                    ("ClusterRole", "writer"),
                    ("Role", "none"),
                ]);
                let to = if dice.percent(20) { ("ClusterRole", "cluster-admin") } else { to };
                let bound = binding(&mut dice, &format!("w{n}"), to);
                (format!("{RBAC}/namespaces/one/rolebindings"), &writer[..], bound)
            }
            _ => (REVIEWS.to_owned(), &[][..], review(&mut dice)),
        };
        let (real, ours) = both(&world, Method::POST, &path, headers, &body).await;
        allowed += usize::from(real.1["status"]["allowed"] == true);
        refused += usize::from(real.0 >= 400);
        let written = real.0 == 201 && real.1["status"].get("allowed").is_none();
        if if written { real.0 != ours.0 } else { comparable(&real) != comparable(&ours) } {
            differences
                .push(format!("{path} {body}\n  real {} {}\n  ours {} {}", real.0, real.1, ours.0, ours.1));
        }
    }
    say(&format!(
        "access: seed {seed}, {requests} questions, {allowed} allowed, {refused} refused by the real server"
    ));
    assert!(
        differences.is_empty(),
        "{} differ:\n{}",
        differences.len(),
        differences[..differences.len().min(5)].join("\n")
    );
}
