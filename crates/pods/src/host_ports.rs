//! `hostPort`: ports of the node's addresses that lead to a pod. What they lead to is a pure function of the pods that have
//! some; [`table`] makes the kernel do it.
//!
//! Of two pods that claim one port the first keeps it: the scheduler never puts them on one node, so the second was put here
//! by hand.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub(crate) use table::remove;

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// `IPPROTO_…`.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// Where a packet must be addressed to. Without an address, any of the machine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Door {
    /// Which family a door without an address is in.
    pub ipv6: bool,
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// One port of the node and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub door: Door,
    pub to: SocketAddr,
}

/// Every door of the node.
pub(crate) type Doors = BTreeMap<Door, SocketAddr>;

/// The containers of a pod whose ports the node opens: all, and of the init containers those that stay.
fn serving(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let sidecars = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    sidecars.chain(spec.into_iter().flat_map(|spec| &spec.containers))
}

/// What a pod with these addresses wants opened. A pod in the node's network needs nothing: its ports are the node's.
pub(crate) fn of(pod: &Pod, addresses: &[IpAddr]) -> Vec<HostPort> {
    if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false) {
        return Vec::new();
    }
    let mut all = Vec::new();
    for port in serving(pod).flat_map(|container| container.ports.iter().flatten()) {
        let number =
            |port: Option<i32>| port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let (Some(host), Some(own)) = (number(port.host_port), number(Some(port.container_port))) else {
            continue;
        };
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let wanted: Option<IpAddr> = port.host_ip.as_deref().and_then(|ip| ip.parse().ok());
        for address in addresses {
            // An address opens its own family alone, also one that stands for all of them.
            if wanted.is_some_and(|wanted| wanted.is_ipv6() != address.is_ipv6()) {
                continue;
            }
            let door = Door {
                ipv6: address.is_ipv6(),
                address: wanted.filter(|wanted| !wanted.is_unspecified()),
                protocol,
                port: host,
            };
            all.push(HostPort { door, to: SocketAddr::new(*address, own) });
        }
    }
    all
}

/// Which pod claims what, in the order in which they came.
#[derive(Debug, Default)]
struct Claims(Vec<(String, Vec<HostPort>)>);

impl Claims {
    fn claim(&mut self, uid: &str, ports: Vec<HostPort>) {
        match self.0.iter_mut().find(|(known, _)| known == uid) {
            Some((_, known)) => *known = ports,
            None if ports.is_empty() => {}
            None => self.0.push((uid.to_owned(), ports)),
        }
    }

    fn release(&mut self, uid: &str) {
        self.0.retain(|(known, _)| known != uid);
    }

    fn doors(&self) -> Doors {
        let mut doors = Doors::new();
        for port in self.0.iter().flat_map(|(_, ports)| ports) {
            doors.entry(port.door).or_insert(port.to);
        }
        doors
    }
}

/// The doors that lead elsewhere than before, or that are no more.
fn changed(before: &Doors, after: &Doors) -> BTreeSet<Door> {
    let doors = before.keys().chain(after.keys());
    doors.filter(|door| before.get(door) != after.get(door)).copied().collect()
}

/// Where a packet to an address and port of the node goes.
fn leads_to(doors: &Doors, address: IpAddr, protocol: Protocol, port: u16) -> Option<SocketAddr> {
    let door = |at| Door { ipv6: address.is_ipv6(), address: at, protocol, port };
    doors.get(&door(Some(address))).or_else(|| doors.get(&door(None))).copied()
}

/// The node's doors: what is claimed, and what the kernel was told.
#[derive(Debug)]
pub(crate) struct HostPorts {
    state: Mutex<State>,
    /// The addresses that doors without one are at, for those whose flows have to be forgotten.
    node_addresses: Vec<IpAddr>,
}

#[derive(Debug, Default)]
struct State {
    claims: Claims,
    /// `None` after a failure: nobody knows what the kernel has.
    applied: Option<Doors>,
    /// The tables' generation when they were last found as they should be.
    generation: u32,
}

impl HostPorts {
    /// With what pods have claimed since before this process started: their doors stay open.
    pub fn new(
        node_addresses: &[IpAddr],
        claims: impl IntoIterator<Item = (String, Vec<HostPort>)>,
    ) -> HostPorts {
        let mut known = Claims::default();
        for (uid, ports) in claims {
            known.claim(&uid, ports);
        }
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        HostPorts {
            state: Mutex::new(State { claims: known, ..State::default() }),
            node_addresses: node_addresses.iter().copied().chain(loopback).collect(),
        }
    }

    /// Opens a pod's doors. Blocks while the kernel is told.
    pub fn open(&self, uid: &str, ports: Vec<HostPort>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.claims.claim(uid, ports);
        self.settle(&mut state)
    }

    /// Closes a pod's doors. Blocks while the kernel is told.
    pub fn close(&self, uid: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.claims.release(uid);
        self.settle(&mut state)
    }

    /// Puts back what somebody else has taken away, as by `nft flush ruleset`. Blocks.
    pub fn heal(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(applied) = state.applied.as_ref().filter(|applied| !applied.is_empty()) {
            match table::intact(applied, state.generation)? {
                Some(generation) => state.generation = generation,
                None => state.applied = None,
            }
        }
        self.settle(&mut state)
    }

    fn settle(&self, state: &mut State) -> io::Result<()> {
        let wanted = state.claims.doors();
        if state.applied.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let before = state.applied.take();
        table::replace(&wanted)?;
        table::forget(
            &changed(before.as_ref().unwrap_or(&Doors::new()), &wanted),
            &wanted,
            &self.node_addresses,
        )?;
        state.generation = 0;
        state.applied = Some(wanted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a Pod")
    }

    fn addresses() -> Vec<IpAddr> {
        ["10.1.0.1", "fd00::1"].map(|text| text.parse().expect("an address")).to_vec()
    }

    fn shown(ports: &[HostPort]) -> Vec<String> {
        let one = |port: &HostPort| {
            let Door { address, protocol, port: number, .. } = port.door;
            let at = address.map_or_else(|| "*".to_owned(), |address| address.to_string());
            format!("{protocol:?} {at} {number} > {}", port.to)
        };
        ports.iter().map(one).collect()
    }

    #[test]
    fn a_host_port_is_open_in_the_families_that_its_address_stands_for() {
        let with = |port: serde_json::Value| {
            shown(&of(&pod(json!({"containers": [{"name": "c", "ports": [port]}]})), &addresses()))
        };
        let any = ["Tcp * 80 > 10.1.0.1:8080", "Tcp * 80 > [fd00::1]:8080"];
        assert_eq!(with(json!({"containerPort": 8080, "hostPort": 80})), any);
        assert_eq!(with(json!({"containerPort": 8080, "hostPort": 80, "hostIP": "0.0.0.0"})), any[..1]);
        assert_eq!(with(json!({"containerPort": 8080, "hostPort": 80, "hostIP": "::"})), any[1..]);
        assert_eq!(
            with(json!({"containerPort": 53, "hostPort": 5353, "hostIP": "127.0.0.1", "protocol": "UDP"})),
            ["Udp 127.0.0.1 5353 > 10.1.0.1:53"]
        );
        assert!(with(json!({"containerPort": 8080})).is_empty());
    }

    #[test]
    fn sidecars_have_doors_and_pods_in_the_nodes_network_need_none() {
        let ports = json!([{"containerPort": 1, "hostPort": 1}]);
        let init = json!([
            {"name": "i", "ports": [{"containerPort": 2, "hostPort": 2}]},
            {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 3, "hostPort": 3}]}
        ]);
        let spec = json!({"containers": [{"name": "c", "ports": ports}], "initContainers": init});
        let opened: Vec<u16> =
            of(&pod(spec.clone()), &addresses()[..1]).iter().map(|one| one.door.port).collect();
        assert_eq!(opened, [3, 1]);
        let mut spec = spec;
        spec["hostNetwork"] = json!(true);
        assert!(of(&pod(spec), &addresses()).is_empty());
    }

    #[test]
    fn the_first_of_two_that_claim_a_door_keeps_it_until_it_goes() {
        let door = Door { ipv6: false, address: None, protocol: Protocol::Tcp, port: 80 };
        let port = |to: &str| vec![HostPort { door, to: to.parse().expect("a socket's address") }];
        let mut claims = Claims::default();
        claims.claim("a", port("10.1.0.1:80"));
        claims.claim("b", port("10.1.0.2:80"));
        let first = claims.doors();
        assert_eq!(first[&door].to_string(), "10.1.0.1:80");
        claims.release("a");
        assert_eq!(claims.doors()[&door].to_string(), "10.1.0.2:80");
        assert_eq!(changed(&first, &claims.doors()), BTreeSet::from([door]));
        assert!(changed(&first, &first).is_empty());
        let at: IpAddr = [192, 0, 2, 1].into();
        let own = Door { address: Some(at), ..door };
        let mut doors = claims.doors();
        doors.insert(own, "10.1.0.3:80".parse().expect("a socket's address"));
        let leads =
            |address: IpAddr, protocol| leads_to(&doors, address, protocol, 80).map(|to| to.to_string());
        assert_eq!(leads(at, Protocol::Tcp).as_deref(), Some("10.1.0.3:80"));
        assert_eq!(leads([192, 0, 2, 2].into(), Protocol::Tcp).as_deref(), Some("10.1.0.2:80"));
        assert_eq!(leads(at, Protocol::Udp), None);
    }
}
