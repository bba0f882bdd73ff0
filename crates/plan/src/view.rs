//! What planning needs to know of Services, endpoints and the node: the input of a plan.
//!
//! Sized for 100,000 Services of 10 endpoints: names are shared (`Arc<str>`), an endpoint owns no allocation of its own,
//! and a slice is shared between whoever watches and the planner (`Arc<SliceView>`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::{Family, FromOutside, Protocol, ServiceName};

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any usable endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// One Service that a node forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// When it was created, in seconds of the Unix epoch: of two Services that claim one frontend, the older keeps it.
    pub created: i64,
    /// `spec.clusterIPs`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress` of a Service of type LoadBalancer, those that have an address.
    pub load_balancer: Vec<IngressView>,
    /// `spec.ports`.
    pub ports: Vec<PortView>,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `sessionAffinity: ClientIP`, and its timeout.
    pub affinity: Option<Duration>,
    /// `spec.loadBalancerSourceRanges`; an empty list (all were malformed) lets nobody in.
    pub source_ranges: Option<Vec<IpNet>>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
}

/// One address of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressView {
    /// The address.
    pub ip: IpAddr,
    /// `ipMode: Proxy`: the load balancer wants the traffic itself, so nodes do not capture it.
    pub proxy: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Its name; empty for the only port of a Service.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that clients connect to.
    pub port: u16,
    /// The port of every node, if it has one.
    pub node_port: Option<u16>,
}

/// The endpoints of one Service: its slices by name. Merging them is planning ([`crate::service::plan_service`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsView {
    /// The slices.
    pub slices: BTreeMap<Arc<str>, Arc<SliceView>>,
}

/// One EndpointSlice of family IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceView {
    /// The family of all addresses.
    pub family: Family,
    /// The ports, each for all endpoints of the slice.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the endpoint.
    pub port: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Its first address; the others have no meaning.
    pub address: IpAddr,
    /// The node that it runs on.
    pub node: Option<Arc<str>>,
    /// Takes new connections.
    pub ready: bool,
    /// Still answers, whether or not it is terminating.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// For whom it is meant, if the control plane said so. Shared, since endpoints of a zone have the same hints.
    pub hints: Option<Arc<Hints>>,
}

/// The hints of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hints {
    /// `hints.forZones`.
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes`.
    pub nodes: Vec<Arc<str>>,
}

/// The node that is planned for, and how it was told to treat Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The addresses of the Node object, in its order: the first of a family is the primary one.
    pub addresses: Vec<IpAddr>,
    /// The addresses that the machine has, as far as known.
    pub local_addresses: BTreeSet<IpAddr>,
    /// On which of them NodePorts answer.
    pub node_ports: NodePortAddresses,
    /// Which external IPs are captured.
    pub external_ips: ExternalIps,
    /// The ranges of its pods.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// The ranges of cluster IPs.
    pub service_cidrs: BTreeSet<IpNet>,
    /// What becomes of connections to a ClusterIP from outside.
    pub cluster_ip_from_outside: FromOutside,
    /// Masquerade every connection to a ClusterIP, those of pods too.
    pub masquerade_all: bool,
}

/// On which addresses of the node NodePorts answer: on all that are named in any way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// The first address of each family.
    pub primary: bool,
    /// 127.0.0.1 and ::1.
    pub localhost: bool,
    /// Every address but loopback.
    pub all: bool,
    /// Those in these ranges; 127.0.0.0/8 and ::1/128 name localhost, shorter ones don't. Where nothing else is named, a
    /// family without a range means every address of it but loopback, as kube-proxy has it.
    pub ranges: Vec<IpNet>,
}

impl NodePortAddresses {
    /// The first address of each family: the default of kube-proxy's nftables mode.
    pub fn primary() -> NodePortAddresses {
        NodePortAddresses { primary: true, ..NodePortAddresses::default() }
    }

    /// Whether NodePorts answer on 127.0.0.1 and ::1.
    pub fn has_localhost(&self) -> bool {
        let loopback = |r: &IpNet| r.network().is_loopback() && r.prefix_len() >= 8;
        self.localhost || self.ranges.iter().any(loopback)
    }
}

/// Which of the addresses in `spec.externalIPs` are captured, of those that no cluster IP forbids. Whoever may write a
/// Service may name any address there (CVE-2020-8554), so the node's owner says which are theirs to give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// Any but addresses of this node's pods; the oldest Service that names one has it.
    #[default]
    Any,
    /// Those in these ranges.
    Within(Vec<IpNet>),
    /// None (as kube-proxy without its gate `AllowServiceExternalIPs`).
    None,
}

impl NodeView {
    /// A node of which only the name is known.
    pub fn named(name: &str) -> NodeView {
        NodeView {
            name: name.into(),
            zone: None,
            addresses: Vec::new(),
            local_addresses: BTreeSet::new(),
            node_ports: NodePortAddresses::primary(),
            external_ips: ExternalIps::Any,
            pod_cidrs: BTreeSet::new(),
            service_cidrs: BTreeSet::new(),
            cluster_ip_from_outside: FromOutside::default(),
            masquerade_all: false,
        }
    }
}
