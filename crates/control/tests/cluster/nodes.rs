//! Nodes that come, fall silent, return and go.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::DeleteParams;
use portolan_control::Config;
use serde_json::json;

use crate::lab::{Lab, deployment, eventually};

fn taints(node: &Node) -> Vec<String> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
}

fn ready(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.clone())
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

#[tokio::test]
async fn each_node_gets_ranges_of_its_own() {
    let config = Config {
        cluster_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()],
        ..Config::default()
    };
    let lab = Lab::with_nodes(config, 3).await;
    let mut ranges = eventually("ranges of all nodes", || async {
        let nodes = lab.list::<Node>("").await;
        let ranges: Vec<String> =
            nodes.iter().filter_map(|node| node.spec.as_ref()?.pod_cidrs.clone()).flatten().collect();
        (ranges.len() == 6).then_some(ranges)
    })
    .await;
    ranges.sort();
    assert_eq!(
        ranges,
        ["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24", "fd00:1:0:1::/64", "fd00:1:0:2::/64", "fd00:1::/64"]
    );
}

#[tokio::test]
async fn a_silent_node_is_avoided_and_trusted_again_when_it_is_back() {
    let config = Config { lease_grace: Duration::from_secs(2), ..Config::default() };
    let mut lab = Lab::new(config).await;
    lab.node("node-1", true).await;
    let heart = lab.node("node-2", true).await;
    lab.create::<Deployment>("n", deployment("web", 4, json!({}))).await;
    eventually("four ready pods", || async {
        (lab.list::<Pod>("n").await.iter().filter(|pod| is_ready(pod)).count() == 4).then_some(())
    })
    .await;
    heart.stop();
    let node = eventually("the node to be unknown and tainted", || async {
        let node = lab.get::<Node>("", "node-2").await?;
        (ready(&node).as_deref() == Some("Unknown") && taints(&node).len() == 2).then_some(node)
    })
    .await;
    assert!(taints(&node).contains(&"node.kubernetes.io/unreachable:NoExecute".to_owned()));
    eventually("its pods to be unready", || async {
        let pods = lab.list::<Pod>("n").await;
        let on = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("node-2");
        let (lost, well): (Vec<_>, Vec<_>) = pods.iter().partition(|pod| on(pod));
        (lost.len() == 2 && lost.iter().all(|pod| !is_ready(pod)) && well.iter().all(|pod| is_ready(pod)))
            .then_some(())
    })
    .await;
    // New pods avoid it.
    lab.patch::<Deployment>("n", "web", json!({ "spec": { "replicas": 6 } })).await;
    eventually("two more pods on the other node", || async {
        let pods = lab.list::<Pod>("n").await;
        let there = pods
            .iter()
            .filter(|pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some("node-1"));
        (there.count() == 4).then_some(())
    })
    .await;
    lab.revive("node-2").await;
    eventually("the taints to go", || async {
        let node = lab.get::<Node>("", "node-2").await?;
        (ready(&node).as_deref() == Some("True") && taints(&node).is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_pods_of_a_removed_node_are_removed_and_replaced() {
    let mut lab = Lab::new(Config::default()).await;
    lab.node("node-1", true).await;
    let heart = lab.node("node-2", true).await;
    lab.create::<Deployment>("n", deployment("web", 2, json!({}))).await;
    eventually("two ready pods", || async {
        (lab.list::<Pod>("n").await.iter().filter(|pod| is_ready(pod)).count() == 2).then_some(())
    })
    .await;
    heart.stop();
    lab.delete::<Node>("", "node-2", DeleteParams::default()).await;
    eventually("all pods on the other node", || async {
        let pods = lab.list::<Pod>("n").await;
        let there = pods
            .iter()
            .filter(|pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some("node-1"));
        (there.count() == 2 && pods.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_and_goes_when_there_is_room() {
    let mut lab = Lab::new(Config::default()).await;
    lab.create::<Pod>(
        "n",
        json!({ "metadata": { "name": "picky" }, "spec": { "nodeSelector": { "kubernetes.io/hostname": "node-7" },
            "containers": [{ "name": "c", "image": "echo:1" }] } }),
    )
    .await;
    lab.node("node-1", true).await;
    eventually("the reason", || async {
        let pod = lab.get::<Pod>("n", "picky").await?;
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let message =
            conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?.message.clone()?;
        message.contains("didn't match Pod's node affinity/selector").then_some(())
    })
    .await;
    lab.node("node-7", true).await;
    eventually("its node", || async {
        let pod = lab.get::<Pod>("n", "picky").await?;
        (pod.spec.as_ref()?.node_name.as_deref() == Some("node-7")).then_some(())
    })
    .await;
    assert_eq!(lab.get::<Pod>("n", "picky").await.map(|pod| pod.name_any()), Some("picky".to_owned()));
}

#[tokio::test]
async fn the_pods_of_a_silent_node_are_replaced_when_their_patience_ends() {
    let config = Config { lease_grace: Duration::from_secs(2), ..Config::default() };
    let mut lab = Lab::new(config).await;
    lab.node("node-1", true).await;
    let heart = lab.node("node-2", true).await;
    // What a pod says of its patience counts; to one that says nothing the server gives five minutes.
    let mut web = deployment("web", 2, json!({}));
    web["spec"]["template"]["spec"]["tolerations"] = ["not-ready", "unreachable"]
        .map(|fault| {
            json!({ "key": format!("node.kubernetes.io/{fault}"), "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 0 })
        })
        .to_vec()
        .into();
    lab.create::<Deployment>("n", web).await;
    eventually("two ready pods", || async {
        (lab.list::<Pod>("n").await.iter().filter(|pod| is_ready(pod)).count() == 2).then_some(())
    })
    .await;
    heart.stop();
    eventually("all pods on the other node", || async {
        let pods = lab.list::<Pod>("n").await;
        let there = pods
            .iter()
            .filter(|pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some("node-1"));
        (there.count() == 2 && pods.len() == 2).then_some(())
    })
    .await;
}
