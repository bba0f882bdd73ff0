//! The first step of planning: what one Service asks of a node, from its endpoints and the node alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::finding::Finding;
use crate::model::*;
use crate::view::*;

/// What one Service asks for. What it gets is decided with the others ([`crate::claims`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceClaims {
    /// When the Service was created.
    pub created: i64,
    /// What it would own if nobody else claimed any of its frontends.
    pub wanted: Arc<ServicePlan>,
    /// Addresses of its endpoints on this node, usable or not.
    pub local_pods: BTreeSet<IpAddr>,
    /// For each UDP frontend in `wanted`: what becomes of flows to its endpoints.
    pub udp_backends: BTreeMap<Frontend, Arc<UdpBackends>>,
    /// What load balancers may ask of this node.
    pub health_check: Option<HealthCheck>,
}

/// The endpoints of a UDP frontend, by what becomes of flows to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpBackends {
    /// They still serve, usable for new flows or not: a flow to one of them goes on, and a flow to any other endpoint has to
    /// choose again (as in kube-proxy's pkg/proxy/conntrack).
    pub serving: BTreeSet<Backend>,
    /// They say that they don't, but are there: they may still owe an answer.
    pub leaving: BTreeSet<Backend>,
}

impl UdpBackends {
    /// Whether flows that these let go on have to choose again under others.
    pub(crate) fn lose_flows_under(&self, others: &UdpBackends) -> bool {
        let known = |b: &Backend| others.serving.contains(b) || others.leaving.contains(b);
        !self.serving.is_subset(&others.serving) || !self.leaving.iter().all(known)
    }

    /// Those of `now` and those that served `then`, so that a flow to one of either goes on.
    pub fn that_serve_or_did(now: &Arc<UdpBackends>, then: &UdpBackends) -> Arc<UdpBackends> {
        if then.serving.is_subset(&now.serving) {
            return now.clone();
        }
        let mut all = UdpBackends::clone(now);
        all.serving.extend(&then.serving);
        Arc::new(all)
    }
}

/// `spec.healthCheckNodePort`: by asking it a load balancer learns whether this node has endpoints of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port on which it is asked.
    pub port: u16,
    /// How many endpoints on this node are ready. Those that only finish their work don't count: new connections are
    /// better sent elsewhere (as in kube-proxy's pkg/proxy/healthcheck).
    pub local_ready: usize,
}

/// Plans one Service.
pub fn plan_service(
    service: &ServiceView,
    endpoints: &EndpointsView,
    node: &NodeView,
) -> (ServiceClaims, Vec<Finding>) {
    let mut findings = Vec::new();
    let merged = merge(endpoints, node);
    let vips = vips(service, node, &mut findings);
    let families: BTreeSet<Family> = service.cluster_ips.iter().map(|a| Family::of(*a)).collect();
    let mut plan = ServicePlan::default();
    let mut udp_backends = BTreeMap::new();
    for port in &service.ports {
        for &family in &families {
            let made = plan_port(service, port, family, &merged, &vips, node, &mut plan);
            if port.protocol == Protocol::Udp {
                let backends = Arc::new(backends(&merged, port, family));
                udp_backends.extend(made.into_iter().map(|f| (f, backends.clone())));
            }
        }
    }
    let local_pods =
        merged.values().flat_map(|m| m.values()).filter(|e| is_local(e, node)).map(|e| e.address).collect();
    let ready = merged.values().flat_map(|m| m.values()).filter(|e| e.ready && is_local(e, node));
    let local_ready: BTreeSet<IpAddr> = ready.map(|e| e.address).collect();
    // A pod of both families is one endpoint.
    let of_family = |family| local_ready.iter().filter(|a| Family::of(**a) == family).count();
    let local_ready = of_family(Family::V4).max(of_family(Family::V6));
    let health_check = service.health_check_node_port.map(|port| HealthCheck { port, local_ready });
    let wanted = Arc::new(plan);
    (ServiceClaims { created: service.created, wanted, local_pods, udp_backends, health_check }, findings)
}

/// An address of a Service that is captured, and for whom.
struct Vip {
    address: IpAddr,
    kind: FrontendKind,
    source_ranges: Option<BTreeSet<IpNet>>,
}

fn vips(service: &ServiceView, node: &NodeView, findings: &mut Vec<Finding>) -> Vec<Vip> {
    let mut vips: Vec<Vip> = Vec::new();
    for &address in &service.cluster_ips {
        vips.push(Vip { address, kind: FrontendKind::ClusterIp, source_ranges: None });
    }
    // Before external IPs: if one address is both, the claim with source ranges must be the one that stays.
    let mut closed = BTreeSet::new();
    for (i, ingress) in service.load_balancer.iter().enumerate() {
        if ingress.proxy {
            continue; // KEP-1860: the traffic goes to the load balancer
        }
        let field = format!("status.loadBalancer.ingress[{i}].ip");
        if refused(service, node, ingress.ip, &field, findings) {
            continue;
        }
        let source_ranges = ranges_for(service, node, ingress.ip);
        if source_ranges.as_ref().is_some_and(|r| r.is_empty()) && closed.insert(Family::of(ingress.ip)) {
            let family = Family::of(ingress.ip);
            findings.push(Finding::service(
                &service.name,
                "spec.loadBalancerSourceRanges",
                format!(
                    "no valid {family} range is given, so {} is closed to everyone; add {family} ranges",
                    ingress.ip
                ),
            ));
        }
        vips.push(Vip { address: ingress.ip, kind: FrontendKind::LoadBalancer, source_ranges });
    }
    for (i, &address) in service.external_ips.iter().enumerate() {
        let field = format!("spec.externalIPs[{i}]");
        if refused(service, node, address, &field, findings) {
            continue;
        }
        if let Some(why) = not_to_be_given(node, address) {
            findings.push(Finding::service(&service.name, field, why));
            continue;
        }
        if node.addresses.contains(&address) || node.local_addresses.contains(&address) {
            findings.push(Finding::service(
                &service.name,
                field,
                format!(
                    "{address} is an address of node {}: connections to these ports of the node itself now go \
                     to the Service",
                    node.name
                ),
            ));
        }
        vips.push(Vip { address, kind: FrontendKind::ExternalIp, source_ranges: None });
    }
    vips
}

/// Whether an external or load-balancer address can't be captured at all.
///
/// An address inside of the cluster IPs' ranges is not taken from whoever owns it or will own it (CVE-2020-8554).
fn refused(
    service: &ServiceView,
    node: &NodeView,
    ip: IpAddr,
    field: &str,
    findings: &mut Vec<Finding>,
) -> bool {
    let why = if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        format!(
            "{ip} is a loopback, unspecified or multicast address and is not captured; use a unicast address"
        )
    } else if node.service_cidrs.iter().any(|r| r.contains(&ip)) {
        format!(
            "{ip} lies in a range of cluster IPs and is not captured; use an address outside of these ranges"
        )
    } else if !service.cluster_ips.iter().any(|c| Family::of(*c) == Family::of(ip)) {
        format!(
            "{ip} is {} but the Service has no cluster IP of that family; see spec.ipFamilies",
            Family::of(ip)
        )
    } else {
        return false;
    };
    findings.push(Finding::service(&service.name, field.to_owned(), why));
    true
}

/// Why an external IP is not this node's to give to a Service.
fn not_to_be_given(node: &NodeView, ip: IpAddr) -> Option<String> {
    match &node.external_ips {
        ExternalIps::Any => node.pod_cidrs.iter().find(|r| r.contains(&ip)).map(|range| {
            format!(
                "{ip} lies in {range}, the pods' range of node {}, and is not captured; use another",
                node.name
            )
        }),
        ExternalIps::Within(ranges) if ranges.iter().any(|r| r.contains(&ip)) => None,
        ExternalIps::Within(_) => Some(format!(
            "{ip} is in none of the ranges that node {} captures external IPs in; use an address inside of them, or \
             have them extended",
            node.name
        )),
        ExternalIps::None => Some(format!(
            "node {} captures no external IPs; use a Service of type LoadBalancer, or have external IPs allowed",
            node.name
        )),
    }
}

/// The source ranges that hold for a load balancer's address: only those of its family, so that a family without a
/// range is closed. (kube-proxy 1.36 leaves it open: it drops the other family's ranges before it looks for any.)
fn ranges_for(service: &ServiceView, node: &NodeView, vip: IpAddr) -> Option<BTreeSet<IpNet>> {
    let family = Family::of(vip);
    let mut ranges: BTreeSet<IpNet> = service
        .source_ranges
        .as_ref()?
        .iter()
        .filter(|r| Family::of(r.addr()) == family)
        .map(|r| r.trunc())
        .collect();
    if ranges.iter().any(|r| r.prefix_len() == 0) {
        return None;
    }
    // Where the address is bound to an interface, the kernel chooses it as the source of the node's own connections
    // to it: a node that is let in must be let in under that address too, as with kube-proxy.
    if node.addresses.iter().any(|a| ranges.iter().any(|r| r.contains(a))) {
        ranges.insert(IpNet::from(vip));
    }
    Some(ranges)
}

/// Plans one port for one family; gives its frontends.
fn plan_port(
    service: &ServiceView,
    port: &PortView,
    family: Family,
    merged: &Merged<'_>,
    vips: &[Vip],
    node: &NodeView,
    plan: &mut ServicePlan,
) -> Vec<Frontend> {
    let mut made = Vec::new();
    let no_endpoints = BTreeMap::new();
    let key = PortKey { name: &port.name, protocol: port.protocol, family };
    let choice = choose(merged.get(&key).unwrap_or(&no_endpoints), node);
    let set = |scope| SetName { port: port.name.clone(), protocol: port.protocol, family, scope };

    // No endpoint at all is refused at once; endpoints that this policy doesn't allow here are a matter of routing that
    // may heal elsewhere, so the client is left to try again, as with kube-proxy.
    let action = |policy| match policy {
        TrafficPolicy::Cluster if !choice.cluster.is_empty() => Action::Balance(set(Scope::Cluster)),
        TrafficPolicy::Local if !choice.local.is_empty() => Action::Balance(set(Scope::Local)),
        TrafficPolicy::Local if !choice.cluster.is_empty() => Action::Drop,
        _ => Action::Reject,
    };

    let internal = action(service.internal_policy);
    let external = action(service.external_policy);
    // What starts on this node and in its pods need not enter by a node that has an endpoint; Kubernetes
    // defines the policy for traffic from outside of the cluster.
    let inside = Some(action(TrafficPolicy::Cluster)).filter(|i| *i != external);
    let external_masquerade = match service.external_policy {
        TrafficPolicy::Cluster => Masquerade::Everyone,
        TrafficPolicy::Local => Masquerade::Node,
    };

    for vip in vips.iter().filter(|v| Family::of(v.address) == family) {
        let frontend = Frontend::Address { address: vip.address, protocol: port.protocol, port: port.port };
        made.push(frontend);
        plan.frontends.insert_if_absent(frontend, || match vip.kind {
            FrontendKind::ClusterIp => FrontendPlan {
                kind: vip.kind,
                action: internal.clone(),
                inside: None,
                masquerade: Masquerade::Outsiders,
                source_ranges: None,
            },
            kind => FrontendPlan {
                kind,
                action: external.clone(),
                inside: inside.clone(),
                masquerade: external_masquerade,
                source_ranges: vip.source_ranges.clone(),
            },
        });
    }
    if let Some(node_port) = port.node_port {
        let frontend = Frontend::NodePort { family, protocol: port.protocol, port: node_port };
        made.push(frontend);
        plan.frontends.insert_if_absent(frontend, || FrontendPlan {
            kind: FrontendKind::NodePort,
            action: external.clone(),
            inside: inside.clone(),
            masquerade: external_masquerade,
            source_ranges: None, // defined for load-balancer addresses, never NodePorts
        });
    }

    let used: BTreeSet<&SetName> = plan.frontends.values().flat_map(FrontendPlan::sets).collect();
    for (scope, backends) in [(Scope::Cluster, choice.cluster), (Scope::Local, choice.local)] {
        let name = set(scope);
        if used.contains(&name) {
            plan.sets.insert(name, BackendSet { backends, affinity: service.affinity });
        }
    }
    made
}

fn backends(merged: &Merged<'_>, port: &PortView, family: Family) -> UdpBackends {
    let key = PortKey { name: &port.name, protocol: port.protocol, family };
    let mut backends = UdpBackends::default();
    for (backend, endpoint) in merged.get(&key).into_iter().flatten() {
        let serves = endpoint.ready || endpoint.serving;
        let list = if serves { &mut backends.serving } else { &mut backends.leaving };
        list.insert(*backend);
    }
    backends
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PortKey<'a> {
    name: &'a str,
    protocol: Protocol,
    family: Family,
}

/// The endpoints of each port, each address and port once.
type Merged<'a> = BTreeMap<PortKey<'a>, BTreeMap<Backend, &'a EndpointView>>;

/// While the control plane moves an endpoint from one slice to another it may be in both: the entry that says most in
/// its favour wins, and one that isn't terminating before all (as kube-proxy's endpointslicecache.go).
fn merge<'a>(endpoints: &'a EndpointsView, node: &NodeView) -> Merged<'a> {
    let rank = |e: &EndpointView| (!e.terminating, e.ready, e.serving, is_local(e, node));
    let mut merged: Merged<'a> = BTreeMap::new();
    for slice in endpoints.slices.values() {
        for port in &slice.ports {
            let key = PortKey { name: &port.name, protocol: port.protocol, family: slice.family };
            let of_port = merged.entry(key).or_default();
            for endpoint in slice.endpoints.iter().filter(|e| Family::of(e.address) == slice.family) {
                of_port
                    .entry(Backend { address: endpoint.address, port: port.port })
                    .and_modify(|e| {
                        if rank(endpoint) > rank(e) {
                            *e = endpoint;
                        }
                    })
                    .or_insert(endpoint);
            }
        }
    }
    merged
}

fn is_local(endpoint: &EndpointView, node: &NodeView) -> bool {
    endpoint.node.as_deref() == Some(&*node.name)
}

/// The usable endpoints of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of the whole cluster.
    pub cluster: BTreeSet<Backend>,
    /// What made [`Choice::cluster`].
    pub cluster_rule: Rule,
    /// On this node.
    pub local: BTreeSet<Backend>,
    /// What made [`Choice::local`].
    pub local_rule: Rule,
}

/// What decided which endpoints are used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// All that are ready.
    Ready,
    /// The ready ones that hints mean for this node.
    ThisNode,
    /// The ready ones that hints mean for this node's zone.
    ThisZone(Arc<str>),
    /// None is ready: those that are terminating and still serve.
    Terminating,
    /// There is none to use.
    Nothing,
}

/// The usable endpoints of one port of a Service in one family, and why these.
pub fn choice_of(port: &PortView, family: Family, endpoints: &EndpointsView, node: &NodeView) -> Choice {
    let key = PortKey { name: &port.name, protocol: port.protocol, family };
    choose(merge(endpoints, node).get(&key).unwrap_or(&BTreeMap::new()), node)
}

fn choose(endpoints: &BTreeMap<Backend, &EndpointView>, node: &NodeView) -> Choice {
    let topology = topology(endpoints, node);
    let preferred = match topology {
        Topology::Anywhere => Rule::Ready,
        Topology::ThisZone(zone) => Rule::ThisZone(zone.into()),
        Topology::ThisNode => Rule::ThisNode,
    };
    let (cluster, cluster_rule) = usable(endpoints, |_| true, |e| topology.allows(e, node), preferred);
    // Hints are about the cluster's endpoints: a local policy has made its choice (kube-proxy's topology.go).
    let (local, local_rule) = usable(endpoints, |e| is_local(e, node), |_| true, Rule::Ready);
    Choice { cluster, cluster_rule, local, local_rule }
}

/// The ready endpoints that are preferred; if there is none ready, those that are terminating and still serve, where
/// preferences no longer count (KEP-1669).
fn usable(
    endpoints: &BTreeMap<Backend, &EndpointView>,
    eligible: impl Fn(&EndpointView) -> bool,
    preferred: impl Fn(&EndpointView) -> bool,
    rule: Rule,
) -> (BTreeSet<Backend>, Rule) {
    let pick = |wanted: &dyn Fn(&EndpointView) -> bool| -> BTreeSet<Backend> {
        endpoints.iter().filter(|(_, e)| eligible(e) && wanted(e)).map(|(b, _)| *b).collect()
    };
    let ready = pick(&|e| e.ready && preferred(e));
    if !ready.is_empty() {
        return (ready, rule);
    }
    let terminating = pick(&|e| e.serving && e.terminating);
    let rule = if terminating.is_empty() { Rule::Nothing } else { Rule::Terminating };
    (terminating, rule)
}

/// What the hints of a port's ready endpoints amount to on this node.
enum Topology<'a> {
    Anywhere,
    ThisZone(&'a str),
    ThisNode,
}

impl Topology<'_> {
    fn allows(&self, endpoint: &EndpointView, node: &NodeView) -> bool {
        let Some(hints) = &endpoint.hints else { return matches!(self, Topology::Anywhere) };
        match self {
            Topology::Anywhere => true,
            Topology::ThisZone(zone) => hints.zones.iter().any(|z| &**z == *zone),
            Topology::ThisNode => hints.nodes.contains(&node.name),
        }
    }
}

/// Hints count only if every ready endpoint has them and at least one is meant for here: half-written hints must not
/// concentrate all traffic on few endpoints (KEP-2433; node before zone: KEP-3015).
fn topology<'a>(endpoints: &BTreeMap<Backend, &EndpointView>, node: &'a NodeView) -> Topology<'a> {
    let ready = || endpoints.values().filter(|e| e.ready);
    let all = |has: &dyn Fn(&Hints) -> bool| ready().all(|e| e.hints.as_deref().is_some_and(has));
    let any = |is: &dyn Fn(&Hints) -> bool| ready().any(|e| e.hints.as_deref().is_some_and(is));
    if all(&|h| !h.nodes.is_empty()) && any(&|h| h.nodes.contains(&node.name)) {
        return Topology::ThisNode;
    }
    match &node.zone {
        Some(zone) if all(&|h| !h.zones.is_empty()) && any(&|h| h.zones.contains(zone)) => {
            Topology::ThisZone(zone)
        }
        _ => Topology::Anywhere,
    }
}

/// The addresses on which NodePorts answer; the default is that of kube-proxy's nftables mode.
pub(crate) fn node_port_addresses(node: &NodeView) -> BTreeSet<IpAddr> {
    const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let wanted = &node.node_ports;
    let known = || node.addresses.iter().chain(&node.local_addresses).copied().filter(|a| !a.is_loopback());
    let first = |family| node.addresses.iter().copied().find(|a| Family::of(*a) == family);
    let only_ranges = !(wanted.primary || wanted.localhost || wanted.all);
    let in_range = |a: &IpAddr| {
        let mut of_family =
            wanted.ranges.iter().filter(|r| Family::of(r.addr()) == Family::of(*a)).peekable();
        of_family.peek().is_none() && only_ranges || of_family.any(|r| r.contains(a))
    };
    let mut all: BTreeSet<IpAddr> = known().filter(|a| wanted.all || in_range(a)).collect();
    if wanted.primary {
        all.extend([Family::V4, Family::V6].into_iter().filter_map(first));
    }
    if wanted.has_localhost() {
        // A family that the node has no address of has no NodePorts either.
        all.extend(LOCALHOST.into_iter().filter(|a| first(Family::of(*a)).is_some()));
    }
    all
}
