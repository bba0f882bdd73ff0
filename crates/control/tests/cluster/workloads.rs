//! The other workloads: ReplicationControllers, StatefulSets, DaemonSets, Jobs; and what bounds pods.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Endpoints, Pod, ReplicationController, ResourceQuota, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams};
use portolan_control::Config;
use serde_json::{Value, json};

use crate::lab::{Lab, eventually};

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "main", "image": image}]}})
}

fn running(pods: &[Pod]) -> Vec<&Pod> {
    pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
}

fn names(pods: &[Pod]) -> Vec<String> {
    let mut names: Vec<String> = running(pods).iter().map(|pod| pod.name_any()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_replication_controller_keeps_its_number_of_pods() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    let rc = json!({"metadata": {"name": "rc"}, "spec": {"replicas": 2, "template": template("echo:1")}});
    lab.create::<ReplicationController>("n", rc).await;
    let ready = |wanted: i32| {
        let lab = &lab;
        async move {
            let rc = lab.get::<ReplicationController>("n", "rc").await?;
            let status = rc.status?;
            (status.ready_replicas == Some(wanted) && status.replicas == wanted).then_some(())
        }
    };
    eventually("two ready pods", || ready(2)).await;
    let pod = lab.list::<Pod>("n").await.remove(0);
    assert_eq!(pod.owner_references()[0].kind, "ReplicationController");
    lab.delete::<Pod>("n", &pod.name_any(), DeleteParams::default()).await;
    eventually("another pod", || ready(2)).await;
    lab.patch::<ReplicationController>("n", "rc", json!({"spec": {"replicas": 0}})).await;
    eventually("no pod", || async { lab.list::<Pod>("n").await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_stateful_set_s_pods_have_names_and_are_exchanged_from_the_last() {
    let lab = Lab::with_nodes(Config::default(), 2).await;
    let set = json!({"metadata": {"name": "s"}, "spec": {"serviceName": "s", "replicas": 3,
        "selector": {"matchLabels": {"app": "w"}}, "template": template("echo:1"),
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}});
    lab.create::<StatefulSet>("n", set).await;
    let done = |image: &'static str, from: usize| {
        let lab = &lab;
        async move {
            let pods = lab.list::<Pod>("n").await;
            let set = lab.get::<StatefulSet>("n", "s").await?;
            let images: Vec<Option<String>> = running(&pods)
                .iter()
                .map(|pod| pod.spec.as_ref()?.containers.first()?.image.clone())
                .collect();
            let ready = set.status.as_ref()?.ready_replicas == Some(3);
            (ready && images.len() == 3 && images[from..].iter().all(|i| i.as_deref() == Some(image)))
                .then_some(pods)
        }
    };
    let pods = eventually("three pods", || done("echo:1", 0)).await;
    assert_eq!(names(&pods), ["s-0", "s-1", "s-2"]);
    let spec = pods[1].spec.as_ref().expect("a spec");
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("s-1"), Some("s")));
    lab.patch::<StatefulSet>("n", "s", json!({"spec": {"template": template("echo:2")}})).await;
    let pods = eventually("the exchange", || done("echo:2", 1)).await;
    let first = pods[0].spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
    assert_eq!(first.as_deref(), Some("echo:1"), "what is below the partition stays");
    assert_eq!(lab.list::<ControllerRevision>("n").await.len(), 2);
}

#[tokio::test]
async fn a_daemon_set_has_one_pod_on_each_node_and_rolls_over_them() {
    let mut lab = Lab::with_nodes(Config::default(), 2).await;
    let set = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "w"}},
        "template": template("echo:1")}});
    lab.create::<DaemonSet>("n", set).await;
    let done = |nodes: usize, image: &'static str| {
        let lab = &lab;
        async move {
            let pods = lab.list::<Pod>("n").await;
            let status = lab.get::<DaemonSet>("n", "d").await?.status?;
            let all = i32::try_from(nodes).ok()?;
            let of = |pod: &&Pod| {
                pod.spec.as_ref().is_some_and(|s| s.containers[0].image.as_deref() == Some(image))
            };
            let settled = running(&pods).len() == nodes && running(&pods).iter().all(of);
            (settled && status.number_ready == all && status.updated_number_scheduled == Some(all))
                .then_some(pods)
        }
    };
    eventually("two pods", || done(2, "echo:1")).await;
    lab.node("node-3", true).await;
    let done = |nodes: usize, image: &'static str| {
        let lab = &lab;
        async move {
            let pods = lab.list::<Pod>("n").await;
            let status = lab.get::<DaemonSet>("n", "d").await?.status?;
            let all = i32::try_from(nodes).ok()?;
            let of = |pod: &&Pod| {
                pod.spec.as_ref().is_some_and(|s| s.containers[0].image.as_deref() == Some(image))
            };
            let settled = running(&pods).len() == nodes && running(&pods).iter().all(of);
            (settled && status.number_ready == all && status.updated_number_scheduled == Some(all))
                .then_some(pods)
        }
    };
    let pods = eventually("three pods", || done(3, "echo:1")).await;
    let mut nodes: Vec<_> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    nodes.sort();
    assert_eq!(nodes, ["node-1", "node-2", "node-3"]);
    lab.patch::<DaemonSet>("n", "d", json!({"spec": {"template": template("echo:2")}})).await;
    eventually("the exchange", || done(3, "echo:2")).await;
}

async fn finish(lab: &Lab, pod: &Pod, phase: &str) {
    let status = json!({"status": {"phase": phase}});
    let api = lab.api::<Pod>("n");
    let params = PatchParams::default();
    api.patch_status(&pod.name_any(), &params, &Patch::Merge(status)).await.expect("patched");
}

#[tokio::test]
async fn a_job_ends_when_enough_pods_came_to_a_good_end() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    let mut pod = template("echo:1");
    pod["spec"]["restartPolicy"] = "Never".into();
    let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 3, "parallelism": 2,
        "completionMode": "Indexed", "ttlSecondsAfterFinished": 0, "template": pod}});
    lab.create::<Job>("n", job).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let pod = eventually("a running pod", || async {
            let mut pods = lab.list::<Pod>("n").await;
            assert!(
                running(&pods)
                    .iter()
                    .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"))
                    .count()
                    <= 2
            );
            pods.retain(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
            pods.pop()
        })
        .await;
        seen.extend(pod.annotations().get("batch.kubernetes.io/job-completion-index").cloned());
        finish(&lab, &pod, "Succeeded").await;
    }
    seen.sort();
    assert_eq!(seen, ["0", "1", "2"]);
    eventually("the Job and its pods to go", || async {
        let gone = lab.get::<Job>("n", "j").await.is_none() && lab.list::<Pod>("n").await.is_empty();
        gone.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cron_job_makes_a_job_at_its_time() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    let mut pod = template("echo:1");
    pod["spec"]["restartPolicy"] = "Never".into();
    let cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "@every 1s", "concurrencyPolicy": "Forbid",
        "jobTemplate": {"spec": {"template": pod}}}});
    lab.create::<CronJob>("n", cron).await;
    let job = eventually("a job", || async { lab.list::<Job>("n").await.pop() }).await;
    assert_eq!(job.owner_references()[0].kind, "CronJob");
    eventually("the CronJob to know it", || async {
        let status = lab.get::<CronJob>("n", "c").await?.status?;
        (status.active.is_some_and(|active| active.len() == 1) && status.last_schedule_time.is_some())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_budget_lets_so_many_pods_be_evicted_and_no_more() {
    let lab = Lab::with_nodes(Config::default(), 1).await;
    let rc = json!({"metadata": {"name": "rc"}, "spec": {"replicas": 2, "template": template("echo:1")}});
    lab.create::<ReplicationController>("n", rc).await;
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "w"}}}});
    lab.create::<PodDisruptionBudget>("n", budget).await;
    let healthy = || async {
        let status = lab.get::<PodDisruptionBudget>("n", "b").await?.status?;
        (status.current_healthy == Some(2)).then_some(status)
    };
    let status = eventually("two healthy pods", healthy).await;
    assert_eq!((status.desired_healthy, status.disruptions_allowed), (Some(2), Some(0)));
    let pod = lab.list::<Pod>("n").await.remove(0).name_any();
    let refused =
        lab.api::<Pod>("n").evict(&pod, &EvictParams::default()).await.expect_err("no disruption is left");
    let kube::Error::Api(refused) = refused else { panic!("{refused}") };
    assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(refused.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let cause = &refused.details.expect("details").causes[0];
    assert_eq!(cause.reason, "DisruptionBudget");
    assert_eq!(cause.message, "The disruption budget b needs 2 healthy pods and has 2 currently");
    lab.patch::<PodDisruptionBudget>("n", "b", json!({"spec": {"minAvailable": 1}})).await;
    eventually("a disruption to be allowed", || async {
        let budget = lab.get::<PodDisruptionBudget>("n", "b").await?;
        let status = budget.status?;
        (status.disruptions_allowed == Some(1) && status.observed_generation == budget.metadata.generation)
            .then_some(())
    })
    .await;
    lab.api::<Pod>("n").evict(&pod, &EvictParams::default()).await.expect("evicted");
}

#[tokio::test]
async fn a_quota_is_charged_when_something_is_made_and_freed_when_it_goes() {
    let lab = Lab::new(Config::default()).await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1", "count/secrets": "5", "services": "5"}}});
    lab.create::<ResourceQuota>("n", quota).await;
    let used = |name: &'static str, amount: &'static str| {
        let lab = &lab;
        async move {
            let used = lab.get::<ResourceQuota>("n", "q").await?.status?.used?;
            (used.get(name).map(|q| q.0.as_str()) == Some(amount)).then_some(())
        }
    };
    eventually("the quota to be counted", || used("pods", "0")).await;
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "echo:1"}]}});
    lab.create::<Pod>("n", pod("a")).await;
    // What is charged is seen at once: it was written with the pod.
    used("pods", "1").await.expect("charged");
    let second = serde_json::from_value(pod("b")).expect("a pod");
    let refused = lab.api::<Pod>("n").create(&Default::default(), &second).await.expect_err("no room");
    let kube::Error::Api(refused) = refused else { panic!("{refused}") };
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message,
        "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"
    );
    lab.delete::<Pod>("n", "a", DeleteParams::default()).await;
    eventually("the place to be free", || used("pods", "0")).await;
    let secret: k8s_openapi::api::core::v1::Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}})).expect("a secret");
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
        kube::Api::namespaced(lab.client.clone(), "n");
    secrets.create(&Default::default(), &secret).await.expect("made");
    used("count/secrets", "1").await.expect("charged");
    let _ = secrets.delete("s", &DeleteParams::default()).await.expect("deleted");
    eventually("the secret's place to be free", || used("count/secrets", "0")).await;
}

#[tokio::test]
async fn endpoints_of_a_service_without_a_selector_are_mirrored() {
    let lab = Lab::new(Config::default()).await;
    lab.create::<Service>(
        "n",
        json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
    )
    .await;
    let endpoints = json!({"metadata": {"name": "s"}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]});
    lab.create::<Endpoints>("n", endpoints).await;
    let slice = eventually("a slice", || async { lab.list::<EndpointSlice>("n").await.pop() }).await;
    assert_eq!(
        slice.labels()["endpointslice.kubernetes.io/managed-by"],
        "endpointslicemirroring-controller.k8s.io"
    );
    assert_eq!(slice.labels()["kubernetes.io/service-name"], "s");
    lab.patch::<Endpoints>(
        "n",
        "s",
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.2"}], "ports": [{"name": "http", "port": 8080}]}]}),
    )
    .await;
    let moved = eventually("the change", || async {
        let slice = lab.list::<EndpointSlice>("n").await.pop()?;
        let first = slice.endpoints.as_ref()?.first()?.addresses.first()?.clone();
        (first == "192.0.2.2").then_some(slice)
    })
    .await;
    assert_eq!(moved.name_any(), slice.name_any(), "a slice that changes keeps its name");
    lab.delete::<Endpoints>("n", "s", DeleteParams::default()).await;
    eventually("no slice", || async { lab.list::<EndpointSlice>("n").await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_range_of_addresses_is_held_while_a_service_has_one_of_it() {
    let lab = Lab::new(Config::default()).await;
    lab.create::<ServiceCIDR>(
        "",
        json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}}),
    )
    .await;
    let ready = |status: &'static str| {
        let lab = &lab;
        async move {
            let range = lab.get::<ServiceCIDR>("", "more").await?;
            let conditions = range.status?.conditions?;
            (conditions.iter().any(|c| c.type_ == "Ready" && c.status == status)).then_some(())
        }
    };
    eventually("the range to be ready", || ready("True")).await;
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.200.0.7", "ports": [{"port": 80}]}});
    lab.create::<Service>("n", service).await;
    let address = lab.get::<IPAddress>("", "10.200.0.7").await.expect("written with the Service");
    assert_eq!(address.spec.parent_ref.name, "s");
    lab.delete::<ServiceCIDR>("", "more", DeleteParams::default()).await;
    eventually("the range to say that it is held", || ready("False")).await;
    // Somebody takes the address's object away: it comes back.
    lab.delete::<IPAddress>("", "10.200.0.7", DeleteParams::default()).await;
    eventually("the address", || lab.get::<IPAddress>("", "10.200.0.7")).await;
    lab.delete::<Service>("n", "s", DeleteParams::default()).await;
    eventually("the range to go", || async {
        lab.get::<ServiceCIDR>("", "more").await.is_none().then_some(())
    })
    .await;
    assert!(lab.get::<IPAddress>("", "10.200.0.7").await.is_none());
    let stray = json!({"metadata": {"name": "10.96.0.77", "labels": {
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "none"}}});
    lab.create::<IPAddress>("", stray).await;
    eventually("an address of no Service to go", || async {
        lab.get::<IPAddress>("", "10.96.0.77").await.is_none().then_some(())
    })
    .await;
}
