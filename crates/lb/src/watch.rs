//! From the API's objects to what a speaker wants. `wanted` is pure; `run` keeps it up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use portolan_heard::Heard;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::CLASS;
use crate::speaker::{Config, Speaker, Wanted};

/// Nodes with this label announce nothing (the label is Kubernetes' own, KEP-2000).
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What a speaker on `node` wants, from the objects of the API: pure.
pub fn wanted<'o>(
    node: &str,
    nodes: impl IntoIterator<Item = &'o Node>,
    services: impl IntoIterator<Item = &'o Service>,
    slices: impl IntoIterator<Item = &'o EndpointSlice>,
) -> Wanted {
    let mut wanted = Wanted::default();
    let mut announcers = BTreeSet::new();
    for object in nodes {
        let Some(name) = object.metadata.name.clone() else { continue };
        // As in Kubernetes' service controller: a value that does not parse as false excludes.
        let label = object.metadata.labels.as_ref().and_then(|l| l.get(EXCLUDE_LABEL));
        if label.is_none_or(|v| matches!(v.as_str(), "false" | "False" | "FALSE" | "f" | "F" | "0")) {
            announcers.insert(name.clone());
        }
        if name != node
            && let Some(address) = internal_address(object)
        {
            wanted.peers.insert(name, address);
        }
    }
    let local = nodes_with_ready_endpoints(slices);
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let class = spec.load_balancer_class.as_deref();
        if spec.type_.as_deref() != Some("LoadBalancer") || class.is_some_and(|c| c != CLASS) {
            continue;
        }
        let eligible = match spec.external_traffic_policy.as_deref() {
            // Only a node with an endpoint may attract traffic that must stay on the node.
            Some("Local") => {
                let key = (service.metadata.namespace.clone(), service.metadata.name.clone());
                let with_endpoints = local.get(&key).cloned().unwrap_or_default();
                announcers.intersection(&with_endpoints).cloned().collect()
            }
            _ => announcers.clone(),
        };
        let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        for ingress in status.and_then(|l| l.ingress.as_deref()).unwrap_or_default() {
            // ipMode Proxy means that the address is somebody else's (KEP-1860).
            if ingress.ip_mode.as_deref() != Some("Proxy")
                && let Some(address) = ingress.ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok())
            {
                wanted.addresses.entry(address).or_insert_with(|| eligible.clone());
            }
        }
    }
    wanted
}

fn internal_address(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?;
    addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()
}

type ServiceKey = (Option<String>, Option<String>);

fn nodes_with_ready_endpoints<'o>(
    slices: impl IntoIterator<Item = &'o EndpointSlice>,
) -> BTreeMap<ServiceKey, BTreeSet<String>> {
    let mut local: BTreeMap<ServiceKey, BTreeSet<String>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|l| l.get("kubernetes.io/service-name")) else { continue };
        let ready = slice.endpoints.iter().flatten().filter(|e| {
            e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true) // nil means ready (EndpointConditions)
        });
        let nodes = ready.filter_map(|e| e.node_name.clone());
        local.entry((slice.metadata.namespace.clone(), Some(service.clone()))).or_default().extend(nodes);
    }
    local
}

/// Runs a speaker until `shutdown`, telling it what the cluster wants.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let changed = std::sync::Arc::new(Notify::new());
    let (nodes, node_task) = follow::<Heard<Node>>(Api::all(client.clone()), changed.clone());
    let (services, service_task) = follow::<Heard<Service>>(Api::all(client.clone()), changed.clone());
    let (slices, slice_task) = follow::<Heard<EndpointSlice>>(Api::all(client), changed.clone());
    let node = config.node.clone();
    let mut speaker = None;
    let decide = async {
        nodes.wait_until_ready().await?;
        services.wait_until_ready().await?;
        slices.wait_until_ready().await?;
        let mut last = None;
        loop {
            let (n, s, e) = (nodes.state(), services.state(), slices.state());
            let now = wanted(&node, n.iter().map(|o| &o.0), s.iter().map(|o| &o.0), e.iter().map(|o| &o.0));
            if last.as_ref() != Some(&now) {
                if speaker.is_none() {
                    speaker = Some(Speaker::start(config.clone())?);
                }
                if let Some(speaker) = &speaker {
                    speaker.want(now.clone());
                }
                last = Some(now);
            }
            changed.notified().await;
        }
    };
    let result: anyhow::Result<()> = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        r = decide => r,
        () = node_task => Ok(()),
        () = service_task => Ok(()),
        () = slice_task => Ok(()),
    };
    // The last heartbeat says that this node leaves; sending it blocks for no more than one wake-up of the thread.
    tokio::task::spawn_blocking(move || drop(speaker)).await?;
    result
}

fn follow<K>(api: Api<K>, changed: std::sync::Arc<Notify>) -> (Store<K>, impl Future<Output = ()>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    let task = async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::warn!(%error, "watching for the load balancer; trying again"),
            }
        }
    };
    (store, task)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn node(name: &str, address: &str) -> Node {
        from_value(json!({"metadata": {"name": name}, "status": {"addresses": [
            {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]}}))
        .unwrap()
    }

    fn service(extra: serde_json::Value) -> Service {
        let mut spec = json!({"type": "LoadBalancer"});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "10.80.0.200", "ipMode": "VIP"}]}}}))
        .unwrap()
    }

    fn slice() -> EndpointSlice {
        from_value(json!({"metadata": {"name": "web-1", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "endpoints": [
            {"addresses": ["10.244.1.2"], "nodeName": "b", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.2"], "nodeName": "a", "conditions": {"ready": false}}]}))
        .unwrap()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| n.to_string()).collect()
    }

    #[test]
    fn policy_local_is_announced_only_where_a_ready_endpoint_is() {
        let nodes = [node("a", "10.80.0.11"), node("b", "10.80.0.12")];
        let address: IpAddr = "10.80.0.200".parse().unwrap();
        let cluster = wanted("a", &nodes, [&service(json!({}))], [&slice()]);
        assert_eq!(cluster.addresses[&address], names(&["a", "b"]));
        assert_eq!(cluster.peers, BTreeMap::from([("b".into(), "10.80.0.12".parse().unwrap())]));
        let local = wanted("a", &nodes, [&service(json!({"externalTrafficPolicy": "Local"}))], [&slice()]);
        assert_eq!(local.addresses[&address], names(&["b"]));
    }

    #[test]
    fn what_belongs_to_others_is_not_announced() {
        let nodes = [node("a", "10.80.0.11")];
        for other in [json!({"type": "ClusterIP"}), json!({"loadBalancerClass": "example.com/other"})] {
            assert!(wanted("a", &nodes, [&service(other)], []).addresses.is_empty());
        }
        assert_eq!(
            wanted("a", &nodes, [&service(json!({"loadBalancerClass": CLASS}))], []).addresses.len(),
            1
        );
        let mut proxied = service(json!({}));
        let ingress =
            proxied.status.as_mut().unwrap().load_balancer.as_mut().unwrap().ingress.as_mut().unwrap();
        ingress[0].ip_mode = Some("Proxy".into());
        assert!(wanted("a", &nodes, [&proxied], []).addresses.is_empty());
    }

    #[test]
    fn an_excluded_node_announces_nothing() {
        let mut excluded = node("a", "10.80.0.11");
        excluded.metadata.labels = Some([(EXCLUDE_LABEL.to_string(), String::new())].into());
        let all = wanted("b", &[excluded, node("b", "10.80.0.12")], [&service(json!({}))], []);
        assert_eq!(all.addresses.values().next(), Some(&names(&["b"])));
    }
}
