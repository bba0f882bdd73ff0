//! What the API says, or manifests do: the objects that a Service depends on, and small questions about them.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use portolan_control::SERVICE_NAME;
use portolan_plan::model::{Family, Protocol, ServiceName};

/// The label by which a Service is somebody else's to forward (KEP-2447).
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Objects. Those of other namespaces than the Service's are only there as far as they matter.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// All Services.
    pub services: Vec<Service>,
    /// The slices of the Services in question.
    pub slices: Vec<EndpointSlice>,
    /// The pods of the Service's namespace.
    pub pods: Vec<Arc<Pod>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// The nodes' leases.
    pub leases: Vec<Lease>,
    /// The Deployments of the Service's namespace.
    pub deployments: Vec<Deployment>,
    /// The StatefulSets of the Service's namespace.
    pub statefulsets: Vec<StatefulSet>,
    /// The ReplicaSets of the Service's namespace.
    pub replicasets: Vec<ReplicaSet>,
    /// The events of the Service's namespace.
    pub events: Vec<Event>,
    /// The NetworkPolicies of the Service's namespace.
    pub policies: Vec<NetworkPolicy>,
}

impl Objects {
    /// A Service by its name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|s| name_of(s) == *name)
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|n| n.name_any() == name)
    }

    /// A pod by its name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.iter().find(|p| p.namespace().as_deref() == Some(namespace) && p.name_any() == name)
    }

    /// The pod that has an address of its own.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.pods.iter().find(|p| !uses_host_network(p) && is_live(p) && pod_addresses(p).contains(&address))
    }

    /// The node that has an address.
    pub fn node_at(&self, address: IpAddr) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|n| node_addresses(n).contains(&address))
    }

    /// The slices that belong to a Service.
    pub fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.iter().filter(move |slice| {
            slice.namespace().as_deref() == Some(&*service.namespace)
                && slice.labels().get(SERVICE_NAME).is_some_and(|n| **n == *service.name)
        })
    }

    /// The pods that a Service selects.
    pub fn pods_of(&self, service: &Service) -> Vec<Arc<Pod>> {
        let same = |pod: &&Arc<Pod>| pod.namespace() == service.namespace();
        let selected = |pod: &&Arc<Pod>| portolan_control::pods::selects(service, pod.labels());
        self.pods.iter().filter(same).filter(selected).cloned().collect()
    }

    /// The latest event about an object for one of these reasons.
    pub fn event<K: Resource<DynamicType = ()>>(&self, about: &K, reasons: &[&str]) -> Option<&Event> {
        let is_about = |event: &&Event| {
            let object = &event.involved_object;
            object.kind.as_deref() == Some(&*K::kind(&()))
                && object.name == about.meta().name
                && object.namespace == about.meta().namespace
                // Of an earlier object of the same name: not of this one.
                && (object.uid.is_none() || about.meta().uid.is_none() || object.uid == about.meta().uid)
        };
        let wanted = |event: &&Event| event.reason.as_deref().is_some_and(|r| reasons.contains(&r));
        let time = |event: &Event| {
            let last = event.last_timestamp.as_ref().map(|t| t.0);
            last.or(event.event_time.as_ref().map(|t| t.0))
        };
        self.events.iter().filter(is_about).filter(wanted).max_by_key(|event| time(event))
    }
}

/// The name of a Service object.
pub fn name_of(service: &Service) -> ServiceName {
    let meta: &ObjectMeta = &service.metadata;
    ServiceName::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

static NO_SPEC: std::sync::LazyLock<ServiceSpec> = std::sync::LazyLock::new(ServiceSpec::default);

/// The spec of a Service.
pub fn spec(service: &Service) -> &ServiceSpec {
    service.spec.as_ref().unwrap_or(&NO_SPEC)
}

/// The type of a Service.
pub fn type_of(service: &Service) -> &str {
    spec(service).type_.as_deref().unwrap_or("ClusterIP")
}

/// The ports of a Service.
pub fn ports(service: &Service) -> &[ServicePort] {
    spec(service).ports.as_deref().unwrap_or_default()
}

/// The protocol of a port, in the API's words.
pub fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP")
}

/// Whether a port has this protocol.
pub fn carries(port: &ServicePort, wanted: Protocol) -> bool {
    protocol(port) == wanted.to_string()
}

/// The cluster IPs of a Service.
pub fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = spec(service);
    let listed = spec.cluster_ips.as_deref().filter(|l| !l.is_empty());
    let single = spec.cluster_ip.as_slice();
    listed.unwrap_or(single).iter().filter_map(|a| a.parse().ok()).collect()
}

/// Whether a Service has no address on purpose.
pub fn is_headless(service: &Service) -> bool {
    spec(service).cluster_ip.as_deref() == Some("None")
}

/// The addresses of a Service's load balancers, and whether the load balancer wants the traffic itself (`ipMode: Proxy`).
pub fn ingress(service: &Service) -> Vec<(IpAddr, bool)> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    let proxy = |mode: Option<&str>| mode == Some("Proxy");
    let of = |i: &k8s_openapi::api::core::v1::LoadBalancerIngress| {
        Some((i.ip.as_deref()?.parse().ok()?, proxy(i.ip_mode.as_deref())))
    };
    status.unwrap_or_default().iter().filter_map(of).collect()
}

/// `spec.externalIPs`.
pub fn external_ips(service: &Service) -> Vec<IpAddr> {
    spec(service).external_ips.iter().flatten().filter_map(|a| a.parse().ok()).collect()
}

/// The addresses of a pod.
pub fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all: Vec<IpAddr> = Vec::new();
    for address in listed.chain(status.pod_ip.as_deref()).filter_map(|a| a.parse().ok()) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// Whether a pod has its node's addresses.
pub fn uses_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

/// Whether a pod may still answer.
pub fn is_live(pod: &Pod) -> bool {
    !portolan_control::pods::is_terminal(pod)
}

/// The addresses of a node.
pub fn node_addresses(node: &Node) -> Vec<IpAddr> {
    portolan_agent::from_kube::node(node).0.addresses
}

/// Whether a node says that it is ready.
pub fn is_node_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// How the container runtime of Portolan's nodes calls itself: there pods are routed to by the kernel's table.
const RUNTIME: &str = "portolan://";

/// Whether `portolan node` runs a node.
pub fn is_portolans(node: &Node) -> bool {
    let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
    info.is_some_and(|i| i.container_runtime_version.starts_with(RUNTIME))
}

/// The first address of a family, or the first of all if any will do.
pub fn of_family(addresses: &[IpAddr], family: Option<Family>) -> Option<IpAddr> {
    addresses.iter().copied().find(|a| family.is_none_or(|f| Family::of(*a) == f))
}
