//! What the API shows that init acts on: NodePorts to publish, ranges of pods to route.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;

use super::cluster::{self, Objects};
use super::publish::Wanted;
use super::topology::{IpFamily, Publish, Transport};

/// A range of pods' addresses, and the node's address that leads to it.
pub type PodRoute = (IpNet, IpAddr);

/// Reports the NodePorts and the pods' ranges whenever they change, until nobody wants to know.
pub async fn follow(
    kubeconfig: &str,
    ports: impl Fn(Vec<Wanted>) -> bool,
    routes: impl Fn(BTreeSet<PodRoute>) -> bool,
) {
    let client = loop {
        match cluster::connect(kubeconfig).await {
            Ok(client) => break client,
            Err(error) => {
                tracing::error!("{error:#}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    tokio::join!(
        cluster::until(Api::<Service>::all(client.clone()), changed(node_ports, ports)),
        cluster::until(Api::<Node>::all(client), changed(pod_routes, routes)),
    );
}

/// Reports what is made of the objects whenever that changes; an answer ends the watch.
fn changed<K, T: PartialEq + Clone>(
    make: impl Fn(&Objects<K>) -> T,
    report: impl Fn(T) -> bool,
) -> impl FnMut(&Objects<K>) -> Option<()> {
    let mut last = None;
    move |objects| {
        let now = Some(make(objects));
        if last == now {
            return None;
        }
        last = now.clone();
        now.filter(|now| !report(now.clone())).map(drop)
    }
}

/// Each node's pod ranges by way of its address of the same family.
fn pod_routes(nodes: &Objects<Node>) -> BTreeSet<PodRoute> {
    let mut all = BTreeSet::new();
    for node in nodes.values() {
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        let internal =
            addresses.iter().filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok());
        let internal: Vec<IpAddr> = internal.collect();
        let ranges = node.spec.as_ref().and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
        for range in ranges.iter().filter_map(|range| range.parse::<IpNet>().ok()) {
            let via = internal.iter().find(|a| a.is_ipv4() == range.addr().is_ipv4());
            all.extend(via.map(|via| (range, *via)));
        }
    }
    all
}

/// The NodePorts of all Services, each on the same number here.
fn node_ports(services: &Objects<Service>) -> Vec<Wanted> {
    let mut all = Vec::new();
    for (name, service) in services {
        let Some(spec) = &service.spec else { continue };
        let families = families(spec.ip_families.as_deref().unwrap_or_default());
        for port in spec.ports.iter().flatten() {
            let Some(number) = port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0) else {
                continue;
            };
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Transport::Tcp,
                Some("UDP") => Transport::Udp,
                Some(_) => continue,
            };
            all.push(Wanted {
                publish: Publish { host_port: number, port: number, protocol },
                service: Some(name.clone()),
                families: families.clone(),
            });
        }
    }
    all
}

/// A Service's families, in its order.
pub fn families(words: &[String]) -> Vec<IpFamily> {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_port_of_each_protocol_is_wanted_under_its_own_number() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"ipFamilies": ["IPv6", "IPv4"], "ports": [
                {"port": 80, "nodePort": 30080},
                {"port": 53, "nodePort": 30053, "protocol": "UDP"},
                {"port": 9, "nodePort": 30009, "protocol": "SCTP"},
                {"port": 81},
            ]},
        }))
        .expect("a Service");
        let wanted = node_ports(&Objects::from([("default/web".to_owned(), service)]));
        let ports: Vec<_> = wanted.iter().map(|w| (w.publish.host_port, w.publish.protocol)).collect();
        assert_eq!(ports, [(30080, Transport::Tcp), (30053, Transport::Udp)]);
        assert_eq!(wanted[0].families, [IpFamily::IPv6, IpFamily::IPv4]);
        assert_eq!(wanted[0].service.as_deref(), Some("default/web"));
    }

    #[test]
    fn a_nodes_pods_are_behind_its_address_of_the_same_family() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "node-1"},
            "spec": {"podCIDRs": ["10.244.3.0/24", "fd00:10:244:3::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "node-1"},
                {"type": "InternalIP", "address": "10.80.0.11"},
                {"type": "InternalIP", "address": "fd00:80::11"},
            ]},
        }))
        .expect("a Node");
        let routes = pod_routes(&Objects::from([("node-1".to_owned(), node)]));
        let text: Vec<_> = routes.iter().map(|(range, via)| format!("{range} via {via}")).collect();
        assert_eq!(text, ["10.244.3.0/24 via 10.80.0.11", "fd00:10:244:3::/64 via fd00:80::11"]);
    }
}
