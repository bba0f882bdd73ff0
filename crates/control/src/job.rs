//! The pods of a Job, until enough of them have come to a good end: observe, decide, write.
//!
//! Each pod carries a finalizer until it is counted, so that none is counted twice or lost, whoever deletes it
//! (KEP-2307).

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::owned::{make_all, pod_of, remove_all};
use crate::queue::Done;
use crate::recorder::Severity;
use crate::wake::controller;

mod decide; // what is counted, made and removed: pure

const SOURCE: &str = "job-controller";
const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let job = cluster.find::<Job>(key);
    let uid = job.as_ref().and_then(|job| job.uid());
    let pods = cluster.select::<Pod>(&key.namespace, |pod| {
        controller(pod).is_some_and(|owner| owner.kind == "Job" && owner.name == key.name)
    });
    let (pods, orphans): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| controller(pod.as_ref()).map(|owner| owner.uid.clone()) == uid);
    for pod in orphans.iter().filter(|pod| is_tracked(pod)) {
        release(cluster, pod).await?;
    }
    let Some(job) = job else { return Ok(Done::Settled) };
    let managed = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    if managed.is_some_and(|by| by != "kubernetes.io/job-controller") {
        return Ok(Done::Settled);
    }
    if job.metadata.deletion_timestamp.is_some() {
        for pod in pods.iter().filter(|pod| is_tracked(pod)) {
            release(cluster, pod).await?;
        }
        return Ok(Done::Settled);
    }
    let now = Timestamp::now();
    let decision = decide::decide(&job, &pods, now);
    if let Some(wait) = decision.expires {
        if !wait.is_zero() {
            return Ok(Done::Again(wait));
        }
        cluster.delete(job.as_ref(), DeleteParams::foreground()).await?;
        return Ok(Done::Settled);
    }
    for pod in &decision.release {
        release(cluster, pod).await?;
    }
    let removed = remove_all(cluster, job.as_ref(), SOURCE, &decision.delete).await;
    let wanted: Vec<Pod> = decision.create.iter().map(|index| new_pod(&job, *index)).collect();
    let made = make_all(cluster, job.as_ref(), SOURCE, &wanted).await;
    if let Some(status) = decision.status {
        for (reason, message) in &decision.news {
            let severity = if *reason == "Completed" { Severity::Normal } else { Severity::Warning };
            cluster.recorder.note(job.as_ref(), SOURCE, severity, reason, message.clone());
        }
        let mut changed = Job::clone(&job);
        changed.status = Some(status);
        cluster.replace_status(&changed).await?;
    }
    removed?;
    made?;
    Ok(decision.again.map_or(Done::Settled, Done::Again))
}

fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// The pod is counted (or never will be): it may go.
async fn release(cluster: &Cluster, pod: &Arc<Pod>) -> Result<()> {
    let finalizers: Vec<_> = pod.finalizers().iter().filter(|f| *f != FINALIZER).collect();
    cluster.patch(pod.as_ref(), json!({"metadata": {"finalizers": finalizers}})).await.map(drop)
}

/// The pod that a Job makes, for an index if it has such.
fn new_pod(job: &Job, index: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = pod_of(&template, job);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let name = job.name_any();
    let Some(index) = index else {
        pod.metadata.generate_name = Some(format!("{name}-"));
        return pod;
    };
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{index}"));
        let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
        for container in containers {
            let env = container.env.get_or_insert_default();
            if env.iter().all(|var| var.name != "JOB_COMPLETION_INDEX") {
                env.push(EnvVar {
                    name: "JOB_COMPLETION_INDEX".into(),
                    value: None,
                    value_from: Some(EnvVarSource {
                        field_ref: Some(ObjectFieldSelector {
                            api_version: None,
                            field_path: format!("metadata.labels['{INDEX}']"),
                        }),
                        ..EnvVarSource::default()
                    }),
                });
            }
        }
    }
    pod
}
