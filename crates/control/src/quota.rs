//! What a namespace uses of what it may: counted anew whenever something in it changes.
//!
//! The server charges what is made in the transaction that makes it; here is found out what is used no longer.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota, Service};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use portolan_api::quota::{Usage, add, amounts, counts, to_object, usage};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Kind, Result};
use crate::queue::Done;

/// The resource that a bounded name counts, as group and plural; none for amounts of pods.
fn counted(name: &str) -> Option<(&str, &str)> {
    if let Some(resource) = name.strip_prefix("count/") {
        return Some(resource.split_once('.').map_or(("", resource), |(plural, group)| (group, plural)));
    }
    match name {
        "services.nodeports" | "services.loadbalancers" => Some(("", "services")),
        "requests.storage" => Some(("", "persistentvolumeclaims")),
        "services"
        | "replicationcontrollers"
        | "secrets"
        | "configmaps"
        | "resourcequotas"
        | "pods"
        | "persistentvolumeclaims" => Some(("", name)),
        _ => None,
    }
}

fn values<K: Kind + Serialize>(cluster: &Cluster, namespace: &str) -> Vec<Value> {
    let all = cluster.select::<K>(namespace, |_| true);
    all.iter().filter_map(|object| serde_json::to_value(object.as_ref()).ok()).collect()
}

/// The objects of a resource in a namespace: from a cache, or asked for.
async fn objects(cluster: &Cluster, group: &str, plural: &str, namespace: &str) -> Result<Vec<Value>> {
    match (group, plural) {
        ("", "pods") => return Ok(values::<Pod>(cluster, namespace)),
        ("", "services") => return Ok(values::<Service>(cluster, namespace)),
        ("", "configmaps") => return Ok(values::<ConfigMap>(cluster, namespace)),
        _ => {}
    }
    let kinds = cluster.kinds.get(&cluster.client).await?;
    let kind =
        kinds.iter().find(|k| k.resource.group == group && k.resource.plural == plural && k.namespaced);
    let Some(kind) = kind else { return Ok(Vec::new()) };
    let list = kind.api(&cluster.client, namespace).list(&ListParams::default()).await?;
    Ok(list.items.into_iter().filter_map(|object| serde_json::to_value(object).ok()).collect())
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(quota) = cluster.find::<ResourceQuota>(key) else { return Ok(Done::Settled) };
    let value = serde_json::to_value(quota.as_ref()).unwrap_or_default();
    let hard = amounts(&value, "spec.hard");
    let mut resources: Vec<(&str, &str)> =
        hard.keys().map(|name| counted(name).unwrap_or(("", "pods"))).collect();
    resources.sort_unstable();
    resources.dedup();
    let mut used = Usage::new();
    for (group, plural) in resources {
        for object in objects(cluster, group, plural, &key.namespace).await? {
            if (group, plural) == ("", "pods") && is_stuck(&object, Timestamp::now()) {
                continue;
            }
            if counts(&value, group, plural, &object) {
                add(&mut used, &usage(group, plural, &object));
            }
        }
    }
    let used: Usage = hard
        .keys()
        .map(|name| (name.clone(), used.get(name).copied().unwrap_or(portolan_api::quantity::Quantity::ZERO)))
        .collect();
    if amounts(&value, "status.hard") == hard && amounts(&value, "status.used") == used {
        return Ok(Done::Settled);
    }
    let mut changed = value;
    changed["status"] = json!({"hard": to_object(&hard), "used": to_object(&used)});
    if let Ok(changed) = serde_json::from_value::<ResourceQuota>(changed) {
        cluster.replace_status(&changed).await?;
    }
    Ok(Done::Settled)
}

/// Whether a pod should have been gone long ago: its node is lost, say. What takes its place isn't to fail for it (`QuotaV1Pod`,
/// which adds the grace to the time that has it already).
fn is_stuck(pod: &Value, now: Timestamp) -> bool {
    let meta = &pod["metadata"];
    let until = meta["deletionTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let grace = meta["deletionGracePeriodSeconds"].as_i64();
    until.zip(grace).is_some_and(|(until, grace)| now.as_second() > until.as_second() + grace)
}

/// The quotas that want to know of a change in their namespace.
pub(crate) fn wakes(cluster: &Cluster, namespace: &str) -> Vec<ObjectKey> {
    let quotas = cluster.caches.quotas.read();
    quotas
        .in_namespace(namespace)
        .map(|quota: &Arc<ResourceQuota>| ObjectKey::new(namespace, &quota.name_any()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_should_be_gone_is_not_charged() {
        let pod = |until: &str, grace: i64| json!({"metadata": {"deletionTimestamp": until, "deletionGracePeriodSeconds": grace}});
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        assert!(is_stuck(&pod("2026-01-01T00:00:29Z", 30), now));
        assert!(!is_stuck(&pod("2026-01-01T00:00:30Z", 30), now));
        assert!(!is_stuck(&json!({"metadata": {}}), now), "it isn't going");
    }
}
