//! Deployments: rollouts, scaling, history.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::DeleteParams;
use portolan_control::Config;
use serde_json::{Value, json};

use crate::lab::{Lab, deployment, eventually};

/// What `kubectl rollout status` waits for.
async fn rolled_out(lab: &Lab, name: &str, replicas: i32) -> Deployment {
    eventually("the rollout", || async {
        let deployment = lab.get::<Deployment>("n", name).await?;
        let status = deployment.status.as_ref()?;
        let done = status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == Some(replicas)
            && status.replicas == Some(replicas)
            && status.available_replicas == Some(replicas);
        done.then_some(deployment)
    })
    .await
}

fn image(name: &str) -> Value {
    json!({ "spec": { "template": { "spec": { "containers": [{ "name": "main", "image": name,
        "ports": [{ "name": "http", "containerPort": 8080 }] }] } } } })
}

fn revision(annotated: &impl ResourceExt) -> Option<&str> {
    annotated.annotations().get("deployment.kubernetes.io/revision").map(String::as_str)
}

fn is_available(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
}

#[tokio::test]
async fn a_rolling_update_keeps_its_bounds_and_counts_its_revisions() {
    let lab = Lab::with_nodes(Config::default(), 2).await;
    let strategy =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
    lab.create::<Deployment>("n", deployment("web", 4, strategy)).await;
    let first = rolled_out(&lab, "web", 4).await;
    assert_eq!(revision(&first), Some("1"));
    lab.patch::<Deployment>("n", "web", image("echo:2")).await;
    let second = eventually("the rollout", || async {
        let pods = lab.list::<Pod>("n").await;
        let available = pods.iter().filter(|pod| is_available(pod)).count();
        let active = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
        assert!(available >= 4, "only {available} available");
        assert!(active <= 5, "{active} pods at once");
        let deployment = lab.get::<Deployment>("n", "web").await?;
        let status = deployment.status.as_ref()?;
        (status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == Some(4)
            && status.replicas == Some(4)
            && status.available_replicas == Some(4))
        .then_some(deployment)
    })
    .await;
    assert_eq!(revision(&second), Some("2"));
    let conditions = second.status.and_then(|status| status.conditions).expect("conditions");
    let reason = |name: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == name)
            .and_then(|condition| condition.reason.clone())
    };
    assert_eq!(reason("Available").as_deref(), Some("MinimumReplicasAvailable"));
    assert_eq!(reason("Progressing").as_deref(), Some("NewReplicaSetAvailable"));
    // Back to the first template: its set grows again and bears a new number.
    lab.patch::<Deployment>("n", "web", image("echo:1")).await;
    let third = rolled_out(&lab, "web", 4).await;
    assert_eq!(revision(&third), Some("3"));
    let mut sets = lab.list::<ReplicaSet>("n").await;
    sets.sort_by_key(|set| revision(set).map(str::to_owned));
    let numbers: Vec<_> = sets
        .iter()
        .map(|set| (revision(set).unwrap_or_default(), set.spec.as_ref().and_then(|spec| spec.replicas)))
        .collect();
    assert_eq!(numbers, [("2", Some(0)), ("3", Some(4))]);
    assert_eq!(sets[1].annotations()["deployment.kubernetes.io/revision-history"], "1");
    eventually("events about scaling", || async {
        let events = lab.list::<Event>("n").await;
        let scaled = events.iter().filter(|event| event.reason.as_deref() == Some("ScalingReplicaSet"));
        (scaled.count() > 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn scaling_follows_the_number_and_recreate_ends_the_old_before_the_new() {
    let lab = Lab::with_nodes(Config::default(), 2).await;
    lab.create::<Deployment>("n", deployment("web", 2, json!({ "type": "Recreate" }))).await;
    rolled_out(&lab, "web", 2).await;
    lab.patch::<Deployment>("n", "web", json!({ "spec": { "replicas": 5 } })).await;
    rolled_out(&lab, "web", 5).await;
    lab.patch::<Deployment>("n", "web", json!({ "spec": { "replicas": 1 } })).await;
    rolled_out(&lab, "web", 1).await;
    eventually("the pods that are too many to go", || async {
        (lab.list::<Pod>("n").await.len() == 1).then_some(())
    })
    .await;
    lab.patch::<Deployment>("n", "web", image("echo:2")).await;
    eventually("the new pod", || async {
        let pods = lab.list::<Pod>("n").await;
        assert!(pods.len() <= 1, "the old and the new pod at once");
        let image = pods.first()?.spec.as_ref()?.containers.first()?.image.clone()?;
        (image == "echo:2").then_some(())
    })
    .await;
    rolled_out(&lab, "web", 1).await;
    lab.patch::<Deployment>("n", "web", json!({ "spec": { "replicas": 0 } })).await;
    eventually("no pods", || async { lab.list::<Pod>("n").await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_paused_deployment_waits_and_a_stuck_one_says_so() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    lab.create::<Deployment>("n", deployment("web", 2, json!({}))).await;
    rolled_out(&lab, "web", 2).await;
    lab.patch::<Deployment>("n", "web", json!({ "spec": { "paused": true } })).await;
    lab.patch::<Deployment>("n", "web", image("echo:2")).await;
    eventually("the pause to be seen", || async {
        let deployment = lab.get::<Deployment>("n", "web").await?;
        let status = deployment.status.as_ref()?;
        let paused = status.conditions.as_ref()?.iter().any(|condition| {
            condition.type_ == "Progressing" && condition.reason.as_deref() == Some("DeploymentPaused")
        });
        (paused && status.observed_generation == deployment.metadata.generation).then_some(())
    })
    .await;
    assert_eq!(lab.list::<ReplicaSet>("n").await.len(), 1);
    // Its new pods never become ready.
    let mut stuck = image("echo:3");
    stuck["spec"]["paused"] = false.into();
    stuck["spec"]["progressDeadlineSeconds"] = 1.into();
    stuck["spec"]["template"]["metadata"]["annotations"] = json!({ "lab/stuck": "yes" });
    lab.patch::<Deployment>("n", "web", stuck).await;
    eventually("the deadline", || async {
        let deployment = lab.get::<Deployment>("n", "web").await?;
        let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .any(|condition| condition.reason.as_deref() == Some("ProgressDeadlineExceeded"))
            .then_some(())
    })
    .await;
    let available = lab.list::<Pod>("n").await.iter().filter(|pod| is_available(pod)).count();
    assert_eq!(available, 2, "the old pods serve on");
}

#[tokio::test]
async fn old_sets_go_when_the_history_is_full() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    let mut small = deployment("web", 1, json!({}));
    small["spec"]["revisionHistoryLimit"] = 1.into();
    lab.create::<Deployment>("n", small).await;
    rolled_out(&lab, "web", 1).await;
    for number in 2..5 {
        lab.patch::<Deployment>("n", "web", image(&format!("echo:{number}"))).await;
        rolled_out(&lab, "web", 1).await;
    }
    eventually("one old set", || async { (lab.list::<ReplicaSet>("n").await.len() == 2).then_some(()) })
        .await;
}

#[tokio::test]
async fn pods_are_adopted_and_released_by_their_labels() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    let pod = json!({ "metadata": { "name": "stray", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c", "image": "echo:1" }] } });
    lab.create::<Pod>("n", pod).await;
    let template = deployment("web", 1, json!({}))["spec"]["template"].clone();
    lab.create::<ReplicaSet>(
        "n",
        json!({ "metadata": { "name": "web" }, "spec": {
        "replicas": 1, "selector": { "matchLabels": { "app": "web" } }, "template": template } }),
    )
    .await;
    eventually("the adoption", || async {
        let stray = lab.get::<Pod>("n", "stray").await?;
        (!stray.owner_references().is_empty()).then_some(())
    })
    .await;
    assert_eq!(lab.list::<Pod>("n").await.len(), 1);
    lab.patch::<Pod>("n", "stray", json!({ "metadata": { "labels": { "app": "other" } } })).await;
    eventually("a replacement, and the stray one free", || async {
        let stray = lab.get::<Pod>("n", "stray").await?;
        (stray.owner_references().is_empty() && lab.list::<Pod>("n").await.len() == 2).then_some(())
    })
    .await;
    lab.delete::<ReplicaSet>("n", "web", DeleteParams::default()).await;
    eventually("only the stray one", || async { (lab.list::<Pod>("n").await.len() == 1).then_some(()) })
        .await;
}
