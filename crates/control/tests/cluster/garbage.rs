//! What goes with what.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams};
use kube::{Client, ResourceExt};
use portolan_control::Config;
use serde_json::{Value, json};

use crate::lab::{Lab, deployment, eventually};

async fn running(lab: &Lab, count: usize) {
    eventually("pods", || async { (lab.list::<Pod>("n").await.len() == count).then_some(()) }).await;
}

#[tokio::test]
async fn a_deployment_takes_its_sets_and_pods_with_it() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        lab.create::<Deployment>("n", deployment("web", 3, json!({}))).await;
        running(&lab, 3).await;
        lab.delete::<Deployment>("n", "web", params).await;
        eventually("nothing left", || async {
            let left = lab.list::<Pod>("n").await.len()
                + lab.list::<ReplicaSet>("n").await.len()
                + lab.list::<Deployment>("n").await.len();
            (left == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn orphans_stay_without_an_owner() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    lab.create::<Deployment>("n", deployment("web", 2, json!({}))).await;
    running(&lab, 2).await;
    lab.delete::<Deployment>("n", "web", DeleteParams::orphan()).await;
    eventually("a set without an owner", || async {
        let sets = lab.list::<ReplicaSet>("n").await;
        let gone = lab.get::<Deployment>("n", "web").await.is_none();
        (gone && sets.len() == 1 && sets[0].owner_references().is_empty()).then_some(())
    })
    .await;
    assert_eq!(lab.list::<Pod>("n").await.len(), 2);
}

#[tokio::test]
async fn an_object_whose_owner_never_was_goes() {
    let lab = Lab::new(Config::default()).await;
    let owned = |name: &str, owner: &ConfigMap, uid: &str| {
        json!({ "metadata": { "name": name, "ownerReferences": [
            { "apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": uid }] } })
    };
    let owner = lab.create::<ConfigMap>("n", json!({ "metadata": { "name": "owner" } })).await;
    lab.create::<ConfigMap>("n", owned("kept", &owner, &owner.uid().expect("a uid"))).await;
    // The name is right, but it was another object's.
    lab.create::<ConfigMap>("n", owned("lost", &owner, "00000000-0000-0000-0000-000000000000")).await;
    eventually("the lost one to go", || async {
        lab.get::<ConfigMap>("n", "lost").await.is_none().then_some(())
    })
    .await;
    assert!(lab.get::<ConfigMap>("n", "kept").await.is_some());
}

#[tokio::test]
async fn a_namespace_begins_with_an_account_and_a_certificate_and_ends_empty() {
    let config = Config { ca_pem: Some("CERTIFICATE".into()), ..Config::default() };
    let lab = Lab::with_nodes(config, 1).await;
    let map =
        eventually("the certificate", || async { lab.get::<ConfigMap>("n", "kube-root-ca.crt").await }).await;
    assert_eq!(map.data.expect("data")["ca.crt"], "CERTIFICATE");
    eventually("the account", || async { lab.get::<ServiceAccount>("n", "default").await }).await;
    lab.delete::<ConfigMap>("n", "kube-root-ca.crt", DeleteParams::default()).await;
    eventually("the certificate again", || async { lab.get::<ConfigMap>("n", "kube-root-ca.crt").await })
        .await;
    lab.create::<Deployment>("n", deployment("web", 3, json!({}))).await;
    lab.create::<Service>(
        "n",
        json!({ "metadata": { "name": "web" }, "spec": {
        "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80 }] } }),
    )
    .await;
    running(&lab, 3).await;
    lab.delete::<Namespace>("", "n", DeleteParams::default()).await;
    eventually("the namespace to go", || async {
        lab.get::<Namespace>("", "n").await.is_none().then_some(())
    })
    .await;
    let left = [
        lab.list::<Pod>("n").await.len(),
        lab.list::<EndpointSlice>("n").await.len(),
        lab.list::<Service>("n").await.len(),
        lab.list::<ConfigMap>("n").await.len(),
        lab.list::<Event>("n").await.len(),
    ];
    assert_eq!(left, [0; 5]);
}

/// The objects of a kind that the lab's clients may define.
fn dynamic(client: &Client, group: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let of = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &of),
        None => Api::all_with(client.clone(), &of),
    }
}

async fn make(api: &Api<DynamicObject>, object: Value) -> DynamicObject {
    let object = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("it is made")
}

#[tokio::test]
async fn kinds_that_clients_define_own_and_are_owned_and_go_with_their_namespace() {
    let lab = Lab::new(Config::default()).await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    make(&dynamic(&lab.client, "apiextensions.k8s.io", "CustomResourceDefinition", None), definition).await;
    let widgets = dynamic(&lab.client, "example.com", "Widget", Some("n"));
    let widget = |name: &str, owners: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name, "ownerReferences": owners}});
    let owner = make(&widgets, widget("owner", json!([]))).await;
    let owned =
        json!([{"apiVersion": "example.com/v1", "kind": "Widget", "name": "owner", "uid": owner.uid()}]);
    make(&widgets, widget("owned", owned.clone())).await;
    let map = json!({"metadata": {"name": "owned", "ownerReferences": owned}});
    lab.create::<ConfigMap>("n", map).await;
    widgets.delete("owner", &DeleteParams::background()).await.expect("it goes");
    eventually("what it owns to go", || async {
        let left = widgets.get_opt("owned").await.expect("an answer");
        (left.is_none() && lab.get::<ConfigMap>("n", "owned").await.is_none()).then_some(())
    })
    .await;
    make(&widgets, widget("last", json!([]))).await;
    lab.delete::<Namespace>("", "n", DeleteParams::default()).await;
    eventually("the namespace to go", || async {
        lab.get::<Namespace>("", "n").await.is_none().then_some(())
    })
    .await;
    assert!(widgets.get_opt("last").await.expect("an answer").is_none());
}
