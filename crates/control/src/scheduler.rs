//! A node for each pod that has none: observe, decide, bind.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::cluster::{Cluster, Error, Result};
use crate::pods;
use crate::queue::Done;
use crate::recorder::Severity;

mod place; // which node: pure

use place::Board;
pub(crate) use place::{Tolerance, matches_node, tolerance};

/// The component in events, and the scheduler that a pod names.
const NAME: &str = "default-scheduler";
/// At most so many pods are bound at once.
const AT_ONCE: usize = 32;

pub(crate) async fn reconcile(cluster: &Cluster) -> Result<Done> {
    let mut waiting: Vec<Arc<Pod>> = cluster.all::<Pod>(is_waiting);
    if waiting.is_empty() {
        return Ok(Done::Settled);
    }
    // The oldest first, so that nobody waits for ever behind newer ones.
    waiting.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.namespace(), pod.name_any()));
    let nodes = cluster.all::<Node>(|_| true);
    let bound = cluster.all::<Pod>(|pod| pods::node_name(pod).is_some() && !pods::is_terminal(pod));
    let mut board = Board::new(&nodes, &bound);
    let choices: Vec<(Arc<Pod>, std::result::Result<String, String>)> = waiting
        .into_iter()
        .map(|pod| {
            let choice = board.place(&pod);
            (pod, choice)
        })
        .collect();
    let results: Vec<Result<()>> = stream::iter(choices)
        .map(|(pod, choice)| async move {
            match choice {
                Ok(node) => bind(cluster, &pod, &node).await,
                Err(reason) => refuse(cluster, &pod, reason).await,
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut failed = false;
    for error in results.into_iter().filter_map(Result::err) {
        if !error.is_conflict() {
            return Err(error);
        }
        failed = true;
    }
    Ok(if failed { Done::Failed } else { Done::Settled })
}

fn is_waiting(pod: &Pod) -> bool {
    pods::node_name(pod).is_none()
        && pods::is_active(pod)
        && pod.spec.as_ref().is_some_and(|spec| {
            spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == NAME)
                && spec.scheduling_gates.as_ref().is_none_or(|gates| gates.is_empty())
        })
}

async fn bind(cluster: &Cluster, pod: &Arc<Pod>, node: &str) -> Result<()> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.namespace(),
            uid: pod.uid(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some(Node::kind(&()).into_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    let answer: std::result::Result<serde_json::Value, kube::Error> =
        api.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await;
    answer.map_err(Error::from)?;
    // The answer is only a Status; until the watch brings the pod, it must not be placed again.
    let mut bound = Pod::clone(pod);
    bound.spec.get_or_insert_default().node_name = Some(node.to_owned());
    cluster.assume(bound);
    let message = format!("Successfully assigned {}/{} to {node}", namespace, pod.name_any());
    cluster.recorder.note(pod.as_ref(), NAME, Severity::Normal, "Scheduled", message);
    Ok(())
}

async fn refuse(cluster: &Cluster, pod: &Arc<Pod>, message: String) -> Result<()> {
    let known = pods::condition(pod, "PodScheduled").is_some_and(|condition| {
        condition.status == "False" && condition.message.as_deref() == Some(message.as_str())
    });
    if known {
        return Ok(());
    }
    let mut conditions: Vec<PodCondition> =
        pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "PodScheduled");
    conditions.push(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.clone()),
        last_transition_time: Some(Time(Timestamp::now())),
        ..PodCondition::default()
    });
    cluster.patch_status(pod.as_ref(), json!({ "status": { "conditions": conditions } })).await?;
    cluster.recorder.note(pod.as_ref(), NAME, Severity::Warning, "FailedScheduling", message);
    Ok(())
}
