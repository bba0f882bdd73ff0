//! What a plan is made of: backend sets, and the frontends that lead to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::few::Few;

/// A transport protocol that a Service can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The name of a Service: `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

/// Where a connection can end: one port of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port.
    pub port: u16,
}

/// Which of a Service port's two backend sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Usable endpoints of the whole cluster (after topology).
    Cluster,
    /// Usable endpoints on this node.
    Local,
}

/// Names a backend set within its Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    /// The port's name, empty for an unnamed port.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The family of the addresses.
    pub family: Family,
    /// Cluster or local.
    pub scope: Scope,
}

/// A non-empty set of backends among which new connections are spread evenly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSet {
    /// The backends. Never empty: a frontend without backends says `Drop` or `Reject`.
    pub backends: BTreeSet<Backend>,
    /// `sessionAffinity: ClientIP` and its timeout.
    pub affinity: Option<Duration>,
}

/// What clients connect to. At most one Service owns a frontend at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// An address that belongs to the Service: ClusterIP, external IP, load-balancer address.
    Address {
        /// The address.
        address: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// A port of every node address (`NodePlan::node_addresses`) of the family.
    NodePort {
        /// The family.
        family: Family,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
}

/// Which kind of address or port a frontend is, for policies, traces and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.ports[].nodePort`.
    NodePort,
}

/// What happens to a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Spread over the backends of the set of this name in the same [`ServicePlan`].
    Balance(SetName),
    /// Silently dropped: endpoints exist, but none that this policy allows here.
    Drop,
    /// Refused at once (RST, or ICMP port unreachable): there is no endpoint at all.
    Reject,
}

/// Whose connections get this node's address as their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Of a ClusterIP: only sources outside of the cluster (`NodePlan::unmasqueraded`), and hairpins.
    Outsiders,
    /// externalTrafficPolicy Cluster: everyone's.
    Everyone,
    /// externalTrafficPolicy Local: only what starts on this node itself.
    Node,
}

/// What a frontend does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendPlan {
    /// Which kind it is.
    pub kind: FrontendKind,
    /// For connections from anywhere.
    pub action: Action,
    /// For connections from the node itself and its local pods, where that differs (externalTrafficPolicy Local).
    pub inside: Option<Action>,
    /// Source masquerade.
    pub masquerade: Masquerade,
    /// `Some`: only these sources may connect; other sources are dropped. A family without a range is closed.
    pub source_ranges: Option<BTreeSet<IpNet>>,
}

/// The part of a plan that one Service owns on one node, after clashes with other Services are settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// The backend sets that the frontends use; none unused.
    pub sets: Few<SetName, BackendSet>,
    /// The frontends.
    pub frontends: Few<Frontend, FrontendPlan>,
}

/// The part of a plan that belongs to the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// Addresses on which NodePorts answer.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The ranges of cluster IPs, none overlapping another. Anything addressed to them that no Service owns is dropped.
    /// A cluster IP outside of the ranges that the node was told of is in here by itself.
    pub service_cidrs: BTreeSet<IpNet>,
    /// Sources that count as inside: the pods of this node.
    pub inside: BTreeSet<IpNet>,
    /// Sources whose ClusterIP connections keep their source address: the pods of the cluster (this node's).
    pub unmasqueraded: BTreeSet<IpNet>,
    /// Addresses of pods on this node, for connections of a pod to itself.
    pub local_pods: BTreeSet<IpAddr>,
    /// What becomes of connections to a ClusterIP that start neither on this node nor in one of its pods.
    pub cluster_ip_from_outside: FromOutside,
}

/// What becomes of connections to a ClusterIP from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FromOutside {
    /// Dropped before NAT, and counted.
    #[default]
    Refuse,
    /// Forwarded, with this node's address as source (what kube-proxy does).
    Masquerade,
}

/// A whole plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The node's part.
    pub node: NodePlan,
    /// Each Service's part, of those that own a frontend. A frontend occurs in one Service only, and none is an
    /// address of `NodePlan::node_addresses` at a port that another frontend has as its NodePort.
    pub services: BTreeMap<ServiceName, Arc<ServicePlan>>,
}

/// What changed between two plans; applying it to the first gives the second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanChange {
    /// The node's part, if it changed.
    pub node: Option<NodePlan>,
    /// Services that changed: their new part, or `None` where they are gone. Frontends that move between Services
    /// are in one change, whatever the order of the entries.
    pub services: BTreeMap<ServiceName, Option<Arc<ServicePlan>>>,
}

// === impl ===

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

impl FrontendPlan {
    /// The sets that its actions name.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        [Some(&self.action), self.inside.as_ref()].into_iter().flatten().filter_map(|action| match action {
            Action::Balance(set) => Some(set),
            Action::Drop | Action::Reject => None,
        })
    }
}

impl FrontendKind {
    /// The field of a Service that makes such a frontend.
    pub fn field(self) -> &'static str {
        match self {
            FrontendKind::ClusterIp => "spec.clusterIPs",
            FrontendKind::ExternalIp => "spec.externalIPs",
            FrontendKind::LoadBalancer => "status.loadBalancer.ingress",
            FrontendKind::NodePort => "spec.ports[].nodePort",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frontend::Address { address: IpAddr::V4(a), protocol, port } => {
                write!(f, "{a}:{port}/{protocol}")
            }
            Frontend::Address { address: IpAddr::V6(a), protocol, port } => {
                write!(f, "[{a}]:{port}/{protocol}")
            }
            Frontend::NodePort { family, protocol, port } => {
                write!(f, "{family} node port {port}/{protocol}")
            }
        }
    }
}

impl Frontend {
    /// The frontend's family.
    pub fn family(&self) -> Family {
        match self {
            Frontend::Address { address, .. } => Family::of(*address),
            Frontend::NodePort { family, .. } => *family,
        }
    }
}

impl ServiceName {
    /// `namespace/name` from its two parts.
    pub fn new(namespace: &str, name: &str) -> ServiceName {
        ServiceName { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl PlanChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.services.is_empty()
    }
}

impl Plan {
    /// Applies a change.
    pub fn apply(&mut self, change: &PlanChange) {
        if let Some(node) = &change.node {
            self.node = node.clone();
        }
        for (name, part) in &change.services {
            match part {
                Some(part) => self.services.insert(name.clone(), part.clone()),
                None => self.services.remove(name),
            };
        }
    }
}
