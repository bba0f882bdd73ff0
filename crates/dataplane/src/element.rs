//! Elements: what a plan consists of in the kernel, each with its place, its key and its data.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portolan_plan::model::{Backend, Family, Frontend, Protocol, ServiceName};

use crate::word::{SetId, Word};

/// A set or map of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Address, protocol, port → word.
    Frontends,
    /// The same for connections from inside, where that differs.
    FrontendsInside,
    /// Protocol, port → word, on the node's addresses.
    NodePorts,
    /// The same for connections from inside, where that differs.
    NodePortsInside,
    /// Plain set, slot → backend.
    Slots,
    /// Sticky set, slot → token.
    Tokens,
    /// Token → backend.
    Endpoints,
    /// Addresses that have frontends.
    Vips,
    /// Those of them that are cluster IPs.
    ClusterIps,
    /// Frontends whose connections are masqueraded.
    Masquerade,
    /// Frontends whose connections from this node are masqueraded.
    MasqueradeNode,
    /// Node ports whose connections are masqueraded.
    MasqueradeNodePorts,
    /// Node ports whose connections from this node are masqueraded.
    MasqueradeNodeNodePorts,
    /// Connections of a local pod to itself.
    Hairpin,
    /// Sources of this prefix length that may connect to a frontend.
    Ranges(u8),
    /// Sources of this prefix length that may connect to a node port.
    RangesNodePorts(u8),
}

/// One element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// What a frontend does.
    Frontend {
        /// The frontend.
        frontend: Frontend,
        /// For connections from inside.
        inside: bool,
        /// The decision.
        word: Word,
        /// Whose it is: a comment, for readers.
        owner: Option<ServiceName>,
    },
    /// A backend in a slot of a plain set.
    Slot {
        /// The set.
        set: SetId,
        /// The slot.
        slot: u32,
        /// The backend.
        backend: Backend,
    },
    /// A token in a slot of a sticky set.
    Token {
        /// The family.
        family: Family,
        /// The set.
        set: SetId,
        /// The slot.
        slot: u32,
        /// The token.
        token: Word,
    },
    /// The backend that a token stands for.
    Endpoint {
        /// The token.
        token: Word,
        /// The backend.
        backend: Backend,
    },
    /// An address that has frontends.
    Vip(IpAddr),
    /// A cluster IP.
    ClusterIp(IpAddr),
    /// Connections to a frontend get this node's address as their source.
    Masquerade {
        /// The frontend.
        frontend: Frontend,
        /// Only those that start on this node.
        node: bool,
    },
    /// A pod on this node.
    Hairpin(IpAddr),
    /// Sources that may connect to a frontend.
    Range {
        /// The sources.
        net: IpNet,
        /// The frontend.
        frontend: Frontend,
    },
}

/// A key or data: at most forty bytes.
#[derive(Clone, Copy, Debug)]
pub struct Short {
    bytes: [u8; 40],
    length: usize,
}

impl Short {
    fn new() -> Short {
        Short { bytes: [0; 40], length: 0 }
    }

    /// Appends a field, padded to four bytes as concatenations want it.
    fn push(mut self, field: &[u8]) -> Short {
        self.bytes[self.length..self.length + field.len()].copy_from_slice(field);
        self.length += field.len().next_multiple_of(4);
        self
    }

    fn address(self, address: IpAddr) -> Short {
        match address {
            IpAddr::V4(a) => self.push(&a.octets()),
            IpAddr::V6(a) => self.push(&a.octets()),
        }
    }

    fn word(self, word: u32) -> Short {
        self.push(&word.to_ne_bytes())
    }

    fn backend(self, backend: Backend) -> Short {
        self.address(backend.address).push(&backend.port.to_be_bytes())
    }

    fn frontend(self, frontend: &Frontend) -> Short {
        match *frontend {
            Frontend::Address { address, protocol, port } => {
                self.address(address).push(&[protocol.number()]).push(&port.to_be_bytes())
            }
            Frontend::NodePort { protocol, port, .. } => {
                self.push(&[protocol.number()]).push(&port.to_be_bytes())
            }
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Short {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Place {
    /// The places that every table has; those of ranges are made when a prefix length is first seen.
    pub const FIXED: [Place; 14] = [
        Place::Frontends,
        Place::FrontendsInside,
        Place::NodePorts,
        Place::NodePortsInside,
        Place::Slots,
        Place::Tokens,
        Place::Endpoints,
        Place::Vips,
        Place::ClusterIps,
        Place::Masquerade,
        Place::MasqueradeNode,
        Place::MasqueradeNodePorts,
        Place::MasqueradeNodeNodePorts,
        Place::Hairpin,
    ];

    /// The set's name in the kernel.
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Place::Frontends => "frontends",
            Place::FrontendsInside => "frontends-inside",
            Place::NodePorts => "nodeports",
            Place::NodePortsInside => "nodeports-inside",
            Place::Slots => "slots",
            Place::Tokens => "tokens",
            Place::Endpoints => "endpoints",
            Place::Vips => "vips",
            Place::ClusterIps => "cluster-ips",
            Place::Masquerade => "masq",
            Place::MasqueradeNode => "masq-node",
            Place::MasqueradeNodePorts => "masq-nodeports",
            Place::MasqueradeNodeNodePorts => "masq-node-nodeports",
            Place::Hairpin => "hairpin",
            Place::Ranges(length) => return Cow::Owned(format!("ranges-{length}")),
            Place::RangesNodePorts(length) => return Cow::Owned(format!("ranges-nodeports-{length}")),
        })
    }

    /// The place of ranges with this name.
    pub fn of_ranges(name: &str) -> Option<Place> {
        if let Some(length) = name.strip_prefix("ranges-nodeports-") {
            return length.parse().ok().map(Place::RangesNodePorts);
        }
        name.strip_prefix("ranges-")?.parse().ok().map(Place::Ranges)
    }
}

impl Element {
    /// The family of the table that holds it.
    pub fn family(&self) -> Family {
        match self {
            Element::Frontend { frontend, .. }
            | Element::Masquerade { frontend, .. }
            | Element::Range { frontend, .. } => frontend.family(),
            Element::Slot { backend, .. } | Element::Endpoint { backend, .. } => Family::of(backend.address),
            Element::Token { family, .. } => *family,
            Element::Vip(address) | Element::ClusterIp(address) | Element::Hairpin(address) => {
                Family::of(*address)
            }
        }
    }

    /// The set or map that holds it.
    pub fn place(&self) -> Place {
        let node_port = |frontend: &Frontend| matches!(frontend, Frontend::NodePort { .. });
        match self {
            Element::Frontend { frontend, inside, .. } => match (node_port(frontend), inside) {
                (false, false) => Place::Frontends,
                (false, true) => Place::FrontendsInside,
                (true, false) => Place::NodePorts,
                (true, true) => Place::NodePortsInside,
            },
            Element::Slot { .. } => Place::Slots,
            Element::Token { .. } => Place::Tokens,
            Element::Endpoint { .. } => Place::Endpoints,
            Element::Vip(_) => Place::Vips,
            Element::ClusterIp(_) => Place::ClusterIps,
            Element::Masquerade { frontend, node } => match (node_port(frontend), node) {
                (false, false) => Place::Masquerade,
                (false, true) => Place::MasqueradeNode,
                (true, false) => Place::MasqueradeNodePorts,
                (true, true) => Place::MasqueradeNodeNodePorts,
            },
            Element::Hairpin(_) => Place::Hairpin,
            Element::Range { net, frontend } => match node_port(frontend) {
                false => Place::Ranges(net.prefix_len()),
                true => Place::RangesNodePorts(net.prefix_len()),
            },
        }
    }

    /// Its key.
    pub fn key(&self) -> Short {
        let key = Short::new();
        match self {
            Element::Frontend { frontend, .. } | Element::Masquerade { frontend, .. } => {
                key.frontend(frontend)
            }
            Element::Slot { set, slot, .. } | Element::Token { set, slot, .. } => key.word(set.0).word(*slot),
            Element::Endpoint { token, .. } => key.word(token.0),
            Element::Vip(address) | Element::ClusterIp(address) => key.address(*address),
            Element::Hairpin(address) => key.address(*address).address(*address),
            Element::Range { net, frontend } => key.address(net.network()).frontend(frontend),
        }
    }

    /// Its data, if its place is a map.
    pub fn data(&self) -> Option<Short> {
        let data = Short::new();
        match self {
            Element::Frontend { word, .. } | Element::Token { token: word, .. } => Some(data.word(word.0)),
            Element::Slot { backend, .. } | Element::Endpoint { backend, .. } => Some(data.backend(*backend)),
            _ => None,
        }
    }

    /// At most so many bytes of a batch.
    pub fn size(&self) -> usize {
        // The element's, key's and data's attributes have two headers each where they are nested.
        let comment = match self {
            Element::Frontend { owner: Some(owner), .. } => 12 + owner.namespace.len() + owner.name.len(),
            _ => 0,
        };
        12 + self.key().length + self.data().map_or(0, |d| 8 + d.length) + comment
    }

    /// Reads an element back; `None` for what this engine would never write.
    pub fn read(
        family: Family,
        place: Place,
        key: &[u8],
        data: Option<&[u8]>,
        comment: Option<&str>,
    ) -> Option<Element> {
        let mut key = Reader(key);
        let mut data = Reader(data.unwrap_or(&[]));
        let element = match place {
            Place::Frontends | Place::FrontendsInside => Element::Frontend {
                frontend: key.frontend(family)?,
                inside: place == Place::FrontendsInside,
                word: Word(data.word()?),
                owner: comment.and_then(owner),
            },
            Place::NodePorts | Place::NodePortsInside => Element::Frontend {
                frontend: key.node_port(family)?,
                inside: place == Place::NodePortsInside,
                word: Word(data.word()?),
                owner: comment.and_then(owner),
            },
            Place::Slots => {
                Element::Slot { set: SetId(key.word()?), slot: key.word()?, backend: data.backend(family)? }
            }
            Place::Tokens => Element::Token {
                family,
                set: SetId(key.word()?),
                slot: key.word()?,
                token: Word(data.word()?),
            },
            Place::Endpoints => {
                Element::Endpoint { token: Word(key.word()?), backend: data.backend(family)? }
            }
            Place::Vips => Element::Vip(key.address(family)?),
            Place::ClusterIps => Element::ClusterIp(key.address(family)?),
            Place::Masquerade | Place::MasqueradeNode => {
                Element::Masquerade { frontend: key.frontend(family)?, node: place == Place::MasqueradeNode }
            }
            Place::MasqueradeNodePorts | Place::MasqueradeNodeNodePorts => Element::Masquerade {
                frontend: key.node_port(family)?,
                node: place == Place::MasqueradeNodeNodePorts,
            },
            Place::Hairpin => {
                Element::Hairpin(key.address(family).filter(|a| key.address(family) == Some(*a))?)
            }
            Place::Ranges(length) => Element::Range {
                net: IpNet::new(key.address(family)?, length).ok()?,
                frontend: key.frontend(family)?,
            },
            Place::RangesNodePorts(length) => Element::Range {
                net: IpNet::new(key.address(family)?, length).ok()?,
                frontend: key.node_port(family)?,
            },
        };
        Some(element)
    }
}

/// A comment that is a Service's name.
fn owner(comment: &str) -> Option<ServiceName> {
    let (namespace, name) = comment.split_once('/')?;
    Some(ServiceName::new(namespace, name))
}

/// Reads the fields of a key.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.0.get(..N)?.try_into().ok()?;
        self.0 = self.0.get(N.next_multiple_of(4)..).unwrap_or(&[]);
        Some(bytes)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn port(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn protocol(&mut self) -> Option<Protocol> {
        match self.take::<1>()? {
            [6] => Some(Protocol::Tcp),
            [17] => Some(Protocol::Udp),
            [132] => Some(Protocol::Sctp),
            _ => None,
        }
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)),
        })
    }

    fn backend(&mut self, family: Family) -> Option<Backend> {
        Some(Backend { address: self.address(family)?, port: self.port()? })
    }

    fn frontend(&mut self, family: Family) -> Option<Frontend> {
        Some(Frontend::Address {
            address: self.address(family)?,
            protocol: self.protocol()?,
            port: self.port()?,
        })
    }

    fn node_port(&mut self, family: Family) -> Option<Frontend> {
        Some(Frontend::NodePort { family, protocol: self.protocol()?, port: self.port()? })
    }
}
