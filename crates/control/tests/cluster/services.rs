//! Pods become endpoints, in both shapes.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Node, Pod, Service};
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
    // The Service takes its slices and its Endpoints with it, in either order: two controllers delete them.
    lab.delete::<Service>("n", "web", DeleteParams::default()).await;
    eventually("no slices", || async { slices(&lab, "web").await.is_empty().then_some(()) }).await;
    eventually("no Endpoints", || async { lab.get::<Endpoints>("n", "web").await.is_none().then_some(()) })
        .await;
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

#[tokio::test]
async fn a_restart_of_the_controllers_changes_nothing() {
    let config = Config {
        pool: vec!["192.0.2.10-192.0.2.11".parse().unwrap()],
        cluster_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        ca_pem: Some("CERTIFICATE".into()),
        ..Config::default()
    };
    let mut lab = Lab::with_nodes(config, 2).await;
    lab.create::<Service>("n", service("web", json!({ "type": "LoadBalancer" }))).await;
    lab.create::<Deployment>("n", deployment("web", 4, json!({}))).await;
    lab.create::<Service>("n", service("idle", json!({ "clusterIP": "None" }))).await;
    let settled = || async {
        let slices = slices(&lab, "web").await;
        let deployment = lab.get::<Deployment>("n", "web").await?;
        let service = lab.get::<Service>("n", "web").await?;
        let given = service.status?.load_balancer?.ingress?.len() == 1;
        let available = deployment.status?.available_replicas == Some(4);
        (ready(&slices, "IPv4").len() == 4 && given && available).then_some(())
    };
    eventually("all to be settled", settled).await;
    // What the controllers still have under way ends with them.
    lab.restart().await;
    probe(&lab, "first").await;
    let before = versions(&lab).await;
    lab.restart().await;
    probe(&lab, "second").await;
    assert_eq!(versions(&lab).await, before);
}

/// A pod that finds its node was placed by controllers that have looked at all that was there before.
async fn probe(lab: &Lab, name: &str) {
    let pod = json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "echo:1" }] } });
    lab.create::<Pod>("default", pod).await;
    eventually("the probe to be placed", || async {
        lab.get::<Pod>("default", name).await?.spec?.node_name.filter(|node| !node.is_empty())
    })
    .await;
}

/// The versions of all objects that controllers write.
async fn versions(lab: &Lab) -> Vec<String> {
    fn of<K: ResourceExt>(objects: Vec<K>) -> impl Iterator<Item = String> {
        objects
            .into_iter()
            .map(|object| format!("{} {}", object.name_any(), object.resource_version().unwrap_or_default()))
    }
    of(lab.list::<EndpointSlice>("n").await)
        .chain(of(lab.list::<Endpoints>("n").await))
        .chain(of(lab.list::<Service>("n").await))
        .chain(of(lab.list::<Deployment>("n").await))
        .chain(of(lab.list::<ReplicaSet>("n").await))
        .chain(of(lab.list::<Pod>("n").await))
        .chain(of(lab.list::<ConfigMap>("n").await))
        .chain(of(lab.list::<Node>("").await))
        .collect()
}
