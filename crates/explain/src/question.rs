//! What is asked: a Service, or a flow from a place to a target.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use portolan_plan::model::{Family, Protocol, ServiceName};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it is about.
    pub about: About,
    /// The node whose decisions are wanted; chosen if none is named.
    pub node: Option<String>,
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// A Service: does it answer at all?
    Service(ServiceName),
    /// A new connection.
    Flow(FlowAsked),
}

/// A new connection, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowAsked {
    /// Where it starts.
    pub from: Place,
    /// Where it is sent.
    pub to: Target,
    /// The port it is sent to; of a Service with one port, that one if none is named.
    pub port: Option<u16>,
    /// The protocol.
    pub protocol: Protocol,
    /// The family that the client wants, where the target leaves a choice.
    pub family: Option<Family>,
}

/// Where a connection starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// On a node itself.
    Node(String),
    /// At this address: a pod's or a node's if one has it, else outside.
    Address(IpAddr),
    /// Somewhere outside of the cluster.
    Outside,
}

/// Where a connection is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this address.
    Address(IpAddr),
    /// To a Service, at the address that suits the client.
    Service(ServiceName),
    /// To an address of this node.
    Node(String),
}

impl Place {
    /// Reads `pod:NAMESPACE/NAME`, `pod:NAME`, `node:NAME`, an address, or `outside`.
    pub fn parse(text: &str, namespace: &str) -> Result<Place, String> {
        if let Some((kind, name)) = kind_and_name(text) {
            return match kind {
                "pod" | "po" | "pods" => {
                    let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
                    Ok(Place::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
                }
                "node" | "no" | "nodes" => Ok(Place::Node(name.to_owned())),
                _ => Err(format!("{kind:?} is no place that a connection starts at; {PLACES}")),
            };
        }
        match text.parse() {
            Ok(address) => Ok(Place::Address(address)),
            Err(_) if text == "outside" => Ok(Place::Outside),
            Err(_) => Err(format!("{text:?} is not understood; {PLACES}")),
        }
    }
}

impl Target {
    /// Reads `service/NAME`, `service/NAMESPACE/NAME`, `NAMESPACE/NAME`, `node:NAME`, or an address; a port behind one is given too.
    pub fn parse(text: &str, namespace: &str) -> Result<(Target, Option<u16>), String> {
        if let Some((kind, name)) = kind_and_name(text) {
            return match kind {
                "service" | "svc" | "services" => {
                    let (name, port) = name_and_port(name)?;
                    Ok((Target::Service(service_name(name, namespace)?), port))
                }
                "node" | "no" | "nodes" => {
                    let (name, port) = name_and_port(name)?;
                    Ok((Target::Node(name.to_owned()), port))
                }
                _ if text.as_bytes().get(kind.len()) == Some(&b'/') && !OTHER_KINDS.contains(&kind) => {
                    let (name, port) = name_and_port(text)?;
                    Ok((Target::Service(service_name(name, namespace)?), port))
                }
                _ => Err(format!("{kind:?} is nothing that a connection is sent to; {TARGETS}")),
            };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok((Target::Address(address.ip()), Some(address.port())));
        }
        match text.parse() {
            Ok(address) => Ok((Target::Address(address), None)),
            Err(_) => Err(format!("{text:?} is not understood; {TARGETS}")),
        }
    }
}

const PLACES: &str = "write pod:NAMESPACE/NAME, node:NAME, an address, or outside";
const TARGETS: &str = "write service/NAME, node:NAME, or an address";
/// Kinds of objects, as users write them, that are no Services: they are no namespaces either.
const OTHER_KINDS: &[&str] = &[
    "pod",
    "pods",
    "po",
    "deployment",
    "deployments",
    "deploy",
    "replicaset",
    "replicasets",
    "rs",
    "statefulset",
    "statefulsets",
    "sts",
    "daemonset",
    "daemonsets",
    "ds",
    "job",
    "jobs",
    "cronjob",
    "cronjobs",
    "node",
    "nodes",
    "no",
    "endpoints",
    "ep",
    "endpointslice",
    "endpointslices",
    "ingress",
    "ingresses",
    "ing",
    "configmap",
    "configmaps",
    "cm",
    "namespace",
    "namespaces",
    "ns",
];

/// `NAME` or `NAME:PORT`.
fn name_and_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let Some((name, port)) = text.rsplit_once(':') else { return Ok((text, None)) };
    match port.parse() {
        Ok(number) if number != 0 => Ok((name, Some(number))),
        _ => Err(format!("{port:?} is not a port; write a number from 1 to 65535")),
    }
}

/// A Service's name as users write it: `NAME`, `NAMESPACE/NAME`, with or without `service/` before.
pub fn service_name(text: &str, namespace: &str) -> Result<ServiceName, String> {
    let (bare, is_kind) = match text.split_once(['/', ':']) {
        Some(("service" | "svc" | "services", name)) => (name, true),
        _ => (text, false),
    };
    let (namespace, name) = bare.split_once('/').unwrap_or((namespace, bare));
    let other = !is_kind && bare.contains('/') && OTHER_KINDS.contains(&namespace);
    if other
        || namespace.is_empty()
        || name.is_empty()
        || name.contains(['/', ':'])
        || namespace.contains(':')
    {
        return Err(format!("{text:?} is not a Service; write NAME, service/NAME, or NAMESPACE/NAME"));
    }
    Ok(ServiceName::new(namespace, name))
}

/// `kind:name` or `kind/name`; an address is neither, though IPv6 has colons.
fn kind_and_name(text: &str) -> Option<(&str, &str)> {
    if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        return None;
    }
    text.split_once([':', '/'])
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pod { namespace, name } => write!(f, "pod {namespace}/{name}"),
            Place::Node(name) => write!(f, "node {name}"),
            Place::Address(address) => address.fmt(f),
            Place::Outside => f.write_str("outside"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Address(address) => address.fmt(f),
            Target::Service(name) => write!(f, "service {name}"),
            Target::Node(name) => write!(f, "node {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_targets_are_read_as_users_write_them() {
        let pod = |n: &str| Ok(Place::Pod { namespace: n.into(), name: "x".into() });
        assert_eq!(Place::parse("pod:default/x", "shop"), pod("default"));
        assert_eq!(Place::parse("pod/x", "shop"), pod("shop"));
        assert_eq!(Place::parse("fd00::1", "shop"), Ok(Place::Address("fd00::1".parse().unwrap())));
        assert_eq!(Place::parse("outside", "shop"), Ok(Place::Outside));
        assert!(Place::parse("moon", "shop").unwrap_err().contains("pod:NAMESPACE/NAME"));
        let web = |n: &str| Ok((Target::Service(ServiceName::new(n, "web")), None));
        assert_eq!(Target::parse("service/web", "shop"), web("shop"));
        assert_eq!(Target::parse("svc:default/web", "shop"), web("default"));
        let with_port = Ok((Target::Address("10.96.0.1".parse().unwrap()), Some(80)));
        assert_eq!(Target::parse("10.96.0.1:80", "shop"), with_port);
        let at_port = |n: &str| Ok((Target::Service(ServiceName::new(n, "web")), Some(80)));
        assert_eq!(Target::parse("svc/web:80", "shop"), at_port("shop"));
        assert_eq!(Target::parse("a/web", "shop"), web("a"));
        assert_eq!(Target::parse("a/web:80", "shop"), at_port("a"));
        assert!(Target::parse("svc/web:http", "shop").unwrap_err().contains("not a port"));
        assert_eq!(service_name("service/a/web", "shop"), Ok(ServiceName::new("a", "web")));
        assert_eq!(service_name("a/web", "shop"), Ok(ServiceName::new("a", "web")));
        for wrong in ["pod/foo", "deployment/web", "", "a/b/c", "service/", "/web", "web:80"] {
            assert!(service_name(wrong, "shop").unwrap_err().contains("is not a Service"), "{wrong}");
        }
        assert!(Target::parse("deployment/web", "shop").is_err());
    }
}
