//! Load-balancer addresses.

use k8s_openapi::api::core::v1::{Event, Service};
use kube::ResourceExt;
use kube::api::DeleteParams;
use portolan_control::Config;
use serde_json::json;

use crate::lab::{Lab, eventually};

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

fn addresses(service: &Service) -> Vec<String> {
    let ingress = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|status| status.ingress.clone())
        .unwrap_or_default();
    assert!(ingress.iter().all(|ingress| ingress.ip_mode.as_deref() == Some("VIP")));
    ingress.into_iter().filter_map(|ingress| ingress.ip).collect()
}

async fn balanced(lab: &Lab, name: &str) {
    lab.create::<Service>(
        "n",
        json!({ "metadata": { "name": name }, "spec": {
        "type": "LoadBalancer", "ports": [{ "port": 80 }] } }),
    )
    .await;
}

async fn address(lab: &Lab, name: &str) -> String {
    eventually("an address", || async {
        let service = lab.get::<Service>("n", name).await?;
        assert!(addresses(&service).is_empty() || service.finalizers().contains(&FINALIZER.to_owned()));
        addresses(&service).into_iter().next()
    })
    .await
}

#[tokio::test]
async fn an_address_is_given_once_and_passed_on_when_it_is_free() {
    let config = Config { pool: vec!["192.0.2.10-192.0.2.11".parse().unwrap()], ..Config::default() };
    let lab = Lab::new(config).await;
    balanced(&lab, "a").await;
    assert_eq!(address(&lab, "a").await, "192.0.2.10");
    balanced(&lab, "b").await;
    assert_eq!(address(&lab, "b").await, "192.0.2.11");
    balanced(&lab, "c").await;
    eventually("the reason why there is none", || async {
        let events = lab.list::<Event>("n").await;
        let event = events.iter().find(|event| event.reason.as_deref() == Some("SyncLoadBalancerFailed"))?;
        event.message.as_deref()?.contains("add a range (--pool)").then_some(())
    })
    .await;
    lab.delete::<Service>("n", "a", DeleteParams::default()).await;
    assert_eq!(address(&lab, "c").await, "192.0.2.10");
    assert!(lab.get::<Service>("n", "a").await.is_none());
    // A Service that is no load balancer any more gives its address back.
    lab.patch::<Service>("n", "b", json!({ "spec": { "type": "ClusterIP" } })).await;
    eventually("b without address and finalizer", || async {
        let service = lab.get::<Service>("n", "b").await?;
        (addresses(&service).is_empty() && service.finalizers().is_empty()).then_some(())
    })
    .await;
    balanced(&lab, "d").await;
    assert_eq!(address(&lab, "d").await, "192.0.2.11");
}
