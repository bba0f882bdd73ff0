//! Pods become endpoints, in both shapes.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::DeleteParams;
use portolan_control::Config;
use serde_json::json;

use crate::lab::{Lab, deployment, eventually};

fn service(name: &str, extra: serde_json::Value) -> serde_json::Value {
    let mut spec = json!({
        "selector": { "app": name },
        "ports": [{ "name": "web", "port": 80, "targetPort": "http" }],
    });
    for (field, value) in extra.as_object().expect("fields") {
        spec[field] = value.clone();
    }
    json!({ "metadata": { "name": name, "labels": { "team": "a" } }, "spec": spec })
}

async fn slices(lab: &Lab, service: &str) -> Vec<EndpointSlice> {
    let mut all = lab.list::<EndpointSlice>("n").await;
    all.retain(|slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == service));
    all.sort_by_key(|slice| slice.address_type.clone());
    all
}

/// The ready endpoints of a Service's slices of one family.
fn ready(slices: &[EndpointSlice], family: &str) -> Vec<String> {
    let mut addresses: Vec<String> = slices
        .iter()
        .filter(|slice| slice.address_type == family)
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
        .flat_map(|endpoint| endpoint.addresses.clone())
        .collect();
    addresses.sort();
    addresses
}

#[tokio::test]
async fn a_deployment_becomes_pods_on_all_nodes_and_endpoints_of_both_families() {
    let lab = Lab::with_nodes(Config::default(), 3).await;
    lab.create::<Service>("n", service("web", json!({ "ipFamilyPolicy": "PreferDualStack" }))).await;
    let empty = eventually("a placeholder of each family", || async {
        Some(slices(&lab, "web").await).filter(|slices| slices.len() == 2)
    })
    .await;
    assert!(empty.iter().all(|slice| slice.endpoints.as_deref().unwrap_or_default().is_empty()));
    lab.create::<Deployment>("n", deployment("web", 6, json!({}))).await;
    let full = eventually("six endpoints of each family", || async {
        let slices = slices(&lab, "web").await;
        (ready(&slices, "IPv4").len() == 6 && ready(&slices, "IPv6").len() == 6).then_some(slices)
    })
    .await;
    assert_eq!(full.len(), 2, "the placeholders were filled");
    let port = &full[0].ports.as_ref().expect("ports")[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("web"), Some(8080)));
    assert_eq!(full[0].labels().get("team").map(String::as_str), Some("a"));
    assert_eq!(full[0].owner_references()[0].kind, "Service");
    let mut nodes: Vec<String> =
        lab.list::<Pod>("n").await.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    nodes.sort();
    assert_eq!(nodes, ["node-1", "node-1", "node-2", "node-2", "node-3", "node-3"]);
    let endpoints = eventually("the Endpoints", || async {
        let endpoints = lab.get::<Endpoints>("n", "web").await?;
        let count = endpoints.subsets.as_ref()?.first()?.addresses.as_ref()?.len();
        (count == 6).then_some(endpoints)
    })
    .await;
    assert_eq!(endpoints.subsets.expect("subsets")[0].ports.as_ref().expect("ports")[0].port, 8080);
    // A pod that dies is replaced, in the API and in the slices.
    let victim = lab.list::<Pod>("n").await.remove(0);
    let gone = victim.status.and_then(|status| status.pod_ip).expect("an address");
    lab.delete::<Pod>("n", &victim.metadata.name.expect("a name"), DeleteParams::default()).await;
    eventually("another pod in its place", || async {
        let ready = ready(&slices(&lab, "web").await, "IPv4");
        (ready.len() == 6 && !ready.contains(&gone)).then_some(())
    })
    .await;
    // The Service takes its slices with it.
    lab.delete::<Service>("n", "web", DeleteParams::default()).await;
    eventually("no slices", || async { slices(&lab, "web").await.is_empty().then_some(()) }).await;
    assert!(lab.get::<Endpoints>("n", "web").await.is_none());
}

#[tokio::test]
async fn a_pod_that_is_being_deleted_is_an_endpoint_that_serves_but_is_not_ready() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    lab.create::<Service>("n", service("web", json!({}))).await;
    lab.create::<Pod>(
        "n",
        json!({ "metadata": { "name": "one", "labels": { "app": "web" }, "finalizers": ["lab/hold"] },
            "spec": { "containers": [{ "name": "c", "image": "echo:1",
                "ports": [{ "name": "http", "containerPort": 80 }] }] } }),
    )
    .await;
    eventually("an endpoint", || async {
        (ready(&slices(&lab, "web").await, "IPv4").len() == 1).then_some(())
    })
    .await;
    lab.delete::<Pod>("n", "one", DeleteParams::default()).await;
    eventually("a terminating endpoint", || async {
        let slices = slices(&lab, "web").await;
        let conditions = slices.first()?.endpoints.as_ref()?.first()?.conditions.clone()?;
        (conditions.terminating == Some(true)
            && conditions.serving == Some(true)
            && conditions.ready == Some(false))
        .then_some(())
    })
    .await;
    eventually("no address in the Endpoints", || async {
        lab.get::<Endpoints>("n", "web").await?.subsets.unwrap_or_default().is_empty().then_some(())
    })
    .await;
    lab.patch::<Pod>("n", "one", json!({ "metadata": { "finalizers": null } })).await;
    eventually("the placeholder again", || async {
        let slices = slices(&lab, "web").await;
        (slices.len() == 1 && slices[0].endpoints.as_deref().unwrap_or_default().is_empty()).then_some(())
    })
    .await;
}
