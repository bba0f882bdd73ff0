//! Plans to test with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use portolan_plan::model::*;

pub use super::world::ip;

/// A backend.
pub fn backend(address: &str, port: u16) -> Backend {
    Backend { address: ip(address), port }
}

/// A set of backends named by nothing but its scope.
pub fn set_name(protocol: Protocol, family: Family, scope: Scope) -> SetName {
    SetName { port: "".into(), protocol, family, scope }
}

/// A set.
pub fn set(backends: impl IntoIterator<Item = Backend>, affinity: Option<u64>) -> BackendSet {
    BackendSet { backends: backends.into_iter().collect(), affinity: affinity.map(Duration::from_secs) }
}

/// A cluster IP's frontend.
pub fn address(address: &str, protocol: Protocol, port: u16) -> Frontend {
    Frontend::Address { address: ip(address), protocol, port }
}

/// What a frontend does.
pub fn does(kind: FrontendKind, action: Action) -> FrontendPlan {
    let masquerade = match kind {
        FrontendKind::ClusterIp => Masquerade::Outsiders,
        _ => Masquerade::Everyone,
    };
    FrontendPlan { kind, action, inside: None, masquerade, source_ranges: None }
}

/// A Service with a cluster IP and its backends.
pub fn simple(cluster_ip: &str, protocol: Protocol, port: u16, backends: &[Backend]) -> Arc<ServicePlan> {
    let family = Family::of(ip(cluster_ip));
    let name = set_name(protocol, family, Scope::Cluster);
    let mut part = ServicePlan::default();
    let action = if backends.is_empty() { Action::Reject } else { Action::Balance(name.clone()) };
    part.frontends.insert(address(cluster_ip, protocol, port), does(FrontendKind::ClusterIp, action));
    if !backends.is_empty() {
        part.sets.insert(name, set(backends.iter().copied(), None));
    }
    Arc::new(part)
}

/// Ranges.
pub fn nets(texts: &[&str]) -> BTreeSet<ipnet::IpNet> {
    texts.iter().map(|t| t.parse().expect("a range")).collect()
}

/// Some of everything.
pub fn everything() -> Plan {
    let node = NodePlan {
        node_addresses: [ip("192.0.2.1"), ip("2001:db8::1")].into(),
        service_cidrs: nets(&["10.96.0.0/16", "10.96.128.0/17", "fd00:96::/112"]),
        inside: nets(&["10.244.1.0/24", "fd00:244:1::/64"]),
        unmasqueraded: nets(&["10.244.0.0/16", "0.0.0.0/32", "255.255.255.255/32", "fd00:244::/48"]),
        local_pods: [ip("10.244.1.2"), ip("fd00:244:1::2")].into(),
        cluster_ip_from_outside: FromOutside::Refuse,
    };
    let mut plan = Plan { node, ..Plan::default() };
    for (family, vip, lb, pod) in [
        (Family::V4, "10.96.0.10", "203.0.113.7", "10.244.1."),
        (Family::V6, "fd00:96::a", "2001:db8:7::7", "fd00:244:1::"),
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            for (affinity, port) in [(None, 80), (Some(10_800), 81), (Some(600), 82)] {
                let cluster = set_name(protocol, family, Scope::Cluster);
                let local = set_name(protocol, family, Scope::Local);
                let mut part = ServicePlan::default();
                let pods = |n: u16| (1..=n).map(|i| backend(&format!("{pod}{i}"), 8080));
                part.sets.insert(cluster.clone(), set(pods(5), affinity));
                part.sets.insert(local.clone(), set(pods(2), affinity));
                let balance = Action::Balance(cluster.clone());
                part.frontends
                    .insert(address(vip, protocol, port), does(FrontendKind::ClusterIp, balance.clone()));
                let mut load_balancer = does(FrontendKind::LoadBalancer, Action::Balance(local.clone()));
                load_balancer.inside = Some(balance.clone());
                load_balancer.masquerade = Masquerade::Node;
                load_balancer.source_ranges =
                    Some(nets(&["198.51.100.0/24", "192.0.2.128/25", "2001:db8:9::/64"]));
                part.frontends.insert(address(lb, protocol, port), load_balancer);
                let node_port = Frontend::NodePort { family, protocol, port: 30_000 + port };
                part.frontends.insert(node_port, does(FrontendKind::NodePort, balance));
                let number = format!("s{port}-{protocol}-{family:?}").to_lowercase();
                plan.services.insert(ServiceName::new("default", &number), Arc::new(part));
            }
        }
        let mut none = ServicePlan::default();
        none.frontends.insert(address(vip, Protocol::Tcp, 90), does(FrontendKind::ClusterIp, Action::Reject));
        none.frontends.insert(address(lb, Protocol::Tcp, 90), does(FrontendKind::ExternalIp, Action::Drop));
        plan.services.insert(ServiceName::new("default", &format!("none-{family:?}")), Arc::new(none));
    }
    plan
}
