//! API objects to the views that planning needs; translates, and never chooses.
//!
//! What can't be translated is left out and named in a finding; the rest of the object goes on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::jiff::Timestamp;
use portolan_plan::finding::{Finding, Object};
use portolan_plan::model::{Family, Protocol, ServiceName};
use portolan_plan::view::*;

/// Services that another proxy carries are not watched (KEP-2447).
pub const SERVICE_SELECTOR: &str = "!service.kubernetes.io/service-proxy-name";
/// Nor are their slices, nor those of headless Services. The slice controller copies a Service's labels to its slices.
pub const SLICE_SELECTOR: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// The label of a slice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation of a slice that says since when it was to be written (k8s.io/api core/v1 annotation_key_constants.go).
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The older form of `spec.loadBalancerSourceRanges`; the field goes before it.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` where it isn't given.
const AFFINITY_SECONDS: u64 = 10800;

/// Strings and hints that many endpoints share, held once.
#[derive(Debug, Default)]
pub struct Names {
    strings: BTreeSet<Arc<str>>,
    hints: BTreeSet<Arc<Hints>>,
    /// At which size to look for entries that nobody uses any more.
    sweep_at: usize,
}

impl Names {
    fn string(&mut self, s: &str) -> Arc<str> {
        if let Some(shared) = self.strings.get(s) {
            return shared.clone();
        }
        if self.strings.len() + self.hints.len() >= self.sweep_at {
            self.hints.retain(|h| Arc::strong_count(h) > 1);
            self.strings.retain(|s| Arc::strong_count(s) > 1);
            self.sweep_at = 1024.max(2 * (self.strings.len() + self.hints.len()));
        }
        let shared: Arc<str> = s.into();
        self.strings.insert(shared.clone());
        shared
    }

    fn hints(&mut self, hints: Hints) -> Arc<Hints> {
        if let Some(shared) = self.hints.get(&hints) {
            return shared.clone();
        }
        let shared = Arc::new(hints);
        self.hints.insert(shared.clone());
        shared
    }
}

/// The name of an object in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

/// The name of a namespaced object.
pub fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    Key {
        namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
        name: metadata.name.as_deref().unwrap_or_default().into(),
    }
}

/// A Service. `None` if nodes have nothing to do with it: it is headless or an alias.
pub fn service(service: &Service) -> (Option<ServiceView>, Vec<Finding>) {
    let Key { namespace, name } = key(&service.metadata);
    let name = ServiceName { namespace, name };
    let none = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&none);
    let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    if type_ == "ExternalName" || first == "None" || first.is_empty() {
        return (None, Vec::new());
    }

    let mut bad = Bad { name: &name, findings: Vec::new() };
    let cluster_ips = match spec.cluster_ips.as_deref() {
        None | Some([]) => bad.addresses("spec.clusterIP", std::slice::from_ref(&first)),
        Some(list) => bad.addresses("spec.clusterIPs", list),
    };
    let view = ServiceView {
        created: service.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
        cluster_ips,
        external_ips: bad.addresses("spec.externalIPs", spec.external_ips.as_deref().unwrap_or_default()),
        load_balancer: if type_ == "LoadBalancer" { ingress(service, &mut bad) } else { Vec::new() },
        ports: spec.ports.iter().flatten().enumerate().filter_map(|(i, p)| port(p, i, &mut bad)).collect(),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        affinity: affinity(spec),
        source_ranges: if type_ == "LoadBalancer" { source_ranges(service, spec, &mut bad) } else { None },
        health_check_node_port: spec.health_check_node_port.and_then(number),
        name: name.clone(),
    };
    (Some(view), bad.findings)
}

/// What of one Service couldn't be understood.
struct Bad<'a> {
    name: &'a ServiceName,
    findings: Vec<Finding>,
}

impl Bad<'_> {
    fn note(&mut self, field: String, text: String) {
        self.findings.push(Finding::service(self.name, field, text));
    }

    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let address = address(text);
        if address.is_none() {
            self.note(field.to_owned(), format!("{text:?} is not an IP address and is left out; correct it"));
        }
        address
    }

    fn addresses(&mut self, field: &str, list: &[impl AsRef<str>]) -> Vec<IpAddr> {
        list.iter()
            .enumerate()
            .filter_map(|(i, a)| self.address(&format!("{field}[{i}]"), a.as_ref()))
            .collect()
    }
}

/// Go's parser took leading zeros for decimal, so that stored objects may have them (KEP-4858).
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let octets: Vec<u8> = text.split('.').map(|o| o.parse().ok()).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn policy(name: Option<&str>) -> TrafficPolicy {
    match name {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

fn port(port: &ServicePort, i: usize, bad: &mut Bad<'_>) -> Option<PortView> {
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        bad.note(
            format!("spec.ports[{i}].protocol"),
            format!(
                "{:?} is not carried; use TCP, UDP or SCTP",
                port.protocol.as_deref().unwrap_or_default()
            ),
        );
        return None;
    };
    let Some(number_) = number(port.port) else {
        bad.note(format!("spec.ports[{i}].port"), format!("{} is not a port; use 1 to 65535", port.port));
        return None;
    };
    Some(PortView {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol,
        port: number_,
        node_port: port.node_port.and_then(number),
    })
}

fn ingress(service: &Service, bad: &mut Bad<'_>) -> Vec<IngressView> {
    let list = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    let mut views = Vec::new();
    for (i, ingress) in list.unwrap_or_default().iter().enumerate() {
        let Some(text) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        if let Some(ip) = bad.address(&format!("status.loadBalancer.ingress[{i}].ip"), text) {
            views.push(IngressView { ip, proxy: ingress.ip_mode.as_deref() == Some("Proxy") });
        }
    }
    views
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    Some(Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(AFFINITY_SECONDS)))
}

fn source_ranges(service: &Service, spec: &ServiceSpec, bad: &mut Bad<'_>) -> Option<Vec<IpNet>> {
    let given = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let annotation = service.metadata.annotations.as_ref().and_then(|a| a.get(SOURCE_RANGES));
    let (field, texts): (String, Vec<&str>) = match annotation {
        _ if !given.is_empty() => {
            ("spec.loadBalancerSourceRanges".into(), given.iter().map(String::as_str).collect())
        }
        Some(list) if !list.trim().is_empty() => {
            (format!("metadata.annotations[{SOURCE_RANGES}]"), list.split(',').collect())
        }
        _ => return None,
    };
    let mut ranges = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match range(text.trim()) {
            Some(range) => ranges.push(range),
            None => bad.note(
                format!("{field}[{i}]"),
                format!("{text:?} is not a range like 192.0.2.0/24 and lets nobody in; correct it"),
            ),
        }
    }
    Some(ranges)
}

fn range(text: &str) -> Option<IpNet> {
    let (address_, prefix) = text.split_once('/')?;
    IpNet::new(address(address_)?, prefix.parse().ok()?).ok()
}

/// A slice: the Service it belongs to, and its view. `None` if it has no Service, or is of names instead of addresses.
pub fn slice(slice: &EndpointSlice, names: &mut Names) -> Option<(ServiceName, SliceView)> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME).filter(|s| !s.is_empty())?;
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let service = ServiceName { namespace: names.string(namespace), name: service.as_str().into() };
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        // A port without a number means all ports to the API, but nothing to nodes (k8s.io/api discovery/v1). An absent name is
        // the unnamed port: the API defaults it to "".
        Some(SlicePort {
            name: names.string(port.name.as_deref().unwrap_or_default()),
            protocol: protocol(port.protocol.as_deref())?,
            port: port.port.and_then(number)?,
        })
    });
    let ports = ports.collect();
    let endpoints = slice.endpoints.iter().flatten().filter_map(|e| endpoint(e, family, names)).collect();
    Some((service, SliceView { family, ports, endpoints }))
}

fn endpoint(endpoint: &Endpoint, family: Family, names: &mut Names) -> Option<EndpointView> {
    let address = address(endpoint.addresses.first()?).filter(|a| Family::of(*a) == family)?;
    let conditions = endpoint.conditions.as_ref();
    Some(EndpointView {
        address,
        node: endpoint.node_name.as_deref().map(|n| names.string(n)),
        // discovery/v1 types.go: nil ready is true, nil serving is true, nil terminating is false.
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        hints: endpoint.hints.as_ref().and_then(|hints| {
            let zones: Vec<_> = hints.for_zones.iter().flatten().map(|z| names.string(&z.name)).collect();
            let nodes: Vec<_> = hints.for_nodes.iter().flatten().map(|n| names.string(&n.name)).collect();
            (!zones.is_empty() || !nodes.is_empty()).then(|| names.hints(Hints { zones, nodes }))
        }),
    })
}

/// When the change in the cluster happened that a slice follows, if its writer noted it.
pub fn trigger(slice: &EndpointSlice) -> Option<SystemTime> {
    let text = slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// The ranges of a ServiceCIDR; what isn't a range is left out.
pub fn service_cidr(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let texts = cidr.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default();
    texts.iter().filter_map(|text| Some(range(text)?.trunc())).collect()
}

/// What the API says of a node; what it was told otherwise is the agent's to add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSeen {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` that are addresses, internal ones first, otherwise in their order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: BTreeSet<IpNet>,
}

/// A node.
pub fn node(node: &Node) -> (NodeSeen, Vec<Finding>) {
    let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
    let mut findings = Vec::new();
    let mut note = |field: String, text: String| {
        findings.push(Finding { object: Object::Node(name.clone()), field: field.into(), text });
    };
    let listed = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let mut addresses = Vec::new();
    // The primary address of a node is its first InternalIP; ExternalIPs may be translated on the way and not be the
    // machine's own, so they come after.
    for wanted in ["InternalIP", "ExternalIP"] {
        for (i, entry) in listed.iter().enumerate().filter(|(_, a)| a.type_ == wanted) {
            match address(&entry.address) {
                Some(address) if !addresses.contains(&address) => addresses.push(address),
                Some(_) => {}
                None => note(
                    format!("status.addresses[{i}].address"),
                    format!("{:?} is not an IP address and is left out", entry.address),
                ),
            }
        }
    }
    let spec = node.spec.as_ref();
    let mut texts: Vec<&str> =
        spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten().map(String::as_str).collect();
    if texts.is_empty() {
        texts.extend(spec.and_then(|s| s.pod_cidr.as_deref()).filter(|c| !c.is_empty()));
    }
    let mut pod_cidrs = BTreeSet::new();
    for (i, text) in texts.iter().enumerate() {
        match range(text) {
            Some(range) => {
                pod_cidrs.insert(range);
            }
            None => note(format!("spec.podCIDRs[{i}]"), format!("{text:?} is not a range and is left out")),
        }
    }
    let zone = node.metadata.labels.as_ref().and_then(|l| l.get(ZONE)).filter(|z| !z.is_empty());
    (NodeSeen { zone: zone.map(|z| z.as_str().into()), addresses, pod_cidrs }, findings)
}
