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
    /// Reads `service/NAME`, `service/NAMESPACE/NAME`, `node:NAME`, an address, or an address with a port, which is given too.
    pub fn parse(text: &str, namespace: &str) -> Result<(Target, Option<u16>), String> {
        if let Some((kind, name)) = kind_and_name(text) {
            return match kind {
                "service" | "svc" | "services" => Ok((Target::Service(service_name(name, namespace)), None)),
                "node" | "no" | "nodes" => Ok((Target::Node(name.to_owned()), None)),
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

/// A Service's name as users write it: `NAME`, `NAMESPACE/NAME`, with or without `service/` before.
pub fn service_name(text: &str, namespace: &str) -> ServiceName {
    let text = match text.split_once(['/', ':']) {
        Some(("service" | "svc" | "services", name)) => name,
        _ => text,
    };
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    ServiceName::new(namespace, name)
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
        assert_eq!(service_name("service/a/web", "shop"), ServiceName::new("a", "web"));
    }
}
