//! What goes with what.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::DeleteParams;
use portolan_control::Config;
use serde_json::json;

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
