//! A small cluster to plan for, in few words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portolan_plan::model::*;
use portolan_plan::planner::{Views, plan_all};
use portolan_plan::trace::{Flow, Origin, Outcome, SourceSeen, Verdict};
use portolan_plan::view::*;

pub const POD_HERE: &str = "10.1.0.5";
pub const POD_THERE: &str = "10.1.1.5";
pub const CLIENT: &str = "203.0.113.9";
pub const NODE: &str = "192.0.2.10";
pub const VIP: &str = "10.96.0.20";
pub const EXTERNAL: &str = "198.51.100.1";
pub const BALANCER: &str = "198.51.100.2";
pub const NODE_PORT: u16 = 30163;

pub fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// Node `here` in zone `a`, dual-stack.
pub fn node() -> NodeView {
    NodeView {
        zone: Some("a".into()),
        addresses: vec![ip(NODE), ip("192.0.2.11"), ip("2001:db8::10")],
        pod_cidrs: ["10.1.0.0/24", "fd00:1::/64"].iter().map(|s| s.parse().unwrap()).collect(),
        service_cidrs: ["10.96.0.0/16", "fd00:96::/108"].iter().map(|s| s.parse().unwrap()).collect(),
        ..NodeView::named("here")
    }
}

/// `default/web`: a cluster IP, an external IP, a load balancer, a node port; port 80.
pub fn web() -> ServiceView {
    ServiceView {
        name: ServiceName::new("default", "web"),
        created: 1000,
        cluster_ips: vec![ip(VIP)],
        external_ips: vec![ip(EXTERNAL)],
        load_balancer: vec![IngressView { ip: ip(BALANCER), proxy: false }],
        ports: vec![PortView {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(NODE_PORT),
        }],
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        affinity: None,
        source_ranges: None,
        health_check_node_port: None,
    }
}

pub fn service(name: &str, created: i64, vip: &str) -> ServiceView {
    ServiceView {
        name: ServiceName::new("default", name),
        created,
        cluster_ips: vec![ip(vip)],
        external_ips: vec![],
        load_balancer: vec![],
        ports: vec![PortView { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        ..web()
    }
}

pub fn endpoint(address: &str, node: &str) -> EndpointView {
    EndpointView {
        address: ip(address),
        node: Some(node.into()),
        ready: true,
        serving: true,
        terminating: false,
        hints: None,
    }
}

pub fn terminating(address: &str, node: &str) -> EndpointView {
    EndpointView { ready: false, terminating: true, ..endpoint(address, node) }
}

pub fn not_ready(address: &str, node: &str) -> EndpointView {
    EndpointView { ready: false, serving: false, ..endpoint(address, node) }
}

pub fn hinted(address: &str, node: &str, zones: &[&str], nodes: &[&str]) -> EndpointView {
    let names = |of: &[&str]| of.iter().map(|s| Arc::from(*s)).collect();
    let hints = Some(Arc::new(Hints { zones: names(zones), nodes: names(nodes) }));
    EndpointView { hints, ..endpoint(address, node) }
}

/// One slice for port `http` at 8080.
pub fn slice(endpoints: Vec<EndpointView>) -> SliceView {
    let family = endpoints.first().map_or(Family::V4, |e| Family::of(e.address));
    SliceView {
        family,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints,
    }
}

pub fn endpoints(endpoints: Vec<EndpointView>) -> EndpointsView {
    slices([slice(endpoints)])
}

pub fn slices(slices: impl IntoIterator<Item = SliceView>) -> EndpointsView {
    let slices = slices.into_iter().enumerate().map(|(i, s)| (format!("s{i}").into(), Arc::new(s))).collect();
    EndpointsView { slices }
}

pub fn here_and_there() -> EndpointsView {
    endpoints(vec![endpoint(POD_HERE, "here"), endpoint(POD_THERE, "there")])
}

pub fn views(services: Vec<(ServiceView, EndpointsView)>, node: NodeView) -> Views {
    let mut views = Views { services: BTreeMap::new(), endpoints: BTreeMap::new(), node };
    for (service, endpoints) in services {
        views.endpoints.insert(service.name.clone(), endpoints);
        views.services.insert(service.name.clone(), Arc::new(service));
    }
    views
}

pub fn plan(service: ServiceView, endpoints: EndpointsView) -> Plan {
    plan_all(views(vec![(service, endpoints)], node())).0
}

pub fn findings(service: ServiceView, endpoints: EndpointsView, node: NodeView) -> Vec<String> {
    plan_all(views(vec![(service, endpoints)], node)).1.iter().map(|f| f.to_string()).collect()
}

pub fn trace(plan: &Plan, from: Origin, destination: &str, port: u16) -> Verdict {
    plan.trace(&Flow { from, destination: ip(destination), protocol: Protocol::Tcp, port })
}

pub fn pod() -> Origin {
    Origin::Pod(ip("10.1.0.77"))
}

pub fn outside() -> Origin {
    Origin::Outside(ip(CLIENT))
}

pub fn on_node() -> Origin {
    Origin::Node(ip(NODE))
}

pub fn to(backends: &[&str], source_seen: SourceSeen) -> Outcome {
    let set = backends.iter().map(|b| Backend { address: ip(b), port: 8080 }).collect();
    Outcome::Forward { set, source_seen, affinity: None }
}

pub fn sticky(outcome: Outcome, seconds: u64) -> Outcome {
    match outcome {
        Outcome::Forward { set, source_seen, .. } => {
            Outcome::Forward { set, source_seen, affinity: Some(Duration::from_secs(seconds)) }
        }
        other => other,
    }
}
