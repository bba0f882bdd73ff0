//! What manifests leave to the cluster, filled in with placeholders, so that they can be traced without one. Each is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Resource, ResourceExt};
use portolan_control::{desired_slices, pods as control_pods, shares};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Assumed;
use crate::objects::*;

/// Nodes that stand in where no manifest has one: their addresses are of TEST-NET-1 (RFC 5737) and of the documentation prefix.
const NODES: [(&str, &str, &str, &str); 2] = [
    ("node-1", "192.0.2.11", "10.244.1.0/24", "fd00:10:244:1::/64"),
    ("node-2", "192.0.2.12", "10.244.2.0/24", "fd00:10:244:2::/64"),
];
/// At most so many pods stand in for a workload.
const REPLICAS: usize = 20;
/// Where placeholders for node ports begin.
const NODE_PORT: i32 = 30001;

/// Pods that a manifest's workload would make.
struct Workload {
    namespace: String,
    name: String,
    kind: &'static str,
    /// As many as this; one a node if none.
    replicas: Option<usize>,
    template: PodTemplateSpec,
}

/// Objects made of manifests, and what was assumed of them. Those that name no namespace are of `namespace`.
pub fn from_manifests(
    values: Vec<Value>,
    service_cidrs: &[IpNet],
    namespace: &str,
) -> anyhow::Result<(Objects, Vec<Assumed>)> {
    let mut objects = Objects::default();
    let mut workloads = Vec::new();
    let mut left_out = BTreeSet::new();
    for value in values {
        left_out.extend(add(value, namespace, &mut objects, &mut workloads)?);
    }
    let left_out = left_out.into_iter().collect::<Vec<String>>().join(", ");
    if objects.services.is_empty() {
        let others = if left_out.is_empty() { String::new() } else { format!("; left out: {left_out}") };
        anyhow::bail!("there is no Service in the manifests: add one{others}");
    }
    let mut assumed = Vec::new();
    if !left_out.is_empty() {
        assumed.push(format!("without a part in where connections go, and left out: {left_out}").into());
    }
    nodes(&mut objects, &mut assumed);
    let mut next = BTreeMap::new();
    bare_pods(&mut objects, &mut next, &mut assumed);
    pods(&mut objects, &workloads, &mut next, &mut assumed);
    services(&mut objects, service_cidrs, &mut assumed);
    slices(&mut objects, &mut assumed);
    Ok((objects, assumed))
}

fn read<K>(mut value: Value, namespace: Option<&str>) -> anyhow::Result<K>
where
    K: DeserializeOwned + Resource,
{
    if let (Some(namespace), None) = (namespace, value.pointer("/metadata/namespace")) {
        value["metadata"]["namespace"] = json!(namespace);
    }
    let name = format!(
        "{} {}",
        value["kind"].as_str().unwrap_or_default(),
        value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
    );
    serde_json::from_value(value).with_context(|| name)
}

/// Takes an object in; the kind is returned if it has no part in where a connection goes.
fn add(
    value: Value,
    namespace: &str,
    objects: &mut Objects,
    workloads: &mut Vec<Workload>,
) -> anyhow::Result<Option<String>> {
    let namespace = Some(namespace);
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    let mut workload = |kind, meta: &dyn Fn() -> (String, String), replicas, template| {
        let (namespace, name) = meta();
        workloads.push(Workload { namespace, name, kind, replicas, template });
    };
    fn ids<K: ResourceExt>(object: &K) -> (String, String) {
        (object.namespace().unwrap_or_default(), object.name_any())
    }
    let count =
        |replicas: Option<i32>| Some(usize::try_from(replicas.unwrap_or(1)).unwrap_or(0).min(REPLICAS));
    match kind.as_str() {
        "Service" => objects.services.push(read(value, namespace)?),
        "EndpointSlice" => objects.slices.push(read(value, namespace)?),
        "Pod" => objects.pods.push(Arc::new(read(value, namespace)?)),
        "Node" => objects.nodes.push(Arc::new(read(value, None)?)),
        "NetworkPolicy" => objects.policies.push(read(value, namespace)?),
        "Deployment" => {
            let it: Deployment = read(value, namespace)?;
            if let Some(spec) = it.spec.clone() {
                workload("deployment", &|| ids(&it), count(spec.replicas), spec.template);
            }
            objects.deployments.push(it);
        }
        "ReplicaSet" => {
            let it: ReplicaSet = read(value, namespace)?;
            if let Some(spec) = it.spec.clone() {
                workload("replicaset", &|| ids(&it), count(spec.replicas), spec.template.unwrap_or_default());
            }
            objects.replicasets.push(it);
        }
        "StatefulSet" => {
            let it: StatefulSet = read(value, namespace)?;
            if let Some(spec) = it.spec.clone() {
                workload("statefulset", &|| ids(&it), count(spec.replicas), spec.template);
            }
            objects.statefulsets.push(it);
        }
        "DaemonSet" => {
            let it: DaemonSet = read(value, namespace)?;
            if let Some(spec) = it.spec.clone() {
                workload("daemonset", &|| ids(&it), None, spec.template);
            }
        }
        "Namespace" => {}
        _ => return Ok(Some(kind)),
    }
    Ok(None)
}

fn object<K: DeserializeOwned>(value: Value) -> Option<K> {
    serde_json::from_value(value).ok()
}

fn nodes(objects: &mut Objects, assumed: &mut Vec<Assumed>) {
    if objects.nodes.is_empty() {
        let all = NODES.iter().filter_map(|(name, v4, pods4, pods6)| {
            object::<Node>(json!({
                "metadata": {"name": name},
                "spec": {"podCIDR": pods4, "podCIDRs": [pods4, pods6]},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": v4},
                        {"type": "InternalIP", "address": v4.replace("192.0.2.", "2001:db8:1::")},
                    ],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }))
        });
        objects.nodes = all.map(Arc::new).collect();
        assumed.push(
            "no Node is given: two stand in, node-1 (192.0.2.11) and node-2 (192.0.2.12)".to_owned().into(),
        );
    }
    // A manifest of a node seldom says that it is ready.
    for node in &mut objects.nodes {
        if node.status.as_ref().and_then(|s| s.conditions.as_ref()).is_none() {
            let ready = object(json!({"type": "Ready", "status": "True"}));
            Arc::make_mut(node).status.get_or_insert_default().conditions = ready.map(|r| vec![r]);
        }
    }
}

/// What the cluster would give to pods of which a manifest says only what they should be.
fn bare_pods(objects: &mut Objects, next: &mut BTreeMap<String, usize>, assumed: &mut Vec<Assumed>) {
    let nodes = objects.nodes.clone();
    let mut turn = nodes.iter().cycle();
    for pod in &mut objects.pods {
        let status = pod.status.as_ref();
        let says = status.is_some_and(|s| s.phase.is_some() || s.conditions.is_some());
        let known = control_pods::node_name(pod).and_then(|name| nodes.iter().find(|n| n.name_any() == name));
        let has_address = !pod_addresses(pod).is_empty();
        // A pod that waits, or has failed, says so.
        if says && !has_address {
            continue;
        }
        let Some(node) = known.or_else(|| turn.next()) else { continue };
        let made = Arc::make_mut(pod);
        let spec = made.spec.get_or_insert_default();
        let mut stands: Vec<String> = Vec::new();
        if spec.node_name.as_deref().unwrap_or_default().is_empty() {
            spec.node_name = Some(node.name_any());
            stands.push(format!("node {}", node.name_any()));
        }
        let host = spec.host_network.unwrap_or(false);
        let status = made.status.get_or_insert_default();
        if !has_address {
            let index = next.entry(node.name_any()).or_insert(1);
            *index += 1;
            let addresses = if host { node_addresses(node) } else { addresses_in(node, *index) };
            status.phase = Some("Running".into());
            status.pod_ip = addresses.first().map(ToString::to_string);
            status.pod_ips =
                object(json!(addresses.iter().map(|a| json!({"ip": a.to_string()})).collect::<Vec<_>>()));
            stands.extend(addresses.first().map(|a| format!("address {a}")));
        }
        // What has an address and says nothing else is ready.
        if !status.conditions.iter().flatten().any(|c| c.type_ == "Ready") {
            let ready = object(json!({"type": "Ready", "status": "True"}));
            status.conditions.get_or_insert_default().extend(ready);
        }
        if !stands.is_empty() {
            let name = format!("{}/{}", made.namespace().unwrap_or_default(), made.name_any());
            assumed.push(
                format!(
                    "pod {name}: {} {} in",
                    stands.join(" and "),
                    if stands.len() == 1 { "stands" } else { "stand" }
                )
                .into(),
            );
        }
    }
}

/// Pods that workloads would make, where no pod is given that they would count as theirs.
fn pods(
    objects: &mut Objects,
    workloads: &[Workload],
    next: &mut BTreeMap<String, usize>,
    assumed: &mut Vec<Assumed>,
) {
    for workload in workloads {
        let labels = workload.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        let given = objects.pods.iter().any(|p| {
            p.namespace().as_deref() == Some(&workload.namespace)
                && labels.iter().all(|(k, v)| p.labels().get(k) == Some(v))
        });
        if given {
            continue;
        }
        let nodes = objects.nodes.clone();
        let count = workload.replicas.unwrap_or(nodes.len());
        for (i, node) in nodes.iter().cycle().take(count).enumerate() {
            let index = next.entry(node.name_any()).or_insert(1);
            *index += 1;
            let addresses = addresses_in(node, *index);
            let pod = json!({
                "metadata": {
                    "name": format!("{}-{i}", workload.name),
                    "namespace": workload.namespace,
                    "labels": labels,
                },
                "spec": with_node(&workload.template, &node.name_any()),
                "status": {
                    "phase": "Running",
                    "podIP": addresses.first().map(ToString::to_string).unwrap_or_default(),
                    "podIPs": addresses.iter().map(|a| json!({"ip": a.to_string()})).collect::<Vec<_>>(),
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            });
            objects.pods.extend(object::<Pod>(pod).map(Arc::new));
        }
        assumed.push(
            format!(
                "{} {}/{}: {count} ready pods stand in for those that it would make",
                workload.kind, workload.namespace, workload.name
            )
            .into(),
        );
    }
}

fn with_node(template: &PodTemplateSpec, node: &str) -> Value {
    let mut spec =
        template.spec.as_ref().and_then(|s| serde_json::to_value(s).ok()).unwrap_or_else(|| json!({}));
    spec["nodeName"] = json!(node);
    spec
}

/// The nth address of each of a node's ranges.
fn addresses_in(node: &Node, index: usize) -> Vec<IpAddr> {
    let ranges = portolan_agent::from_kube::node(node).0.pod_cidrs;
    // IPv4 first: the first address is a pod's primary one.
    ranges.iter().filter_map(|range| from_end(range, index, false)).collect()
}

/// An address of a range, counted from its beginning or back from its end.
fn from_end(range: &IpNet, index: usize, back: bool) -> Option<IpAddr> {
    let offset = u128::try_from(index).ok()?;
    let at =
        |first: u128, last: u128| if back { last.checked_sub(offset) } else { first.checked_add(offset) };
    match range {
        IpNet::V4(range) => {
            let bits = at(u128::from(range.network().to_bits()), u128::from(range.broadcast().to_bits()))?;
            Some(IpAddr::V4(u32::try_from(bits).ok()?.into()))
        }
        IpNet::V6(range) => {
            Some(IpAddr::V6(at(range.network().to_bits(), range.broadcast().to_bits())?.into()))
        }
    }
}

/// Addresses and node ports that the API server would choose.
fn services(objects: &mut Objects, ranges: &[IpNet], assumed: &mut Vec<Assumed>) {
    let taken: Vec<i32> =
        objects.services.iter().flat_map(|s| ports(s).iter().filter_map(|p| p.node_port)).collect();
    let mut node_ports = (NODE_PORT..).filter(|p| !taken.contains(p));
    // Back from the end of the ranges, where the API server comes last, so that they are least like addresses in use.
    let (mut index, mut balancers) = (1, 0);
    for service in &mut objects.services {
        let name = name_of(service);
        let say = |assumed: &mut Vec<Assumed>, text: String| {
            assumed.push(Assumed { service: Some(name.clone()), text: format!("service {name}: {text}") });
        };
        let wants = wanted_families(service, ranges);
        let type_ = type_of(service).to_owned();
        let Some(spec) = service.spec.as_mut() else { continue };
        if type_ == "ExternalName" || spec.cluster_ip.as_deref() == Some("None") {
            continue;
        }
        if spec.cluster_ip.as_deref().unwrap_or_default().is_empty() {
            index += 1;
            let chosen: Vec<String> = wants
                .iter()
                .filter_map(|v6| ranges.iter().find(|r| r.addr().is_ipv6() == *v6))
                .filter_map(|range| from_end(range, index, true))
                .map(|a| a.to_string())
                .collect();
            say(&mut *assumed, format!("no clusterIP yet: {}", stand_in(&chosen)));
            spec.cluster_ip = chosen.first().cloned();
            spec.cluster_ips = Some(chosen);
        }
        let listed =
            spec.cluster_ips.clone().or_else(|| Some(vec![spec.cluster_ip.clone()?])).unwrap_or_default();
        let families = listed.iter().map(|a| if a.contains(':') { "IPv6" } else { "IPv4" }.to_owned());
        spec.ip_families = Some(families.collect());
        let exposed = type_ == "NodePort"
            || (type_ == "LoadBalancer" && spec.allocate_load_balancer_node_ports != Some(false));
        for port in spec.ports.iter_mut().flatten().filter(|_| exposed) {
            if port.node_port.unwrap_or(0) == 0 {
                port.node_port = node_ports.next();
                let number = port.node_port.unwrap_or_default();
                say(&mut *assumed, format!("port {} has no nodePort yet: {number} stands in", port.port));
            }
        }
        let class = spec.load_balancer_class.as_deref().unwrap_or(portolan_lb::CLASS);
        if type_ == "LoadBalancer" && class == portolan_lb::CLASS && ingress(service).is_empty() {
            balancers += 1;
            // TEST-NET-3 (RFC 5737) and the documentation prefix (RFC 3849).
            let chosen: Vec<String> = listed
                .iter()
                .map(|a| {
                    if a.contains(':') {
                        format!("2001:db8:3::{balancers}")
                    } else {
                        format!("203.0.113.{balancers}")
                    }
                })
                .collect();
            say(&mut *assumed, format!("no load-balancer address yet: {}", stand_in(&chosen)));
            let entries: Vec<Value> = chosen.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
            service.status = object(json!({"loadBalancer": {"ingress": entries}}));
        }
    }
}

fn stand_in(chosen: &[String]) -> String {
    format!("{} {} in", chosen.join(" and "), if chosen.len() == 1 { "stands" } else { "stand" })
}

/// The families that a Service would get; `true` is IPv6.
fn wanted_families(service: &Service, ranges: &[IpNet]) -> Vec<bool> {
    let spec = spec(service);
    let first = ranges.first().is_some_and(|r| r.addr().is_ipv6());
    let mut wanted: Vec<bool> = spec.ip_families.iter().flatten().map(|f| f == "IPv6").collect();
    if wanted.is_empty() {
        wanted.push(first);
    }
    let dual = matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"));
    if dual && wanted.len() == 1 {
        wanted.push(!wanted[0]);
    }
    wanted
}

/// Slices as the controller would write them, for Services that select pods and have none.
fn slices(objects: &mut Objects, assumed: &mut Vec<Assumed>) {
    let mut made: Vec<EndpointSlice> = Vec::new();
    for service in &objects.services {
        let name = name_of(service);
        let selects = spec(service).selector.as_ref().is_some_and(|s| !s.is_empty());
        if !selects || objects.slices_of(&name).next().is_some() {
            continue;
        }
        let node = |name: &str| objects.node(name).cloned();
        let pods = objects.pods_of(service);
        let shares = shares(&objects.nodes);
        let changes = desired_slices(service, &pods, &node, &shares, &[], 100);
        for (i, mut slice) in changes.create.into_iter().enumerate() {
            slice.metadata.name = Some(format!("{}-{i}", name.name));
            slice.metadata.namespace = Some(name.namespace.to_string());
            made.push(slice);
        }
    }
    if !made.is_empty() {
        assumed.push("EndpointSlices are derived from the pods, as their controller would".to_owned().into());
    }
    objects.slices.extend(made);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Vec<IpNet> {
        vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()]
    }

    #[test]
    fn a_deployment_and_a_service_as_users_write_them_become_a_cluster() {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": {"app": "web"},
                     "ports": [{"port": 80, "targetPort": "http"}]}});
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}}}});
        let (objects, assumed) = from_manifests(vec![service, deployment], &ranges(), "default").unwrap();
        let web = &objects.services[0];
        assert_eq!(cluster_ips(web).len(), 2, "{assumed:?}");
        assert_eq!(ports(web)[0].node_port, Some(NODE_PORT));
        assert_eq!((objects.nodes.len(), objects.pods.len()), (2, 3));
        let endpoints: Vec<usize> =
            objects.slices.iter().map(|s| s.endpoints.iter().flatten().count()).collect();
        assert_eq!(endpoints, [3, 3], "one slice a family");
        for said in
            ["stand in, node-1", "no clusterIP yet", "no nodePort yet", "3 ready pods stand in", "derived"]
        {
            assert!(assumed.iter().any(|a| a.text.contains(said)), "{said}: {assumed:?}");
        }
    }

    #[test]
    fn a_bare_pod_is_given_what_it_would_get_and_one_that_waits_is_not() {
        let service = json!({"kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let pod = |name: &str, status: Value| {
            json!({"kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c"}]}, "status": status})
        };
        let waits = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]});
        let values = vec![service, pod("bare", Value::Null), pod("waits", waits)];
        let (objects, assumed) = from_manifests(values, &ranges(), "shop").unwrap();
        let bare = objects.pod("shop", "bare").expect("in the namespace that was asked for");
        assert!(control_pods::is_ready(bare) && control_pods::node_name(bare).is_some(), "{bare:?}");
        assert!(!control_pods::is_ready(objects.pod("shop", "waits").unwrap()));
        let slice = &objects.slices[0];
        assert_eq!(slice.endpoints.iter().flatten().filter(|e| e.node_name.is_some()).count(), 1);
        assert!(
            assumed.iter().any(|a| a.text.contains("pod shop/bare: node node-1 and address")),
            "{assumed:?}"
        );
    }

    #[test]
    fn what_is_left_out_is_told_and_manifests_without_a_service_are_no_answer() {
        let map = || json!({"kind": "ConfigMap", "metadata": {"name": "m"}});
        let error = from_manifests(vec![map()], &ranges(), "default").unwrap_err().to_string();
        assert!(error.contains("no Service") && error.contains("ConfigMap"), "{error}");
        let service =
            json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
        let (_, assumed) = from_manifests(vec![map(), service], &ranges(), "default").unwrap();
        assert!(assumed.iter().any(|a| a.text.contains("left out: ConfigMap")), "{assumed:?}");
    }

    #[test]
    fn what_manifests_say_is_kept() {
        let service = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let pod = json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]}, "status": {"podIP": "10.1.0.5"}});
        let node = json!({"kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}});
        let (objects, assumed) = from_manifests(vec![service, pod, node], &ranges(), "default").unwrap();
        assert_eq!(cluster_ips(&objects.services[0]), ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        assert!(control_pods::is_ready(&objects.pods[0]), "it has an address and says nothing else");
        let endpoint = &objects.slices[0].endpoints.as_ref().unwrap()[0];
        assert_eq!(endpoint.addresses, ["10.1.0.5"]);
        let assumed: Vec<&str> = assumed.iter().map(|a| a.text.as_str()).collect();
        assert_eq!(assumed, ["EndpointSlices are derived from the pods, as their controller would"]);
    }
}
