//! What a lab consists of, as a value: machines, addresses, ranges. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The port of the API server in the lab.
pub const API_PORT: u16 = 6443;
/// The bit lengths of the local network's prefixes.
const PREFIX: (u8, u8) = (24, 64);

/// An IP family, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> IpFamily {
        if address.is_ipv4() { IpFamily::IPv4 } else { IpFamily::IPv6 }
    }
}

impl std::fmt::Display for IpFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            IpFamily::IPv4 => "IPv4",
            IpFamily::IPv6 => "IPv6",
        })
    }
}

impl FromStr for IpFamily {
    type Err = String;

    fn from_str(text: &str) -> Result<IpFamily, String> {
        match text.to_ascii_lowercase().as_str() {
            "ipv4" => Ok(IpFamily::IPv4),
            "ipv6" => Ok(IpFamily::IPv6),
            _ => Err("expected IPv4 or IPv6".into()),
        }
    }
}

/// A transport protocol that can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        })
    }
}

/// A port of the nodes that answers on this machine's loopback address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Publish {
    /// The port on 127.0.0.1.
    pub host_port: u16,
    /// The port of the nodes.
    pub port: u16,
    /// The protocol.
    pub protocol: Transport,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Publish, String> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Transport::Tcp),
            Some((ports, word)) => match word.to_ascii_lowercase().as_str() {
                "tcp" => (ports, Transport::Tcp),
                "udp" => (ports, Transport::Udp),
                _ => return Err("expected /tcp or /udp after the ports".into()),
            },
        };
        let (host, node) = ports.split_once(':').ok_or("expected HOSTPORT:PORT, such as 8080:30163")?;
        let number = |word: &str| match word.parse() {
            Ok(port @ 1..=u16::MAX) => Ok(port),
            _ => Err(format!("{word:?} is not a port: expected 1 to 65535")),
        };
        Ok(Publish { host_port: number(host)?, port: number(node)?, protocol })
    }
}

/// A machine of the lab: a network namespace with one link, `eth0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name; a node's is also that of its Node object.
    pub name: String,
    /// Its addresses on the local network, one of each family, the primary family first.
    pub addresses: Vec<IpAddr>,
    /// Its default gateways, one of each family.
    pub gateways: Vec<IpAddr>,
    /// The hardware address of its link.
    pub mac: [u8; 6],
}

/// A whole lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// The lab's name.
    pub name: String,
    /// The families, the primary one first.
    pub families: Vec<IpFamily>,
    /// The local network: a bridge with a router's addresses, behind which there is nothing: packets for elsewhere are
    /// answered "unreachable".
    pub lan: Machine,
    /// Runs the API server.
    pub server: Machine,
    /// The nodes.
    pub nodes: Vec<Machine>,
    /// A host of the local network that is not in the cluster. What it sends elsewhere goes to the first node, so that
    /// a packet for a ClusterIP does arrive where it is to be refused.
    pub client: Machine,
    /// Ranges of ClusterIPs.
    pub service_cidrs: Vec<IpNet>,
    /// Ranges of pods' addresses.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses for load balancers.
    pub pool: Vec<String>,
}

/// What a topology is made from. Where a list is empty the usual values of the families are taken.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The lab's name.
    pub name: String,
    /// How many nodes.
    pub nodes: u8,
    /// The families, the primary one first.
    pub families: Vec<IpFamily>,
    /// Ranges of ClusterIPs.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses for load balancers.
    pub pool: Vec<String>,
}

impl Topology {
    /// Lays a lab out, or says which option can't be.
    pub fn plan(wish: Wish) -> Result<Topology, String> {
        let families = wish.families;
        if families.is_empty() || families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
            return Err("--ip-families: expected IPv4, IPv6, or both, each once".into());
        }
        let of_family = |four: &str, six: &str| -> Vec<String> {
            families.iter().map(|f| if *f == IpFamily::IPv4 { four } else { six }.to_owned()).collect()
        };
        let networks =
            |texts: Vec<String>| -> Vec<IpNet> { texts.iter().filter_map(|t| t.parse().ok()).collect() };

        let mut service_cidrs = wish.service_cidrs;
        if service_cidrs.is_empty() {
            service_cidrs = networks(of_family("10.96.0.0/16", "fd00:10:96::/112"));
        }
        let wanted: Vec<IpFamily> = service_cidrs.iter().map(|c| IpFamily::of(c.addr())).collect();
        if wanted != families {
            return Err(format!(
                "--service-cidr: expected one range of each of --ip-families and in their order ({}), got {}",
                listed(&families),
                listed(&wanted)
            ));
        }
        let cluster_cidrs = networks(of_family("10.244.0.0/16", "fd00:10:244::/56"));
        let lan = networks(of_family("10.80.0.0/24", "fd00:80::/64"));
        for cidr in &service_cidrs {
            if let Some(other) = cluster_cidrs.iter().chain(&lan).find(|o| overlap(o, cidr)) {
                return Err(format!(
                    "--service-cidr: {cidr} overlaps the lab's own {other}; choose another range"
                ));
            }
        }
        if let Some(cidr) = service_cidrs.iter().find(|cidr| name_server(cidr).is_none()) {
            return Err(format!(
                "--service-cidr: {cidr} has no tenth address, which is the name server's; choose a larger range"
            ));
        }
        let mut pool = wish.pool;
        if pool.is_empty() {
            pool = of_family("10.80.0.200-10.80.0.250", "fd00:80::200-fd00:80::2ff");
        }
        let machine = |name: String, host: u16, gateway: u16| Machine {
            name,
            addresses: families.iter().map(|f| address(*f, host)).collect(),
            gateways: families.iter().filter(|_| gateway != 0).map(|f| address(*f, gateway)).collect(),
            mac: [0x02, 0x50, 0, 0, (host >> 8) as u8, host as u8],
        };
        Ok(Topology {
            lan: machine("lan".into(), 1, 0),
            server: machine("server".into(), 2, 1),
            nodes: (1..=wish.nodes).map(|n| machine(format!("node-{n}"), 10 + u16::from(n), 1)).collect(),
            client: machine("client".into(), 100, 11),
            name: wish.name,
            families: families.clone(),
            service_cidrs,
            cluster_cidrs,
            pool,
        })
    }

    /// The machines that have a link to the local network.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        [&self.server].into_iter().chain(&self.nodes).chain([&self.client])
    }

    /// The addresses of the Service that stands for the name servers, one of each family: the tenth of each range, as usual.
    pub fn cluster_dns(&self) -> Vec<IpAddr> {
        self.service_cidrs.iter().filter_map(name_server).collect()
    }

    /// The machine of this name.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines().find(|machine| machine.name == name)
    }
}

impl Machine {
    /// Its address of a family.
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| IpFamily::of(*a) == family)
    }
}

/// The length of the local network's prefix for an address.
pub fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { PREFIX.0 } else { PREFIX.1 }
}

/// The local network's address of a host; in IPv6 its number is written with the same digits: `fd00:80::11`.
fn address(family: IpFamily, host: u16) -> IpAddr {
    match family {
        IpFamily::IPv4 => Ipv4Addr::new(10, 80, 0, host as u8).into(),
        IpFamily::IPv6 => {
            let digits = u16::from_str_radix(&host.to_string(), 16).unwrap_or(host);
            Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, digits).into()
        }
    }
}

/// The tenth address of a range.
fn name_server(cidr: &IpNet) -> Option<IpAddr> {
    let address = match cidr.network() {
        IpAddr::V4(ip) => IpAddr::from((u32::from(ip).checked_add(10)?).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip).checked_add(10)?).to_be_bytes()),
    };
    cidr.contains(&address).then_some(address)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn listed(families: &[IpFamily]) -> String {
    families.iter().map(IpFamily::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(families: &[IpFamily]) -> Wish {
        Wish {
            name: "lab".into(),
            nodes: 3,
            families: families.to_vec(),
            service_cidrs: vec![],
            pool: vec![],
        }
    }

    #[test]
    fn both_families_give_every_machine_two_addresses_the_primary_first() {
        let lab = Topology::plan(wish(&[IpFamily::IPv6, IpFamily::IPv4])).expect("a topology");
        let node = lab.machine("node-2").expect("a node");
        assert_eq!(node.addresses, ["fd00:80::12".parse::<IpAddr>().unwrap(), [10, 80, 0, 12].into()]);
        assert_eq!(lab.client.gateways[1], IpAddr::from([10, 80, 0, 11]));
        assert_eq!(lab.service_cidrs[0].to_string(), "fd00:10:96::/112");
        assert_eq!(lab.machines().count(), 5);
    }

    #[test]
    fn machines_differ_in_address_and_hardware_address() {
        let lab = Topology::plan(Wish { nodes: 64, ..wish(&[IpFamily::IPv4, IpFamily::IPv6]) })
            .expect("a topology");
        let mut seen = std::collections::BTreeSet::new();
        for machine in lab.machines().chain([&lab.lan]) {
            assert!(seen.insert(format!("{:?}", machine.mac)), "{machine:?}");
            for address in &machine.addresses {
                assert!(seen.insert(address.to_string()), "{machine:?}");
            }
        }
    }

    #[test]
    fn a_range_that_can_not_be_is_refused_with_its_option() {
        let both = [IpFamily::IPv4, IpFamily::IPv6];
        let with = |cidrs: &[&str]| {
            let service_cidrs = cidrs.iter().map(|c| c.parse().unwrap()).collect();
            Topology::plan(Wish { service_cidrs, ..wish(&both) })
        };
        assert!(with(&["10.0.0.0/16", "fd01::/112"]).is_ok());
        assert_eq!(
            with(&["10.0.0.0/16", "fd01::/112"]).expect("a topology").cluster_dns(),
            ["10.0.0.10".parse::<IpAddr>().unwrap(), "fd01::a".parse().unwrap()]
        );
        for bad in [
            &["10.0.0.0/16"][..],
            &["fd01::/112", "10.0.0.0/16"],
            &["10.244.8.0/24", "fd01::/112"],
            &["10.0.0.0/29", "fd01::/112"],
        ] {
            assert!(with(bad).is_err_and(|e| e.starts_with("--service-cidr: ")), "{bad:?}");
        }
        assert!(Topology::plan(wish(&[IpFamily::IPv4; 2])).is_err_and(|e| e.starts_with("--ip-families: ")));
    }

    #[test]
    fn a_published_port_is_read_with_its_protocol() {
        let udp = Publish { host_port: 53, port: 30053, protocol: Transport::Udp };
        assert_eq!("53:30053/udp".parse(), Ok(udp));
        assert_eq!("8080:30163".parse::<Publish>().map(|p| p.protocol), Ok(Transport::Tcp));
        for bad in ["8080", "0:30163", "8080:70000", "8080:30163/sctp", ":"] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }
}
