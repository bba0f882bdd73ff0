//! Watching through the protocol.

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn a_watcher_sees_each_change_once_in_order_and_resumes() {
    let server = server().await;
    let start = version(&get(&server, &core("configmaps")).await.body);
    let path = format!("{}?watch=true&resourceVersion={start}", core("configmaps"));
    let mut watch = Watch::open(&server, &path).await;
    let made = post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await.body;
    patch(&server, &core("configmaps/a"), "merge", &json!({"data": {"k": "v"}})).await;
    post(&server, &core("services"), &service("other", "ClusterIP")).await;
    delete(&server, &core("configmaps/a"), &Value::Null).await;
    let mut seen = Vec::new();
    let mut last = 0;
    for _ in 0..3 {
        let event = watch.next().await.expect("an event");
        let at: u64 = version(&event["object"]).parse().expect("a decimal version");
        assert!(at > last, "versions grow");
        last = at;
        seen.push(event["type"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(seen, ["ADDED", "MODIFIED", "DELETED"]);

    let mut resumed = Watch::open(
        &server,
        &format!("{}?watch=true&resourceVersion={}", core("configmaps"), version(&made)),
    )
    .await;
    assert_eq!(resumed.brief().await, "MODIFIED a");
    assert_eq!(resumed.brief().await, "DELETED a");
}

#[tokio::test]
async fn a_watch_from_nothing_begins_with_what_there_is() {
    let server = server().await;
    post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await;
    for path in ["?watch=true", "?watch=true&resourceVersion=0"] {
        let mut watch = Watch::open(&server, &format!("{}{path}", core("configmaps"))).await;
        assert_eq!(watch.brief().await, "ADDED a");
    }
}

#[tokio::test]
async fn initial_events_end_with_their_bookmark() {
    let server = server().await;
    post(&server, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await;
    let path = format!(
        "{}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
        core("configmaps")
    );
    let mut watch = Watch::open(&server, &path).await;
    assert_eq!(watch.brief().await, "ADDED a");
    let end = watch.next().await.expect("a bookmark");
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(end["object"]["kind"], "ConfigMap");
    post(&server, &core("configmaps"), &configmap("b", &json!({}), &json!({}))).await;
    let next = watch.next().await.expect("an event");
    assert_eq!(next["object"]["metadata"]["name"], "b");
    assert!(version(&next["object"]).parse::<u64>().ok() > version(&end["object"]).parse().ok());
    let wrong = format!("{}?watch=true&sendInitialEvents=true", core("configmaps"));
    assert_eq!(get(&server, &wrong).await.code, 422);
}

#[tokio::test]
async fn an_object_that_begins_to_match_is_added_and_one_that_ceases_is_deleted() {
    let server = server().await;
    post(&server, &core("configmaps"), &configmap("a", &json!({"app": "x"}), &json!({}))).await;
    let mut watch =
        Watch::open(&server, &format!("{}?watch=true&labelSelector=app%3Dy", core("configmaps"))).await;
    let label = |app: &'static str| json!({"metadata": {"labels": {"app": app}}});
    patch(&server, &core("configmaps/a"), "merge", &label("y")).await;
    assert_eq!(watch.brief().await, "ADDED a");
    patch(&server, &core("configmaps/a"), "merge", &json!({"data": {"k": "v"}})).await;
    assert_eq!(watch.brief().await, "MODIFIED a");
    let last = patch(&server, &core("configmaps/a"), "merge", &label("z")).await.body;
    let gone = watch.next().await.expect("an event");
    assert_eq!(
        (&gone["type"], &gone["object"]["metadata"]["labels"]["app"]),
        (&json!("DELETED"), &json!("y"))
    );
    assert_eq!(version(&gone["object"]), version(&last));
    delete(&server, &core("configmaps/a"), &Value::Null).await;
    post(&server, &core("configmaps"), &configmap("b", &json!({"app": "y"}), &json!({}))).await;
    assert_eq!(watch.brief().await, "ADDED b", "what didn't match goes unseen");
}

#[tokio::test]
async fn a_field_selector_watches_one_node() {
    let server = server().await;
    let mut watch = Watch::open(&server, "/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dn1").await;
    post(&server, &core("pods"), &pod("p", "")).await;
    let binding =
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": "n1"}});
    post(&server, &core("pods/p/binding"), &binding).await;
    assert_eq!(watch.brief().await, "ADDED p");
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_is_told_so() {
    let store = portolan_store::embedded::Embedded::in_memory();
    let first = over(store.clone()).await;
    let made = post(&first, &core("configmaps"), &configmap("a", &json!({}), &json!({}))).await.body;
    post(&first, &core("configmaps"), &configmap("b", &json!({}), &json!({}))).await;
    use portolan_store::Store as _;
    store.compact(store.revision().await.expect("a revision")).await.expect("compaction");
    // A server that starts now has never seen what was compacted away.
    let second = over(store).await;
    let path = format!("{}?watch=true&resourceVersion={}", core("configmaps"), version(&made));
    let mut late = Watch::open(&second, &path).await;
    let told = late.next().await.expect("an event");
    assert_eq!(
        (&told["type"], &told["object"]["code"], &told["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(late.next().await, None);
    // A revision of another history: the same.
    let mut early =
        Watch::open(&second, &format!("{}?watch=true&resourceVersion=99999", core("configmaps"))).await;
    assert_eq!(early.next().await.expect("an event")["object"]["code"], 410);
}

#[tokio::test]
async fn a_watch_ends_after_its_time_with_a_bookmark() {
    let server = server().await;
    let path = format!("{}?watch=true&timeoutSeconds=1&allowWatchBookmarks=true", core("configmaps"));
    let mut watch = Watch::open(&server, &path).await;
    assert_eq!(watch.brief().await, "BOOKMARK");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_of_tables_names_its_columns_once() {
    let server = server().await;
    let path = format!("{}?watch=true", core("services"));
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut watch = Watch::open_as(&server, &path, accept).await;
    let first = watch.next().await.expect("an event");
    assert_eq!(
        (&first["object"]["kind"], &first["object"]["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("kubernetes"))
    );
    assert!(first["object"]["columnDefinitions"].as_array().is_some_and(|columns| !columns.is_empty()));
    post(&server, &core("services"), &service("web", "ClusterIP")).await;
    let second = watch.next().await.expect("an event");
    assert_eq!(second["object"]["rows"][0]["cells"][0], "web");
    assert_eq!(second["object"]["columnDefinitions"], Value::Null);
}

#[tokio::test]
async fn kube_s_client_and_watcher_work_without_a_socket() {
    let server = server().await;
    let api: Api<ConfigMap> = configmaps(&server);
    let meta = |name: &str| ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    api.create(&PostParams::default(), &ConfigMap { metadata: meta("a"), ..ConfigMap::default() })
        .await
        .expect("created");
    for streaming in [false, true] {
        let mut config = kube::runtime::watcher::Config::default();
        if streaming {
            config = config.streaming_lists();
        }
        let stream = kube::runtime::watcher(api.clone(), config).applied_objects();
        let mut stream = std::pin::pin!(stream);
        let first = stream.try_next().await.expect("no error").expect("an object");
        assert_eq!(first.metadata.name.as_deref(), Some("a"));
        let change = json!({"data": {"streaming": streaming.to_string()}});
        api.patch("a", &PatchParams::default(), &Patch::Merge(change)).await.expect("patched");
        let next = stream.try_next().await.expect("no error").expect("an object");
        assert_eq!(next.data.expect("data")["streaming"], streaming.to_string());
    }
    let names = api.list_metadata(&kube::api::ListParams::default()).await.expect("metadata").items;
    assert_eq!(names.iter().filter_map(|item| item.metadata.name.as_deref()).collect::<Vec<_>>(), ["a"]);
    let partial: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client(&server), "default");
    let stream = kube::runtime::watcher(partial, Default::default()).applied_objects();
    let first = std::pin::pin!(stream).try_next().await.expect("no error").expect("an object");
    assert_eq!(first.metadata.name.as_deref(), Some("a"));
    let missing = api.get("nothing").await.expect_err("absent");
    assert!(matches!(missing, kube::Error::Api(status) if status.code == 404));
}

#[tokio::test]
async fn a_restart_keeps_objects_and_revisions_and_watchers_resume() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("store.redb");
    let open =
        || portolan_store::embedded::Embedded::open(&file, Default::default()).expect("the store opens");
    let store = open();
    let first = over(store.clone()).await;
    let a = post(&first, &core("configmaps"), &configmap("a", &json!({}), &json!({"k": "1"}))).await.body;
    let b = post(&first, &core("services"), &service("b", "NodePort")).await.body;
    let changed = patch(&first, &core("configmaps/a"), "merge", &json!({"data": {"k": "2"}})).await.body;
    first.close();
    drop(first);
    store.close().await;
    drop(store);

    let second = over(open()).await;
    assert_eq!(get(&second, &core("configmaps/a")).await.body, changed);
    assert_eq!(get(&second, &core("services/b")).await.body, b);
    let path = format!("{}?watch=true&resourceVersion={}", core("configmaps"), version(&a));
    let mut watch = Watch::open(&second, &path).await;
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]), (&json!("MODIFIED"), &changed));
    // The claims are where the Services are.
    let mut rival = service("c", "NodePort");
    rival["spec"]["ports"][0]["nodePort"] = b["spec"]["ports"][0]["nodePort"].clone();
    assert_eq!(post(&second, &core("services"), &rival).await.code, 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_come_and_go_amid_writers_miss_nothing_and_see_nothing_twice() {
    let server = server().await;
    let start = version(&get(&server, &core("configmaps")).await.body);
    const WRITERS: u64 = 4;
    const ROUNDS: u64 = 60;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let server = server.clone();
            tokio::spawn(async move {
                let mut written = Vec::new();
                for round in 0..ROUNDS {
                    // Each writer has its own name, made, changed twice and deleted in turn.
                    let (path, name) = (core(&format!("configmaps/w{writer}")), format!("w{writer}"));
                    let change = json!({"data": {"round": round.to_string()}});
                    let answer = match round % 4 {
                        0 => {
                            post(&server, &core("configmaps"), &configmap(&name, &json!({}), &json!({})))
                                .await
                        }
                        1 | 2 => patch(&server, &path, "merge", &change).await,
                        _ => delete(&server, &path, &Value::Null).await,
                    };
                    assert!(answer.code.is_success(), "{}", answer.text);
                    written.push(["ADDED", "MODIFIED", "MODIFIED", "DELETED"][(round % 4) as usize]);
                }
                written
            })
        })
        .collect();

    let mut seen = vec![Vec::new(); WRITERS as usize];
    let (mut last, mut count) = (start, 0);
    while count < WRITERS * ROUNDS {
        let path = format!("{}?watch=true&resourceVersion={last}", core("configmaps"));
        let mut watch = Watch::open(&server, &path).await;
        for _ in 0..7.min(WRITERS * ROUNDS - count) {
            let event = watch.next().await.expect("an event");
            let at: u64 = version(&event["object"]).parse().expect("a decimal version");
            assert!(at > last.parse().expect("a decimal version"), "each change once, in order");
            last = at.to_string();
            let name = event["object"]["metadata"]["name"].as_str().expect("a name");
            let writer: usize = name[1..].parse().expect("a writer");
            seen[writer].push(event["type"].as_str().expect("a type").to_owned());
            count += 1;
        }
    }
    for (writer, seen) in writers.into_iter().zip(seen) {
        assert_eq!(seen, writer.await.expect("joined"));
    }
}
