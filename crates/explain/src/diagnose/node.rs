//! Why a node doesn't do what the plan says: what its object, its lease and its kernel tell.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use portolan_dataplane::{ActionReading, FrontendReading, Reading};
use portolan_plan::model::{Action, Backend, Family, Frontend, Protocol};
use portolan_plan::trace::{Origin, Outcome};

use super::is_whole;
use crate::cause::{Cause, Kind};
use crate::firewall::{self, Packet};
use crate::kernel::{NodeKernel, RouteSeen};
use crate::objects::*;
use crate::situation::{Picture, Situation};

/// How full the connection table may be, in percent.
const FULL: u64 = 95;

/// What the Node objects and leases say of the nodes in question.
pub fn object(s: &Situation<'_>, causes: &mut Vec<Cause>) {
    let nodes = &s.evidence.objects.nodes;
    if nodes.is_empty() && is_whole(s) && s.service.is_some() {
        causes.push(Cause::new(
            Kind::NodeNotReady,
            "nodes",
            "metadata",
            "there is no node: nobody forwards",
            "start one: portolan node --server URL --token TOKEN",
        ));
    }
    // The nodes that the question is about: for a Service, none alone makes it silent, but all of them do.
    let concerned: Vec<&Node> =
        nodes.iter().map(|n| &**n).filter(|n| s.pictures.contains_key(&n.name_any())).collect();
    let bad: Vec<Cause> = concerned.iter().filter_map(|n| of_node(s, n)).collect();
    let alone = !is_whole(s) || s.evidence.question.node.is_some();
    if alone || bad.len() == concerned.len() {
        causes.extend(bad);
    } else {
        for mut cause in bad {
            cause.kind = Kind::Finding;
            cause.text =
                format!("{}; what clients there and at its addresses get is as old as that", cause.text);
            causes.push(cause);
        }
    }
}

fn of_node(s: &Situation<'_>, node: &Node) -> Option<Cause> {
    if !is_node_ready(node) {
        return Some(not_ready(node));
    }
    let name = node.name_any();
    let lease = s.evidence.objects.leases.iter().find(|l| l.name_any() == name).and_then(|l| l.spec.as_ref());
    if let (Some(lease), Some(now)) = (lease, s.evidence.now) {
        let seconds = i64::from(lease.lease_duration_seconds.unwrap_or(40));
        let renewed = lease.renew_time.as_ref().map(|t| now.as_second() - t.0.as_second());
        if let Some(age) = renewed.filter(|age| *age > seconds) {
            return Some(Cause::new(
                Kind::NodeSilent,
                format!("node {name}"),
                "leases.spec.renewTime",
                format!(
                    "its lease was renewed {age} s ago and holds {seconds} s: what runs on it may not follow any more"
                ),
                "see whether `portolan node` (elsewhere the kubelet) runs there, and reaches the API server",
            ));
        }
    }
    let ranges = portolan_agent::from_kube::node(node).0.pod_cidrs;
    if ranges.is_empty() {
        return Some(Cause::new(
            Kind::NoPodCidr,
            format!("node {name}"),
            "spec.podCIDRs",
            "the node has no range for its pods: it can't run any with an address, nor tell them from outsiders",
            "give it one: spec.podCIDR, or `portolan server --cluster-cidr`",
        ));
    }
    None
}

/// A node that isn't ready.
pub fn not_ready(node: &Node) -> Cause {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    let name = node.name_any();
    let said = ready.and_then(|c| c.message.clone()).unwrap_or_else(|| "it has never said that it is".into());
    Cause::new(
        Kind::NodeNotReady,
        format!("node {name}"),
        "status.conditions[Ready]",
        format!("node {name} is not ready: {said}"),
        format!(
            "see whether `portolan node` (elsewhere the kubelet) runs on {name}, and reaches the API server"
        ),
    )
}

/// What the kernel of the node at hand does otherwise than the plan.
pub fn kernel(s: &Situation<'_>, causes: &mut Vec<Cause>) {
    let Some(kernel) = &s.evidence.kernel else { return };
    let Some(picture) = s.pictures.get(&kernel.node) else { return };
    let wanted = concerned(s, picture);
    if wanted.is_empty() {
        return;
    }
    let node = format!("node {}", kernel.node);
    match (&kernel.reading, kernel.other_proxy()) {
        (None, Some(proxy)) => causes.push(Cause::new(
            Kind::Finding,
            &node,
            "nftables",
            format!("{proxy} forwards Services on this node; whether its rules are as they should be isn't examined"),
            "",
        )),
        (None, None) => causes.push(Cause::new(
            Kind::TableMissing,
            &node,
            "nftables: table portolan",
            match kernel.emptied {
                true => "the tables that forward Services are in the kernel, and empty",
                false => "the tables that forward Services are not in the kernel",
            },
            "see whether the agent runs: it writes them at its start, and again when they are gone",
        )),
        (Some(reading), _) => {
            if let Some(text) = drift(&wanted, reading) {
                causes.push(Cause::new(
                    Kind::TableDrift,
                    &node,
                    "nftables: table portolan",
                    text,
                    "see whether the agent runs and reaches the API server; its start makes the kernel equal to the plan",
                ));
            }
        }
    }
    let backends: BTreeSet<Backend> = wanted.iter().flat_map(|(_, reading)| backends_of(reading)).collect();
    forwarding(s, kernel, &backends, &node, causes);
    routes(s, kernel, &backends, &node, causes);
    walls(s, kernel, &wanted, &node, causes);
    if !kernel.legacy.is_empty() {
        let tables: Vec<&str> = kernel.legacy.iter().map(String::as_str).collect();
        causes.push(Cause::new(
            Kind::FirewallMayDrop,
            &node,
            "iptables-legacy",
            format!(
                "the older iptables has tables here ({}), whose rules are not examined",
                tables.join(", ")
            ),
            "iptables-legacy-save",
        ));
    }
    connections(kernel, picture, &wanted, &node, causes);
}

/// The frontends in question, as the plan wants them.
pub fn concerned(s: &Situation<'_>, picture: &Picture) -> Vec<(Frontend, FrontendReading)> {
    let Some(name) = &s.name else { return Vec::new() };
    let only: Option<BTreeSet<Frontend>> = s.path.as_ref().map(|path| {
        let (protocol, port) = (path.flow.protocol, path.flow.port);
        let family = Family::of(path.flow.destination);
        [
            Frontend::Address { address: path.flow.destination, protocol, port },
            Frontend::NodePort { family, protocol, port },
        ]
        .into()
    });
    let all = Reading::of(&picture.plan).frontends.into_iter();
    all.filter(|(_, reading)| reading.owner.as_ref() == Some(name))
        .filter(|(frontend, _)| only.as_ref().is_none_or(|only| only.contains(frontend)))
        .collect()
}

fn backends_of(reading: &FrontendReading) -> Vec<Backend> {
    let of = |action: &ActionReading| match action {
        ActionReading::Balance { backends, .. } => backends.iter().copied().collect(),
        _ => Vec::new(),
    };
    let mut all = of(&reading.action);
    all.extend(reading.inside.as_ref().map(of).unwrap_or_default());
    all
}

/// How the kernel differs from the plan at the frontends in question.
fn drift(wanted: &[(Frontend, FrontendReading)], kernel: &Reading) -> Option<String> {
    for (frontend, wanted) in wanted {
        let Some(found) = kernel.frontends.get(frontend) else {
            return Some(format!("the kernel has no {frontend}, which the plan has"));
        };
        if found.owner.is_some() && found.owner != wanted.owner {
            let owner = found.owner.as_ref().map(ToString::to_string).unwrap_or_default();
            return Some(format!("in the kernel {frontend} is service {owner}'s"));
        }
        let (have, should) = (backends_of(found), backends_of(wanted));
        let lost: Vec<String> =
            should.iter().filter(|b| !have.contains(b)).map(ToString::to_string).collect();
        let old: Vec<String> = have.iter().filter(|b| !should.contains(b)).map(ToString::to_string).collect();
        if !lost.is_empty() || !old.is_empty() {
            let part = |what: &str, all: &[String]| match all {
                [] => String::new(),
                all => format!("{what} {}", all.join(", ")),
            };
            let both = [part("lacks", &lost), part("still has", &old)];
            let both: Vec<&str> = both.iter().map(String::as_str).filter(|t| !t.is_empty()).collect();
            return Some(format!("at {frontend} the kernel {}", both.join(" and ")));
        }
        if (&found.action, &found.inside, found.masquerade, &found.source_ranges)
            != (&wanted.action, &wanted.inside, wanted.masquerade, &wanted.source_ranges)
        {
            return Some(format!("at {frontend} the kernel treats connections otherwise than the plan"));
        }
    }
    None
}

/// Whether packets pass through this node: always, but for what the node itself sends.
fn passes(s: &Situation<'_>) -> bool {
    s.path.as_ref().is_none_or(|path| !matches!(path.flow.from, Origin::Node(_)))
}

fn forwarding(
    s: &Situation<'_>,
    kernel: &NodeKernel,
    backends: &BTreeSet<Backend>,
    node: &str,
    causes: &mut Vec<Cause>,
) {
    if !passes(s) {
        return;
    }
    for (family, setting) in
        [(Family::V4, "net.ipv4.ip_forward"), (Family::V6, "net.ipv6.conf.all.forwarding")]
    {
        let concerned = backends.iter().any(|b| Family::of(b.address) == family);
        if concerned && kernel.settings.get(setting).is_some_and(|value| value == "0") {
            causes.push(Cause::new(
                Kind::ForwardingOff,
                node,
                setting,
                format!("0: the kernel forwards no {family}, neither from pods nor from outside"),
                format!("sysctl -w {setting}=1"),
            ));
        }
    }
}

fn node_of_pod_at(s: &Situation<'_>, address: IpAddr) -> Option<String> {
    let pod = s.evidence.objects.pod_at(address)?;
    portolan_control::pods::node_name(pod).map(str::to_owned)
}

/// Why the kernel of the node has no way to a backend, if it has none.
pub(crate) fn no_way(s: &Situation<'_>, kernel: &NodeKernel, address: IpAddr) -> Option<String> {
    let ours = s.evidence.objects.node(&kernel.node).is_some_and(|n| is_portolans(n));
    match kernel.routes.get(&address)? {
        RouteSeen::Refused(why) => Some(format!("there is no way to the backend {address}: {why}")),
        // Elsewhere the network beyond the default route may know the way.
        RouteSeen::Default if ours && node_of_pod_at(s, address).is_some() => {
            Some(format!("there is no route to the backend {address}; it would leave by the default route"))
        }
        _ => None,
    }
}

fn routes(
    s: &Situation<'_>,
    kernel: &NodeKernel,
    backends: &BTreeSet<Backend>,
    node: &str,
    causes: &mut Vec<Cause>,
) {
    for address in backends.iter().map(|b| b.address).collect::<BTreeSet<IpAddr>>() {
        let Some(text) = no_way(s, kernel, address) else { continue };
        let towards = node_of_pod_at(s, address).map_or(String::new(), |n| format!(" by way of node {n}"));
        causes.push(Cause::new(
            Kind::RouteMissing,
            node,
            "routes",
            text,
            format!("ip route get {address}; the node adds routes{towards} by itself while `portolan node` runs; see ip rule too"),
        ));
        return;
    }
}

/// What other tables do to packets of these frontends.
fn walls(
    s: &Situation<'_>,
    kernel: &NodeKernel,
    wanted: &[(Frontend, FrontendReading)],
    node: &str,
    causes: &mut Vec<Cause>,
) {
    let hooks: &[u32] = match s.path.as_ref().map(|p| p.flow.from) {
        Some(Origin::Node(_)) => &[3, 4],
        Some(_) => &[0, 2, 4],
        None => &[0, 2, 3, 4],
    };
    let source = s.path.as_ref().map(|p| p.flow.from.address());
    let node_addresses =
        s.pictures.get(&kernel.node).map(|p| p.plan.node.node_addresses.clone()).unwrap_or_default();
    for (frontend, reading) in wanted {
        let (protocol, port) = match *frontend {
            Frontend::Address { protocol, port, .. } | Frontend::NodePort { protocol, port, .. } => {
                (protocol, port)
            }
        };
        let entrance = match *frontend {
            Frontend::Address { address, .. } => Some(address),
            Frontend::NodePort { family, .. } => {
                let of_path = s.path.as_ref().map(|p| p.flow.destination);
                of_path.or_else(|| node_addresses.iter().copied().find(|a| Family::of(*a) == family))
            }
        };
        let before =
            entrance.map(|destination| Packet { protocol: protocol.number(), source, destination, port });
        let after = backends_of(reading).into_iter().map(|b| Packet {
            protocol: protocol.number(),
            source,
            destination: b.address,
            port: b.port,
        });
        for (packet, translated) in before.into_iter().map(|p| (p, false)).chain(after.map(|p| (p, true))) {
            let Some(wall) = firewall::meets(&kernel.tables, &kernel.links, &packet, translated, hooks)
            else {
                continue;
            };
            let what =
                format!("{} to {}", protocol, std::net::SocketAddr::new(packet.destination, packet.port));
            let (kind, text) = match wall.certain {
                true => (Kind::FirewallDrops, format!("{} drops {what}: {}", wall.chain, wall.why)),
                false => (Kind::FirewallMayDrop, format!("{} may drop {what}: {}", wall.chain, wall.why)),
            };
            if causes.iter().any(|c| c.kind == kind) {
                continue;
            }
            let remedy = format!("nft list table {}; let the packet through there", wall.table);
            causes.push(Cause::new(kind, node, format!("nftables: table {}", wall.table), text, remedy));
        }
    }
}

/// What the connection table says.
fn connections(
    kernel: &NodeKernel,
    picture: &Picture,
    wanted: &[(Frontend, FrontendReading)],
    node: &str,
    causes: &mut Vec<Cause>,
) {
    if let Some((count, most)) = kernel.conntrack
        && most > 0
        && count * 100 >= most * FULL
    {
        causes.push(Cause::new(
            Kind::ConntrackFull,
            node,
            "net.netfilter.nf_conntrack_max",
            format!("the connection table holds {count} of at most {most}: new connections are dropped"),
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 2),
        ));
    }
    let mut stale = Vec::new();
    for flow in &kernel.udp {
        let (address, port) = (flow.original.destination, flow.original.destination_port);
        let at = [
            Frontend::Address { address, protocol: Protocol::Udp, port },
            Frontend::NodePort { family: Family::of(address), protocol: Protocol::Udp, port },
        ];
        let at_node = picture.plan.node.node_addresses.contains(&address);
        let Some(frontend) = at.into_iter().find(|f| {
            wanted.iter().any(|(w, _)| w == f) && (at_node || matches!(f, Frontend::Address { .. }))
        }) else {
            continue;
        };
        let backend = Backend { address: flow.reply.source, port: flow.reply.source_port };
        if picture.udp_backends.get(&frontend).is_some_and(|known| !known.serving.contains(&backend)) {
            stale.push((flow, frontend, backend));
        }
    }
    if let Some((flow, frontend, backend)) = stale.first() {
        causes.push(Cause::new(
            Kind::StaleFlow,
            node,
            "connection table",
            format!(
                "{} UDP flows to {frontend} still go to a backend that is gone: {} to {backend}",
                stale.len(),
                flow.original.source
            ),
            format!(
                "conntrack -D -p udp --orig-dst {} --orig-port-dst {}",
                flow.original.destination, flow.original.destination_port
            ),
        ));
    }
}

/// The backends that a flow, or any client of a Service, may reach.
pub fn reachable(s: &Situation<'_>, picture: &Picture) -> BTreeSet<Backend> {
    match s.path.as_ref().map(|p| &p.verdict.outcome) {
        Some(Outcome::Forward { set, .. }) => set.clone(),
        Some(_) => BTreeSet::new(),
        None => {
            let part = s.name.as_ref().and_then(|name| picture.plan.services.get(name));
            let frontends = part.iter().flat_map(|p| p.frontends.values());
            let actions = frontends.flat_map(|f| [Some(&f.action), f.inside.as_ref()]).flatten();
            let sets = actions.filter_map(|action| match action {
                Action::Balance(name) => part.and_then(|p| p.sets.get(name)),
                _ => None,
            });
            sets.flat_map(|set| set.backends.iter().copied()).collect()
        }
    }
}
