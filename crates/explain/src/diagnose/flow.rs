//! Why a flow doesn't get to a backend: each way in which a plan turns one away, as a cause.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portolan_plan::finding::Object;
use portolan_plan::model::{Family, ServiceName};
use portolan_plan::trace::Outcome;

use super::{endpoints, of_finding, shown, where_addresses_are};
use crate::cause::{Cause, Kind};
use crate::objects::*;
use crate::situation::{FlowPath, Picture, Situation, has_address, listed};

/// The causes for one flow.
pub fn causes(s: &Situation<'_>, service: &Service, path: &FlowPath, causes: &mut Vec<Cause>) {
    let Some(picture) = s.pictures.get(&path.node) else { return };
    let decided = path.verdict.because.last().map_or("", |reason| &*reason.field);
    match &path.verdict.outcome {
        // Who shares an address may get what was meant for another.
        Outcome::Forward { .. } | Outcome::Reject | Outcome::Drop if other_owner(service, path).is_some() => {
            causes.extend(clash(s, service, path, picture));
        }
        Outcome::Forward { .. } => {}
        Outcome::NotAService => causes.extend(not_reached(s, service, path)),
        _ if decided == "spec.ports" => causes.extend(port_cause(s, service, path)),
        Outcome::Reject => {
            if let Some((port, family)) = port_of(service, path) {
                causes.extend(endpoints::none(s, service, port, family));
            }
        }
        Outcome::Drop => causes.extend(dropped(s, service, path, picture, decided)),
    }
}

/// The Service that decided, if it is another than the one asked for.
fn other_owner<'p>(service: &Service, path: &'p FlowPath) -> Option<&'p ServiceName> {
    path.verdict.because.iter().find_map(|reason| match &reason.object {
        Object::Service(name) => Some(name).filter(|name| **name != name_of(service)),
        _ => None,
    })
}

/// Another Service owns the address and port.
fn clash(s: &Situation<'_>, service: &Service, path: &FlowPath, picture: &Picture) -> Option<Cause> {
    let owner = other_owner(service, path)?;
    if port_of(service, path).is_none() {
        return port_cause(s, service, path);
    }
    let (address, port) = (path.flow.destination, path.flow.port);
    let known = picture.findings.iter().filter(|f| f.object == Object::Service(name_of(service)));
    let known = known.filter(|f| names_address(&f.text, address)).map(of_finding);
    known.into_iter().find(|cause| cause.kind == Kind::FrontendClash).or_else(|| {
        Some(Cause::new(
            Kind::FrontendClash,
            s.object(),
            path.verdict.because.first().map_or("spec.ports", |reason| &*reason.field),
            format!(
                "{}/{} belongs to service {owner}, whose pods get what is sent there",
                std::net::SocketAddr::new(address, port),
                path.flow.protocol
            ),
            "choose another address or port, or delete that Service",
        ))
    })
}

/// Whether a text names an address, alone or with a port: 10.0.0.11 doesn't name 10.0.0.1.
fn names_address(text: &str, address: IpAddr) -> bool {
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)));
    words.map(|word| word.trim_end_matches(['.', ':'])).any(|word| {
        word.parse() == Ok(address) || word.parse::<std::net::SocketAddr>().is_ok_and(|at| at.ip() == address)
    })
}

/// The address is the Service's or a node's, but nothing is captured there.
fn not_reached(s: &Situation<'_>, service: &Service, path: &FlowPath) -> Option<Cause> {
    let (address, port) = (path.flow.destination, path.flow.port);
    let known = uncaptured(s, service, path);
    if known.is_some() || s.evidence.objects.pod_at(address).is_some() {
        return known;
    }
    Some(Cause::new(
        Kind::UndefinedPort,
        s.object(),
        "spec.ports",
        format!("no Service has {port}/{} at {address}", path.flow.protocol),
        format!("connect to a port that it has there; it has {}", listed(ports(service))),
    ))
}

fn uncaptured(s: &Situation<'_>, service: &Service, path: &FlowPath) -> Option<Cause> {
    let (address, number) = (path.flow.destination, path.flow.port);
    if let Some((_, true)) = ingress(service).into_iter().find(|(ip, _)| *ip == address) {
        return Some(Cause::new(
            Kind::IpModeProxy,
            s.object(),
            "status.loadBalancer.ingress[].ipMode",
            format!("Proxy: {address} is the load balancer's own; nodes don't capture what is sent to it"),
            "see to the load balancer, or connect to the ClusterIP inside of the cluster",
        ));
    }
    if has_address(service, address) && port_of(service, path).is_none() {
        return port_cause(s, service, path);
    }
    let findings = s.pictures[&path.node].findings.iter().filter(|f| names_address(&f.text, address));
    if let Some(cause) = findings.map(of_finding).find(|cause| !cause.kind.is_note()) {
        return Some(cause);
    }
    if has_address(service, address) {
        return port_cause(s, service, path);
    }
    // A node's address.
    let by_node_port = ports(service).iter().find(|p| p.node_port == Some(i32::from(number)));
    if let Some(port) = by_node_port {
        if !carries(port, path.flow.protocol) {
            return port_cause(s, service, path);
        }
        let answering = &s.pictures[&path.node].plan.node.node_addresses;
        let on: Vec<String> = answering.iter().map(ToString::to_string).collect();
        if !cluster_ips(service).iter().any(|a| Family::of(*a) == Family::of(address)) {
            let family = Family::of(address);
            return Some(Cause::new(
                Kind::WrongFamily,
                s.object(),
                "spec.ipFamilies",
                format!("{address} is {family}; the Service is not, and its node port neither"),
                "set spec.ipFamilyPolicy: PreferDualStack, or use the node's other address",
            ));
        }
        return Some(Cause::new(
            Kind::NotANodePortAddress,
            format!("node {}", path.node),
            "status.addresses",
            format!("node ports answer on {}, not on {address}", on.join(" and ")),
            "connect to one of these",
        ));
    }
    let port = ports(service).iter().find(|p| p.port == i32::from(number))?;
    let node_port = port.node_port.unwrap_or_default();
    Some(Cause::new(
        Kind::ServicePortAtNode,
        s.object(),
        "spec.ports[].nodePort",
        format!(
            "{number} is the Service's own port; at a node's address it answers on its node port {node_port}"
        ),
        format!("connect to {}", std::net::SocketAddr::new(address, u16::try_from(node_port).unwrap_or(0))),
    ))
}

/// Why the Service has no such port at this address.
fn port_cause(s: &Situation<'_>, service: &Service, path: &FlowPath) -> Option<Cause> {
    let (number, protocol_) = (i32::from(path.flow.port), path.flow.protocol);
    let at_node = !has_address(service, path.flow.destination);
    let same = ports(service).iter().find(|p| match at_node {
        true => p.node_port == Some(number),
        false => p.port == number,
    });
    if let Some(port) = same.filter(|p| !carries(p, protocol_)) {
        let has = protocol(port);
        return Some(Cause::new(
            Kind::ProtocolMismatch,
            s.object(),
            "spec.ports[].protocol",
            format!("port {number} is {has}; the connection is {protocol_}"),
            format!("connect by {has}, or add a port with protocol: {protocol_}"),
        ));
    }
    if let Some(port) = ports(service).iter().find(|p| p.node_port == Some(number)) {
        return Some(Cause::new(
            Kind::NodePortAtService,
            s.object(),
            "spec.ports[].port",
            format!(
                "{number} is the node port, which answers at nodes' addresses; here the port is {}",
                port.port
            ),
            format!("connect to port {}", port.port),
        ));
    }
    let by_target = ports(service).iter().find(|p| p.target_port == Some(IntOrString::Int(number)));
    let text = match by_target {
        Some(port) => format!(
            "the Service has no port {number}: that is where its pods listen (targetPort); clients use {}",
            port.port
        ),
        None => format!("the Service has no port {number}/{protocol_}; it has {}", listed(ports(service))),
    };
    Some(Cause::new(
        Kind::UndefinedPort,
        s.object(),
        "spec.ports",
        text,
        format!("connect to a port that it has, or add a port {number} to it"),
    ))
}

/// Why a flow is dropped.
fn dropped(
    s: &Situation<'_>,
    service: &Service,
    path: &FlowPath,
    picture: &Picture,
    decided: &str,
) -> Option<Cause> {
    let source = path.flow.from.address();
    match decided {
        "clusterIPFromOutside" => {
            let node_port = ports(service).iter().any(|p| p.node_port.is_some_and(|n| n != 0));
            let remedy = match (type_of(service), node_port) {
                ("LoadBalancer", _) => "connect to its load-balancer address",
                (_, true) => "connect to a node's address at its node port",
                _ => "use type NodePort or LoadBalancer",
            };
            Some(Cause::new(
                Kind::ClusterIpFromOutside,
                s.object(),
                "spec.type",
                format!(
                    "{} is a ClusterIP, which answers inside of the cluster only; {source} is neither node {} nor one of its pods",
                    path.flow.destination, path.node
                ),
                remedy,
            ))
        }
        "spec.loadBalancerSourceRanges" => {
            let ranges = spec(service).load_balancer_source_ranges.clone().unwrap_or_default();
            let family = Family::of(source);
            let of_family =
                ranges.iter().any(|r| r.parse().is_ok_and(|r: ipnet::IpNet| Family::of(r.addr()) == family));
            let text = match of_family {
                true => format!("{source} is in none of {}", ranges.join(", ")),
                false => format!(
                    "no {family} range is given ({}), so {family} is closed to everyone",
                    ranges.join(", ")
                ),
            };
            Some(Cause::new(
                Kind::SourceRanges,
                s.object(),
                "spec.loadBalancerSourceRanges",
                text,
                "add a range that the client is in",
            ))
        }
        "spec.internalTrafficPolicy" | "spec.externalTrafficPolicy" => {
            let internal = decided == "spec.internalTrafficPolicy";
            let kind = if internal { Kind::InternalPolicyLocal } else { Kind::ExternalPolicyLocal };
            let others = port_of(service, path)
                .map(|(port, family)| nodes_with(picture, &name_of(service), port, family))
                .unwrap_or_default();
            let remedy = match internal {
                true => {
                    "run an endpoint on this node (a DaemonSet does), or set internalTrafficPolicy: Cluster"
                }
                false => {
                    "connect to a node that has an endpoint, or set externalTrafficPolicy: Cluster (the client's address is then lost)"
                }
            };
            Some(Cause::new(
                kind,
                s.object(),
                decided,
                format!("Local, and node {} has no ready endpoint; {} has", path.node, shown(&others)),
                remedy,
            ))
        }
        _ => Some(Cause::new(
            Kind::NobodysAddress,
            format!("address {}", path.flow.destination),
            "services",
            path.verdict.because.last().map_or_else(String::new, |r| r.text.clone()),
            where_addresses_are(s),
        )),
    }
}

/// The Service's port that a flow is sent to, and the flow's family.
pub fn port_of<'s>(service: &'s Service, path: &FlowPath) -> Option<(&'s ServicePort, Family)> {
    let number = i32::from(path.flow.port);
    let mut fitting = ports(service).iter().filter(|p| carries(p, path.flow.protocol));
    let port = match has_address(service, path.flow.destination) {
        true => fitting.find(|p| p.port == number),
        false => fitting.find(|p| p.node_port == Some(number)),
    };
    Some((port?, Family::of(path.flow.destination)))
}

/// The nodes with a ready endpoint of a port.
fn nodes_with(picture: &Picture, name: &ServiceName, port: &ServicePort, family: Family) -> Vec<String> {
    let Some(endpoints) = picture.views.endpoints.get(name) else { return Vec::new() };
    let slices = endpoints.slices.values().filter(|slice| slice.family == family);
    let named = port.name.as_deref().unwrap_or_default();
    let with_port = slices.filter(|slice| slice.ports.iter().any(|p| *p.name == *named));
    let ready = with_port.flat_map(|slice| &slice.endpoints).filter(|e| e.ready);
    let mut nodes: Vec<String> = ready.filter_map(|e| e.node.as_deref().map(str::to_owned)).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_only_as_a_whole() {
        let named = |text: &str, address: &str| names_address(text, address.parse().expect("an address"));
        assert!(named("10.80.0.1 is taken", "10.80.0.1"));
        assert!(named("frontend 10.80.0.1:80/TCP belongs to it.", "10.80.0.1"));
        assert!(named("[fd00::1]:80/TCP and fd00::2.", "fd00::1"));
        assert!(named("[fd00::1]:80/TCP and fd00::2.", "fd00::2"));
        assert!(!named("10.80.0.11 is taken", "10.80.0.1"));
        assert!(!named("110.80.0.1:80", "10.80.0.1"));
    }
}
