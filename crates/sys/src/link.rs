//! Links, addresses, routes and neighbours over rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::namespace;
use crate::netlink::{self, Attribute, Attributes, CREATE, EXCLUSIVE, Message, REPLACE, Reply, Socket};

// linux/rtnetlink.h
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;

// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_CARRIER: u16 = 33;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

const LINK_HEADER: usize = 16; // struct ifinfomsg
const ADDRESS_HEADER: usize = 8; // struct ifaddrmsg
const ROUTE_HEADER: usize = 12; // struct rtmsg

/// `IFF_UP`.
pub const UP: u32 = 0x1;
/// `IFF_LOOPBACK`.
pub const LOOPBACK: u32 = 0x8;

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;
/// The table of the host's own addresses, kept by the kernel.
pub const TABLE_LOCAL: u32 = 255;
/// `RTPROT_KERNEL`: a route that the kernel made.
pub const PROTOCOL_KERNEL: u8 = 2;
/// `RTPROT_STATIC`: a route that an administrator made.
pub const PROTOCOL_STATIC: u8 = 4;

/// A link as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFF_…`.
    pub flags: u32,
    /// Whether the other end of the cable is there.
    pub carrier: bool,
    /// Its hardware address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its MTU.
    pub mtu: u32,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// The index of its peer, in the peer's namespace, or of the link below it.
    pub peer: Option<u32>,
    /// What made it: `veth`, `bridge`, …; none for hardware.
    pub kind: Option<String>,
}

impl Link {
    /// Whether it is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix.
    pub prefix: u8,
    /// `RT_SCOPE_…`: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_…`.
    pub flags: u32,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Sends it on.
    #[default]
    Unicast,
    /// Delivers it to this host.
    Local,
    /// Drops it; a local sender gets `EINVAL`.
    Blackhole,
    /// Answers "host unreachable".
    Unreachable,
    /// Answers "prohibited".
    Prohibit,
    /// Any other kind, by its number.
    Other(u8),
}

impl RouteKind {
    fn number(self) -> u8 {
        match self {
            RouteKind::Unicast => 1,
            RouteKind::Local => 2,
            RouteKind::Blackhole => 6,
            RouteKind::Unreachable => 7,
            RouteKind::Prohibit => 8,
            RouteKind::Other(number) => number,
        }
    }

    fn of(number: u8) -> RouteKind {
        match number {
            1 => RouteKind::Unicast,
            2 => RouteKind::Local,
            6 => RouteKind::Blackhole,
            7 => RouteKind::Unreachable,
            8 => RouteKind::Prohibit,
            other => RouteKind::Other(other),
        }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The network.
    pub destination: IpAddr,
    /// The length of its prefix; 0 is the default route.
    pub prefix: u8,
    /// The next hop; may be of the other family.
    pub via: Option<IpAddr>,
    /// The next hop is on the link, whatever the link's addresses say.
    pub onlink: bool,
    /// The link's index.
    pub link: Option<u32>,
    /// What it does.
    pub kind: RouteKind,
    /// The source address that local senders get.
    pub source: Option<IpAddr>,
    /// The table.
    pub table: u32,
    /// Who made it (`RTPROT_…`).
    pub protocol: u8,
    /// Its metric; the kernel's default where none.
    pub metric: Option<u32>,
}

impl Route {
    /// An administrator's route in the main table that so far leads nowhere: add `via`, `on` or a kind.
    pub fn to(destination: IpAddr, prefix: u8) -> Route {
        Route {
            destination,
            prefix,
            via: None,
            onlink: false,
            link: None,
            kind: RouteKind::Unicast,
            source: None,
            table: TABLE_MAIN,
            protocol: PROTOCOL_STATIC,
            metric: None,
        }
    }

    /// The default route of the family of `via`.
    pub fn default_via(via: IpAddr) -> Route {
        let any = if via.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Route::to(any, 0).via(via)
    }

    /// With a next hop.
    pub fn via(mut self, gateway: IpAddr) -> Route {
        self.via = Some(gateway);
        self
    }

    /// Out of a link.
    pub fn on(mut self, link: u32) -> Route {
        self.link = Some(link);
        self
    }

    /// The next hop is on the link, whatever the link's addresses say.
    pub fn onlink(mut self) -> Route {
        self.onlink = true;
        self
    }

    /// Of another kind.
    pub fn kind(mut self, kind: RouteKind) -> Route {
        self.kind = kind;
        self
    }

    /// With a source address for local senders.
    pub fn source(mut self, source: IpAddr) -> Route {
        self.source = Some(source);
        self
    }

    /// Marked as made by another (`RTPROT_…`).
    pub fn protocol(mut self, protocol: u8) -> Route {
        self.protocol = protocol;
        self
    }
}

/// A link to make, in the namespace of the socket.
#[derive(Clone, Debug, Default)]
pub struct LinkEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address; random where none.
    pub mac: Option<[u8; 6]>,
    /// The network namespace that it is made in; the socket's where none.
    pub netns: Option<BorrowedFd<'a>>,
}

impl<'a> LinkEnd<'a> {
    /// An end of this name in the socket's namespace.
    pub fn named(name: &'a str) -> LinkEnd<'a> {
        LinkEnd { name, mac: None, netns: None }
    }

    /// With this hardware address.
    pub fn mac(mut self, mac: [u8; 6]) -> LinkEnd<'a> {
        self.mac = Some(mac);
        self
    }

    /// In this network namespace.
    pub fn in_netns(mut self, netns: BorrowedFd<'a>) -> LinkEnd<'a> {
        self.netns = Some(netns);
        self
    }

    fn write(&self, message: &mut Message) {
        message.str(IFLA_IFNAME, self.name);
        if let Some(mac) = self.mac {
            message.bytes(IFLA_ADDRESS, &mac);
        }
        if let Some(netns) = self.netns {
            message.u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
        }
    }
}

/// The links, addresses, routes and neighbours of one network namespace.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

impl Links {
    /// Of the calling thread's namespace.
    pub fn open() -> io::Result<Links> {
        Ok(Links { socket: Socket::open(netlink::ROUTE)? })
    }

    /// Of another namespace; the caller stays where it is.
    pub fn open_in(netns: BorrowedFd<'_>) -> io::Result<Links> {
        namespace::in_netns(netns, Links::open)?
    }

    // --- Links ---

    /// Makes two links joined by a cable.
    pub fn add_veth(&mut self, end: &LinkEnd<'_>, peer: &LinkEnd<'_>) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        message.raw(&link_header(0, 0, 0));
        end.write(&mut message);
        message.nest(IFLA_LINKINFO, |m| {
            m.str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&link_header(0, 0, 0));
                    peer.write(m);
                });
            });
        });
        self.socket.request(&mut message)
    }

    /// Makes a bridge.
    pub fn add_bridge(&mut self, end: &LinkEnd<'_>) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        message.raw(&link_header(0, 0, 0));
        end.write(&mut message);
        message.nest(IFLA_LINKINFO, |m| {
            m.str(IFLA_INFO_KIND, "bridge");
        });
        self.socket.request(&mut message)
    }

    /// Takes a link away; its peer goes with it.
    pub fn delete(&mut self, link: u32) -> io::Result<()> {
        self.socket.request(Message::new(DELETE_LINK, 0).raw(&link_header(link, 0, 0)))
    }

    /// Sets a link up or down.
    pub fn set_up(&mut self, link: u32, up: bool) -> io::Result<()> {
        let flags = if up { UP } else { 0 };
        self.socket.request(Message::new(NEW_LINK, 0).raw(&link_header(link, flags, UP)))
    }

    /// Makes a link the port of a bridge, or of none.
    pub fn set_master(&mut self, link: u32, bridge: Option<u32>) -> io::Result<()> {
        self.change(link, |m| {
            m.u32(IFLA_MASTER, bridge.unwrap_or(0));
        })
    }

    /// Sets a link's hardware address.
    pub fn set_mac(&mut self, link: u32, mac: [u8; 6]) -> io::Result<()> {
        self.change(link, |m| {
            m.bytes(IFLA_ADDRESS, &mac);
        })
    }

    /// Sets a link's MTU.
    pub fn set_mtu(&mut self, link: u32, mtu: u32) -> io::Result<()> {
        self.change(link, |m| {
            m.u32(IFLA_MTU, mtu);
        })
    }

    /// Renames a link, which must be down on kernels before 6.2.
    pub fn rename(&mut self, link: u32, name: &str) -> io::Result<()> {
        self.change(link, |m| {
            m.str(IFLA_IFNAME, name);
        })
    }

    /// Moves a link into another network namespace; it arrives down and without addresses.
    pub fn move_to(&mut self, link: u32, netns: BorrowedFd<'_>) -> io::Result<()> {
        self.change(link, |m| {
            m.u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
        })
    }

    fn change(&mut self, link: u32, inside: impl FnOnce(&mut Message)) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, 0);
        message.raw(&link_header(link, 0, 0));
        inside(&mut message);
        self.socket.request(&mut message)
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let replies = self.socket.dump_all(Message::new(GET_LINK, 0).raw(&link_header(0, 0, 0)))?;
        Ok(replies.iter().filter_map(|r| read_link(&r.payload)).collect())
    }

    /// The link of this name; `ENODEV` where there is none.
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        let mut found = None;
        let mut message = Message::new(GET_LINK, 0);
        message.raw(&link_header(0, 0, 0)).str(IFLA_IFNAME, name);
        self.socket.query(&mut message, |reply| found = read_link(reply.payload))?;
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no link {name}")))
    }

    /// The index of the link of this name; `ENODEV` where there is none.
    pub fn index(&mut self, name: &str) -> io::Result<u32> {
        self.link(name).map(|link| link.index)
    }

    // --- Addresses ---

    /// Gives a link an address, at once usable (no duplicate address detection). No error if it has it.
    pub fn add_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        const NO_DAD: u32 = 0x2;
        let mut message = address_message(NEW_ADDRESS, CREATE | REPLACE, link, address, prefix);
        message.u32(8, NO_DAD);
        self.socket.request(&mut message)
    }

    /// Takes an address away. No error if the link doesn't have it.
    pub fn delete_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let done = self.socket.request(&mut address_message(DELETE_ADDRESS, 0, link, address, prefix));
        unless(done, &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }

    /// All addresses of all links, both families.
    pub fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let replies = self.socket.dump_all(Message::new(GET_ADDRESS, 0).raw(&[0; ADDRESS_HEADER]))?;
        Ok(replies.iter().filter_map(read_address).collect())
    }

    // --- Routes ---

    /// Adds a route; `EEXIST` if there is one.
    pub fn add_route(&mut self, route: &Route) -> io::Result<()> {
        self.socket.request(&mut route_message(NEW_ROUTE, CREATE | EXCLUSIVE, route))
    }

    /// Adds a route, or puts it in the place of the one with its destination, table and metric.
    pub fn replace_route(&mut self, route: &Route) -> io::Result<()> {
        self.socket.request(&mut route_message(NEW_ROUTE, CREATE | REPLACE, route))
    }

    /// Removes a route. No error if there is none.
    pub fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        let done = self.socket.request(&mut route_message(DELETE_ROUTE, 0, route));
        unless(done, &[libc::ESRCH, libc::ENODEV, libc::ENETUNREACH])
    }

    /// All routes of the main table, both families.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut header = [0; ROUTE_HEADER];
            header[0] = family as u8;
            let replies = match self.socket.dump_all(Message::new(GET_ROUTE, 0).raw(&header)) {
                // A kernel without IPv6 has no such table.
                Err(error) if family == libc::AF_INET6 && unsupported(&error) => continue,
                other => other?,
            };
            all.extend(replies.iter().filter_map(read_route).filter(|r| r.table == TABLE_MAIN));
        }
        Ok(all)
    }

    /// The route by which this host would send to an address, after all policy rules: the table's entry, with its prefix.
    /// The error is the one that a sender would get: `ENETUNREACH`, `EHOSTUNREACH`, `EACCES`, `EINVAL` for a blackhole.
    pub fn route_to(&mut self, address: IpAddr) -> io::Result<Option<Route>> {
        const FIB_MATCH: u32 = 0x2000; // RTM_F_FIB_MATCH, rtnetlink.h: the entry itself, not the path made from it
        let mut header = [0; ROUTE_HEADER];
        header[0] = family(address);
        header[1] = if address.is_ipv4() { 32 } else { 128 };
        header[8..12].copy_from_slice(&FIB_MATCH.to_ne_bytes());
        let mut request = Message::new(GET_ROUTE, 0);
        request.raw(&header).bytes(1, &octets(address));
        let mut found = None;
        self.socket.query(&mut request, |message| {
            found = read_route(&Reply { kind: message.kind, payload: message.payload.to_vec() });
        })?;
        Ok(found)
    }

    // --- Neighbours ---

    /// Says for good which hardware address an address on a link has.
    pub fn replace_neighbour(&mut self, link: u32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        const PERMANENT: u16 = 0x80;
        let mut message = Message::new(NEW_NEIGHBOUR, CREATE | REPLACE);
        message.raw(&neighbour_header(address, link, PERMANENT));
        message.bytes(1, &octets(address)).bytes(2, &mac);
        self.socket.request(&mut message)
    }

    /// Forgets it. No error if there is nothing to forget.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> io::Result<()> {
        let mut message = Message::new(DELETE_NEIGHBOUR, 0);
        message.raw(&neighbour_header(address, link, 0)).bytes(1, &octets(address));
        unless(self.socket.request(&mut message), &[libc::ENOENT, libc::ENODEV])
    }
}

/// The name of the link that has this address, in the calling thread's namespace.
pub fn holding(address: IpAddr) -> io::Result<Option<String>> {
    let mut links = Links::open()?;
    let Some(found) = links.addresses()?.into_iter().find(|a| a.address == address) else { return Ok(None) };
    Ok(links.links()?.into_iter().find(|link| link.index == found.link).map(|link| link.name))
}

// === Messages ===

fn unless(result: io::Result<()>, harmless: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if netlink::errno(&error).is_some_and(|n| harmless.contains(&n)) => Ok(()),
        other => other,
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(netlink::errno(error), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn neighbour_header(address: IpAddr, link: u32, state: u16) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family(address);
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header
}

fn address_message(kind: u16, flags: u16, link: u32, address: IpAddr, prefix: u8) -> Message {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = family(address);
    header[1] = prefix;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    let mut message = Message::new(kind, flags);
    message.raw(&header);
    let address = octets(address);
    message.bytes(2, &address).bytes(1, &address); // IFA_LOCAL, IFA_ADDRESS
    message
}

fn route_message(kind: u16, flags: u16, route: &Route) -> Message {
    const ONLINK: u32 = 4;
    const SCOPE_LINK: u8 = 253;
    const SCOPE_HOST: u8 = 254;
    const SCOPE_NOWHERE: u8 = 255;
    let scope = match route {
        _ if kind == DELETE_ROUTE => SCOPE_NOWHERE,
        Route { kind: RouteKind::Local, .. } => SCOPE_HOST,
        Route { kind: RouteKind::Unicast, via: None, .. } => SCOPE_LINK,
        _ => 0,
    };
    let mut header = [0; ROUTE_HEADER];
    header[0] = family(route.destination);
    header[1] = route.prefix;
    header[4] = u8::try_from(route.table).unwrap_or(0); // 0: see the attribute
    header[5] = route.protocol;
    header[6] = scope;
    header[7] = route.kind.number();
    let next_hop_flags = if route.onlink { ONLINK } else { 0 };
    header[8..12].copy_from_slice(&next_hop_flags.to_ne_bytes());
    let mut message = Message::new(kind, flags);
    message.raw(&header).bytes(1, &octets(route.destination)).u32(15, route.table);
    if let Some(link) = route.link {
        message.u32(4, link);
    }
    if let Some(metric) = route.metric {
        message.u32(6, metric);
    }
    if let Some(source) = route.source {
        message.bytes(7, &octets(source));
    }
    match route.via {
        Some(via) if via.is_ipv4() == route.destination.is_ipv4() => {
            message.bytes(5, &octets(via));
        }
        // RTA_VIA: a next hop of the other family, `struct rtvia`.
        Some(via) => {
            let mut value = u16::from(family(via)).to_ne_bytes().to_vec();
            value.extend(octets(via));
            message.bytes(18, &value);
        }
        None => {}
    }
    message
}

// === Replies ===

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let mut link = Link { index: word(payload, 4)?, flags: word(payload, 8)?, ..Link::default() };
    for attribute in Attributes::new(payload.get(LINK_HEADER..)?) {
        match attribute.kind {
            IFLA_ADDRESS => link.mac = attribute.value.try_into().ok(),
            IFLA_IFNAME => link.name = attribute.str(),
            IFLA_MTU => link.mtu = attribute.u32(),
            IFLA_LINK => link.peer = Some(attribute.u32()),
            IFLA_MASTER => link.master = Some(attribute.u32()),
            IFLA_CARRIER => link.carrier = attribute.u8() != 0,
            IFLA_LINKINFO => link.kind = attribute.inside().find(IFLA_INFO_KIND).map(|kind| kind.str()),
            _ => {}
        }
    }
    Some(link)
}

fn read_address(reply: &Reply) -> Option<Address> {
    let payload = &reply.payload;
    let (mut local, mut remote) = (None, None);
    let mut flags = u32::from(*payload.get(2)?);
    for attribute in reply.attributes(ADDRESS_HEADER) {
        match attribute.kind {
            1 => remote = ip(attribute.value),
            2 => local = ip(attribute.value),
            8 => flags = attribute.u32(),
            _ => {}
        }
    }
    // IPv6 has only IFA_ADDRESS; on a point-to-point link of IPv4 that is the other end.
    let address = local.or(remote)?;
    Some(Address {
        link: word(payload, 4)?,
        address,
        prefix: *payload.get(1)?,
        scope: *payload.get(3)?,
        flags,
    })
}

fn read_route(reply: &Reply) -> Option<Route> {
    let payload = &reply.payload;
    let any: IpAddr = if i32::from(*payload.first()?) == libc::AF_INET {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let mut route = Route::to(any, *payload.get(1)?).protocol(*payload.get(5)?);
    route.table = u32::from(*payload.get(4)?);
    route.kind = RouteKind::of(*payload.get(7)?);
    route.onlink = word(payload, 8)? & 4 != 0;
    for attribute in reply.attributes(ROUTE_HEADER) {
        read_route_attribute(&mut route, &attribute);
    }
    Some(route)
}

fn read_route_attribute(route: &mut Route, attribute: &Attribute<'_>) {
    match attribute.kind {
        1 => route.destination = ip(attribute.value).unwrap_or(route.destination),
        4 => route.link = Some(attribute.u32()),
        5 => route.via = ip(attribute.value),
        6 => route.metric = Some(attribute.u32()),
        7 => route.source = ip(attribute.value),
        15 => route.table = attribute.u32(),
        18 => route.via = attribute.value.get(2..).and_then(ip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Runs a test in two network namespaces of its own, if this machine lets anybody make them.
    fn in_two_namespaces(promise: &str, test: impl FnOnce(&mut Links, &mut Links, BorrowedFd<'_>) + Send) {
        if !crate::trial::goes_on(promise) {
            return;
        }
        let (here, there) =
            (namespace::new_netns().expect("a namespace"), namespace::new_netns().expect("another"));
        let mut near = Links::open_in(here.as_fd()).expect("a socket here");
        let mut far = Links::open_in(there.as_fd()).expect("a socket there");
        test(&mut near, &mut far, there.as_fd());
    }

    #[test]
    fn a_veth_pair_spans_two_namespaces_and_goes_as_one() {
        in_two_namespaces("a veth pair spans two namespaces and goes as one", |near, far, there| {
            let mac = [2, 0, 0, 0, 0, 7];
            near.add_veth(&LinkEnd::named("cable"), &LinkEnd::named("eth0").mac(mac).in_netns(there))
                .expect("a veth pair");
            let (cable, eth0) = (near.link("cable").expect("near"), far.link("eth0").expect("far"));
            assert_eq!(
                (eth0.mac, eth0.kind.as_deref(), eth0.peer),
                (Some(mac), Some("veth"), Some(cable.index))
            );
            assert!(!eth0.is_up() && !eth0.carrier);
            near.set_up(cable.index, true).expect("up");
            far.set_up(eth0.index, true).expect("up");
            assert!(far.link("eth0").is_ok_and(|l| l.is_up() && l.carrier));

            near.delete(cable.index).expect("delete");
            let error = far.link("eth0").expect_err("gone with its peer");
            assert_eq!(netlink::errno(&error), Some(libc::ENODEV));
        });
    }

    #[test]
    fn a_link_is_enslaved_renamed_and_moved() {
        in_two_namespaces("a link is enslaved, renamed and moved", |near, far, there| {
            near.add_bridge(&LinkEnd::named("lan")).expect("a bridge");
            near.add_veth(&LinkEnd::named("a"), &LinkEnd::named("b")).expect("a veth pair");
            let (lan, a, b) =
                (near.index("lan").unwrap(), near.index("a").unwrap(), near.index("b").unwrap());
            near.set_master(a, Some(lan)).expect("a port");
            assert_eq!(near.link("a").unwrap().master, Some(lan));
            near.set_master(a, None).expect("no port");
            assert_eq!(near.link("a").unwrap().master, None);
            near.rename(b, "c").expect("a new name");
            near.set_mac(b, [2, 0, 0, 0, 0, 1]).expect("a hardware address");
            near.set_mtu(b, 1400).expect("an MTU");
            near.move_to(b, there).expect("moved");
            let c = far.link("c").expect("there");
            assert_eq!((c.mac, c.mtu), (Some([2, 0, 0, 0, 0, 1]), 1400));
            assert_eq!(near.links().unwrap().iter().filter(|l| l.kind.as_deref() == Some("veth")).count(), 1);
        });
    }

    #[test]
    fn addresses_routes_and_neighbours_read_back_as_written() {
        in_two_namespaces("addresses, routes and neighbours read back as written", |near, _far, there| {
            near.add_veth(&LinkEnd::named("eth0"), &LinkEnd::named("x").in_netns(there)).expect("veth");
            let eth0 = near.index("eth0").unwrap();
            let (four, six): (IpAddr, IpAddr) = ([10, 9, 0, 2].into(), "fd00:9::2".parse().unwrap());
            let (hop4, hop6): (IpAddr, IpAddr) = ([169, 254, 1, 1].into(), "fe80::1".parse().unwrap());
            near.set_up(eth0, true).expect("up");
            near.add_address(eth0, four, 24).expect("IPv4");
            near.add_address(eth0, six, 64).expect("IPv6");
            near.add_address(eth0, six, 64).expect("adding twice is no error");
            let has = |near: &mut Links, a| {
                near.addresses().unwrap().iter().any(|x| x.link == eth0 && x.address == a)
            };
            assert!(has(near, four) && has(near, six));

            let routes = [
                Route::default_via(hop4).on(eth0).onlink(),
                Route::default_via(hop6).on(eth0),
                Route::to([10, 10, 0, 0].into(), 16).via(hop6).on(eth0).protocol(80),
                Route::to("fd00:10::".parse().unwrap(), 64).kind(RouteKind::Unreachable),
                Route::to([10, 11, 0, 0].into(), 16).kind(RouteKind::Blackhole),
                Route::to([10, 12, 0, 5].into(), 32).on(eth0).source(four),
            ];
            for route in &routes {
                near.replace_route(route).unwrap_or_else(|e| panic!("{route:?}: {e}"));
                near.replace_route(route).unwrap_or_else(|e| panic!("again {route:?}: {e}"));
            }
            let error = near.add_route(&routes[0]).expect_err("exists");
            assert_eq!(netlink::errno(&error), Some(libc::EEXIST));
            let same = |a: &Route, b: &Route| {
                (a.destination, a.prefix, a.via, a.kind, a.protocol, a.onlink, a.source)
                    == (b.destination, b.prefix, b.via, b.kind, b.protocol, b.onlink, b.source)
            };
            let found = near.route_to([10, 10, 7, 7].into()).expect("asked").expect("a way");
            assert_eq!(
                (found.prefix, found.via),
                (16, Some(hop6)),
                "the entry itself, not a path made from it"
            );
            let found = near.route_to([192, 0, 2, 1].into()).expect("asked").expect("a way");
            assert_eq!((found.prefix, found.via), (0, Some(hop4)));
            assert!(
                near.route_to("fd00:10::1".parse().unwrap()).is_err(),
                "an unreachable route is an error"
            );
            for route in &routes {
                assert!(near.routes().unwrap().iter().any(|r| same(r, route)), "{route:?} is listed");
                near.delete_route(route).expect("deleted");
                near.delete_route(route).expect("deleting twice is no error");
                assert!(!near.routes().unwrap().iter().any(|r| same(r, route)), "{route:?} is gone");
            }
            near.replace_neighbour(eth0, hop4, [2, 0, 0, 0, 0, 1]).expect("a neighbour");
            near.replace_neighbour(eth0, hop6, [2, 0, 0, 0, 0, 1]).expect("a neighbour");
            near.delete_neighbour(eth0, hop4).expect("forgotten");
            near.delete_neighbour(eth0, hop4).expect("nothing to forget");
            near.delete_address(eth0, four, 24).expect("deleted");
            near.delete_address(eth0, four, 24).expect("deleting twice is no error");
            assert!(!has(near, four) && has(near, six));
        });
    }
}
