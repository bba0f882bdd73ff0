//! Nodes: readiness by lease, taints, pod CIDRs, and the pods of nodes that do not answer or are gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{TryStreamExt, stream};
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::cluster::{Cluster, Result};
use crate::pods;
use crate::queue::Done;
use crate::recorder::Severity;
use crate::scheduler::{Tolerance, tolerance};

mod health; // what a node's silence means: pure

/// The component in events.
const SOURCE: &str = "node-controller";
/// The namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";

/// What the API does not tell about nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// When each node's heartbeat was last seen to change. Our clock only: the nodes' may differ from it.
    heartbeats: Mutex<HashMap<String, (Option<MicroTime>, Instant)>>,
    /// Held from the choice of a range to its write: the next choice sees it.
    ranges: tokio::sync::Mutex<()>,
    /// Nodes that could not get ranges; said once, not at each of their heartbeats.
    without_ranges: Mutex<HashSet<String>>,
}

pub(crate) async fn reconcile(cluster: &Cluster, name: &str) -> Result<Done> {
    let Some(node) = cluster.get::<Node>("", name) else {
        cluster.nodes.heartbeats.lock().remove(name);
        cluster.nodes.without_ranges.lock().remove(name);
        return collect(cluster, name).await;
    };
    if node.metadata.deletion_timestamp.is_some() {
        return Ok(Done::Settled);
    }
    let node = give_ranges(cluster, node).await?;
    let silence = silence(cluster, name);
    let verdict = health::judge(&node, silence, cluster.config.lease_grace, Timestamp::now());
    let mut node = node;
    if let Some(conditions) = verdict.conditions {
        node = cluster.patch_status(node.as_ref(), json!({ "status": { "conditions": conditions } })).await?;
        let message = format!("Node {name} status is now: NodeNotReady");
        cluster.recorder.note(node.as_ref(), SOURCE, Severity::Normal, "NodeNotReady", message);
    }
    if let Some(taints) = verdict.taints {
        node = cluster.patch(node.as_ref(), json!({ "spec": { "taints": taints } })).await?;
    }
    let mut again = verdict.again;
    if verdict.silent {
        mark_unready(cluster, name).await?;
    }
    if let Some(next) = evict(cluster, &node).await? {
        again = Some(again.map_or(next, |again| again.min(next)));
    }
    Ok(again.map_or(Done::Settled, Done::Again))
}

/// How long the node's heartbeat has been the same, as far as we have seen.
fn silence(cluster: &Cluster, name: &str) -> Duration {
    let renewed =
        cluster.get::<Lease>(LEASES, name).and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
    let now = Instant::now();
    let mut heartbeats = cluster.nodes.heartbeats.lock();
    let (known, since) = heartbeats.entry(name.to_owned()).or_insert((renewed.clone(), now));
    if *known != renewed {
        *known = renewed;
        *since = now;
    }
    now.duration_since(*since)
}

async fn give_ranges(cluster: &Cluster, node: Arc<Node>) -> Result<Arc<Node>> {
    let config = &cluster.config;
    if config.cluster_cidrs.is_empty() {
        return Ok(node);
    }
    let own = ranges(&node);
    if own.len() >= config.cluster_cidrs.len() {
        return Ok(node);
    }
    let _choosing = cluster.nodes.ranges.lock().await;
    let name = node.name_any();
    let taken: Vec<IpNet> = cluster
        .all::<Node>(|other| other.name_any() != name)
        .iter()
        .flat_map(|other| ranges(other))
        .collect();
    match crate::pod_cidr::assign(
        &config.cluster_cidrs,
        config.node_prefix_v4,
        config.node_prefix_v6,
        &own,
        &taken,
    ) {
        Ok(wanted) if wanted != own => {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let patch = json!({ "spec": { "podCIDR": wanted.first(), "podCIDRs": wanted } });
            cluster.patch(node.as_ref(), patch).await
        }
        Ok(_) => Ok(node),
        Err(error) => {
            if !cluster.nodes.without_ranges.lock().insert(name) {
                return Ok(node);
            }
            let message = error.to_string();
            cluster.recorder.note(node.as_ref(), SOURCE, Severity::Warning, "CIDRNotAvailable", message);
            Ok(node)
        }
    }
}

fn ranges(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let listed = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let first = spec.and_then(|spec| spec.pod_cidr.as_ref()).filter(|_| listed.is_empty());
    listed.iter().chain(first).filter_map(|range| range.parse().ok()).collect()
}

/// The pods of a node that does not answer stop being ready: their Services must not wait for the eviction.
async fn mark_unready(cluster: &Cluster, name: &str) -> Result<()> {
    let ready = cluster.all::<Pod>(|pod| {
        pods::node_name(pod) == Some(name)
            && !pods::is_terminal(pod)
            && (pods::is_ready(pod)
                || pods::condition(pod, "ContainersReady")
                    .is_some_and(|condition| condition.status == "True"))
    });
    stream::iter(ready.iter().map(Ok))
        .try_for_each_concurrent(16, |pod| async move {
            let mut conditions: Vec<PodCondition> =
                pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            for condition in &mut conditions {
                if matches!(condition.type_.as_str(), "Ready" | "ContainersReady")
                    && condition.status == "True"
                {
                    condition.status = "False".to_owned();
                    condition.reason = Some("NodeNotReady".to_owned());
                    condition.message = Some("the node has stopped renewing its lease".to_owned());
                    condition.last_transition_time = Some(Time(Timestamp::now()));
                }
            }
            let patch = json!({ "status": { "conditions": conditions } });
            cluster.patch_status(pod.as_ref(), patch).await.map(|_| ())
        })
        .await
}

/// Removes the pods that do not tolerate the node's taints (any longer); when to look again.
async fn evict(cluster: &Cluster, node: &Node) -> Result<Option<Duration>> {
    let taints: Vec<Taint> = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let taints: Vec<Taint> = taints.into_iter().filter(|taint| taint.effect == "NoExecute").collect();
    if taints.is_empty() {
        return Ok(None);
    }
    let name = node.name_any();
    let (now, mut next) = (Timestamp::now(), None);
    for pod in cluster.all::<Pod>(|pod| pods::node_name(pod) == Some(&name) && pods::is_active(pod)) {
        let left = taints
            .iter()
            .filter_map(|taint| health::time_left(&pod, taint, cluster.config.toleration, now))
            .min();
        match left {
            Some(left) if left.is_zero() => {
                let message = format!(
                    "Marking for deletion Pod {}/{}",
                    pod.namespace().unwrap_or_default(),
                    pod.name_any()
                );
                cluster.recorder.note(
                    pod.as_ref(),
                    "taint-eviction-controller",
                    Severity::Normal,
                    "TaintManagerEviction",
                    message,
                );
                cluster.delete(pod.as_ref(), DeleteParams::default()).await?;
            }
            Some(left) => next = Some(next.map_or(left, |next: Duration| next.min(left))),
            None => {}
        }
    }
    Ok(next)
}

/// The pods of a node that is not there any more: nobody else will end them.
async fn collect(cluster: &Cluster, name: &str) -> Result<Done> {
    let left = cluster.all::<Pod>(|pod| pods::node_name(pod) == Some(name));
    if left.is_empty() {
        return Ok(Done::Settled);
    }
    // The cache may be behind: ask the API itself before anything is removed for good.
    let api: Api<Node> = Api::all(cluster.client.clone());
    if api.get_metadata_opt(name).await?.is_some() {
        return Ok(Done::Again(Duration::from_millis(100)));
    }
    stream::iter(left.iter().map(Ok))
        .try_for_each_concurrent(16, |pod| {
            cluster.delete(pod.as_ref(), DeleteParams::default().grace_period(0))
        })
        .await?;
    Ok(Done::Settled)
}
