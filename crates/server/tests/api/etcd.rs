//! Two servers on one etcd: neither has anything that the other doesn't see.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use portolan_server::Server;
use portolan_store::etcd::{Etcd, Options};
use serde_json::json;

use crate::differential::Member;
use crate::support::*;

const PROMISE: &str = "two servers on one etcd act as one";

async fn server_on(member: &Member) -> Arc<Server> {
    let store = Etcd::open(Options::new(vec![member.url()])).await.expect("etcd answers");
    over(store).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_etcd_act_as_one() {
    let Some(program) = std::env::var_os("PORTOLAN_ETCD").map(PathBuf::from) else {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "skipped: {PROMISE}: PORTOLAN_ETCD names no program");
        return;
    };
    let member = Member::start(&program);
    let (one, two) = (server_on(&member).await, server_on(&member).await);

    // What one writes the other's watchers hear, and its readers see at once.
    let mut watch = Watch::open(&two, &format!("{}?watch=true&resourceVersion=0", core("configmaps"))).await;
    let made = post(&one, &core("configmaps"), &configmap("a", &json!({}), &json!({"k": "1"}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(watch.brief().await, "ADDED a");
    assert_eq!(get(&two, &core("configmaps/a")).await.body["data"]["k"], "1");
    assert_eq!(get(&two, &core("configmaps")).await.body["items"].as_array().map(Vec::len), Some(1));

    // A version that the other has outdated is outdated.
    let mut newer = made.body.clone();
    newer["data"]["k"] = "2".into();
    assert_eq!(put(&two, &core("configmaps/a"), &newer).await.code, 200);
    assert_eq!(put(&one, &core("configmaps/a"), &newer).await.code, 409);
    assert_eq!(watch.brief().await, "MODIFIED a");

    // No address and no port is given twice.
    let creates = (0..20).map(|n| {
        let server = if n % 2 == 0 { one.clone() } else { two.clone() };
        async move { post(&server, &core("services"), &service(&format!("s{n}"), "NodePort")).await }
    });
    let made = futures_util::future::join_all(creates).await;
    let field = |path: &'static str| -> BTreeSet<String> {
        made.iter().map(|made| made.body.pointer(path).expect("allocated").to_string()).collect()
    };
    assert_eq!((field("/spec/clusterIP").len(), field("/spec/ports/0/nodePort").len()), (20, 20));
    let rival = json!({"spec": {"clusterIP": made[0].body["spec"]["clusterIP"]}});
    let mut rival_service = service("rival", "ClusterIP");
    rival_service["spec"]["clusterIP"] = rival["spec"]["clusterIP"].clone();
    assert_eq!(post(&two, &core("services"), &rival_service).await.code, 422, "the other gave it");

    // One goes, the other goes on; a third finds everything.
    drop(one);
    assert_eq!(delete(&two, &core("configmaps/a"), &json!({})).await.code, 200);
    assert_eq!(watch.brief().await, "DELETED a");
    let three = server_on(&member).await;
    assert_eq!(get(&three, &core("services")).await.body["items"].as_array().map(Vec::len), Some(21));
    assert_eq!(get(&three, &core("configmaps/a")).await.code, 404);
}
