//! Of several that could run the controllers, one does.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use portolan_control::Config;
use portolan_server::Identity;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::lab::{Lab, eventually};

fn candidate(lab: &Lab, name: &str, stop: &CancellationToken) -> JoinHandle<anyhow::Result<()>> {
    let client = Client::new(lab.server.service(Identity::new(name, &["system:masters"])), "default");
    tokio::spawn(portolan_control::run_elected(client, Config::default(), name.to_owned(), stop.clone()))
}

async fn holder(lab: &Lab, name: &str) {
    eventually("the Lease to change hands", || async {
        let lease = lab.get::<Lease>("kube-system", "portolan-controllers").await?;
        (lease.spec?.holder_identity? == name).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_runs_the_controllers_and_another_takes_over_when_it_leaves_or_dies() {
    let mut lab = Lab::new(Config::default()).await;
    lab.end_controllers().await;
    let [leaves, dies, stays] = [(); 3].map(|()| CancellationToken::new());
    let first = candidate(&lab, "one", &leaves);
    holder(&lab, "one").await;

    // The others stand by: a set is filled once.
    let second = candidate(&lab, "two", &dies);
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "echo"}]}}}});
    lab.create::<ReplicaSet>("n", set).await;
    let pods = async |wanted: usize| {
        eventually("its pods", || async {
            let set = lab.get::<ReplicaSet>("n", "web").await?;
            (usize::try_from(set.status?.replicas).ok()? == wanted).then_some(())
        })
        .await;
        assert_eq!(lab.list::<Pod>("n").await.len(), wanted);
    };
    pods(3).await;

    // Who is told to end leaves the Lease to the next at once.
    leaves.cancel();
    first.await.expect("it ends").expect("it ends well");
    holder(&lab, "two").await;
    lab.patch::<ReplicaSet>("n", "web", json!({"spec": {"replicas": 4}})).await;
    pods(4).await;

    // Who dies is missed after a while.
    let third = candidate(&lab, "three", &stays);
    second.abort();
    holder(&lab, "three").await;
    lab.patch::<ReplicaSet>("n", "web", json!({"spec": {"replicas": 5}})).await;
    pods(5).await;
    stays.cancel();
    third.await.expect("it ends").expect("it ends well");
}
