//! What a check has to know of a cluster: Services, their endpoints, the places to try from. Made from API objects; pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::cluster;
use super::topology::{IpFamily, Transport};

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSight {
    /// Its `namespace/name`.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// Its host name.
    pub hostname: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it answers with its host name.
    pub echo: bool,
    /// Whether it uses its node's network.
    pub host_network: bool,
}

/// A ready endpoint of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its node, if it is on one.
    pub node: Option<String>,
    /// The pod behind it, as `namespace/name`.
    pub pod: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSight {
    /// The port.
    pub port: u16,
    /// The NodePort.
    pub node_port: Option<u16>,
    /// The protocol; none for those that are not tried.
    pub protocol: Option<Transport>,
    /// As kubectl writes it: `80/TCP`.
    pub text: String,
    /// The ready endpoints, of all families.
    pub endpoints: Vec<Endpoint>,
}

/// A Service that has an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSight {
    /// Its `namespace/name`.
    pub name: String,
    /// Its ClusterIPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Its load balancers' addresses.
    pub load_balancers: Vec<IpAddr>,
    /// Its external addresses.
    pub external_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<PortSight>,
    /// externalTrafficPolicy: Local.
    pub external_local: bool,
    /// internalTrafficPolicy: Local.
    pub internal_local: bool,
    /// sessionAffinity: ClientIP.
    pub affinity: bool,
    /// loadBalancerSourceRanges.
    pub source_ranges: Vec<IpNet>,
}

impl ServiceSight {
    /// Its families.
    pub fn families(&self) -> impl Iterator<Item = IpFamily> {
        self.cluster_ips.iter().map(|address| IpFamily::of(*address))
    }
}

/// Pods with an address that are not on their way out, by `namespace/name`.
pub fn pods(pods: &[Pod]) -> BTreeMap<String, PodSight> {
    let mut all = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { continue };
        let Some(node) = spec.node_name.clone() else { continue };
        let addresses: Vec<IpAddr> =
            status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        let host_network = spec.host_network.unwrap_or(false);
        let name = pod.metadata.name.clone().unwrap_or_default();
        let echo = |image: &Option<String>| matches!(image.as_deref(), Some("echo" | "echo-abrupt"));
        let sight = PodSight {
            name: cluster::key(pod),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            hostname: match host_network {
                true => node.clone(),
                false => spec.hostname.clone().unwrap_or(name),
            },
            node,
            addresses,
            echo: spec.containers.iter().all(|c| echo(&c.image)),
            host_network,
        };
        if !sight.addresses.is_empty() {
            all.insert(sight.name.clone(), sight);
        }
    }
    all
}

/// The Services that have a ClusterIP, with their ready endpoints.
pub fn services(services: &[Service], slices: &[EndpointSlice]) -> Vec<ServiceSight> {
    let mut all = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let parsed = |texts: &Option<Vec<String>>| -> Vec<IpAddr> {
            texts.iter().flatten().filter_map(|text| text.parse().ok()).collect()
        };
        // Neither a headless Service ("None") nor an ExternalName has an address that a node forwards.
        let cluster_ips = parsed(&spec.cluster_ips);
        if cluster_ips.is_empty() {
            continue;
        }
        let name = cluster::key(service);
        let ours: Vec<&EndpointSlice> =
            slices.iter().filter(|slice| owner(slice) == Some(name.clone())).collect();
        all.push(ServiceSight {
            cluster_ips,
            load_balancers: super::bring_up::load_balancer_addresses(service),
            external_ips: parsed(&spec.external_ips),
            ports: spec.ports.iter().flatten().filter_map(|port| port_sight(port, &ours)).collect(),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|range| range.trim().parse().ok())
                .collect(),
            name,
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn owner(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default()))
}

fn port_sight(port: &ServicePort, slices: &[&EndpointSlice]) -> Option<PortSight> {
    let word = port.protocol.as_deref().unwrap_or("TCP");
    let number = u16::try_from(port.port).ok()?;
    let mut endpoints = Vec::new();
    for slice in slices {
        let named = |p: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && p.protocol.as_deref().unwrap_or("TCP") == word
        };
        if !slice.ports.iter().flatten().any(|p| named(&p)) {
            continue;
        }
        for endpoint in slice.endpoints.iter().flatten() {
            if !endpoint.conditions.as_ref().is_none_or(|c| c.ready.unwrap_or(true)) {
                continue;
            }
            // One address an endpoint: further ones have no meaning (EndpointSlice's own documentation).
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
            let pod =
                endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|t| {
                    Some(format!("{}/{}", t.namespace.as_deref().unwrap_or_default(), t.name.as_deref()?))
                });
            endpoints.push(Endpoint { address, node: endpoint.node_name.clone(), pod });
        }
    }
    Some(PortSight {
        port: number,
        node_port: port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0),
        protocol: match word {
            "TCP" => Some(Transport::Tcp),
            "UDP" => Some(Transport::Udp),
            _ => None,
        },
        text: format!("{number}/{word}"),
        endpoints,
    })
}
