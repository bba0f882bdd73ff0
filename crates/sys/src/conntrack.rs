//! The connection table: list, delete.
//!
//! The numbers are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{Attributes, Message, NETFILTER, Received, Socket, errno};
use crate::nft::Family;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// From this port; zero for protocols without ports.
    pub source_port: u16,
    /// To this port; zero for protocols without ports.
    pub destination_port: u16,
}

/// A flow that the kernel tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its transport protocol.
    pub protocol: u8,
    /// As its first packet was sent.
    pub original: Tuple,
    /// As answers are expected: the source is where the flow really went.
    pub reply: Tuple,
    /// The kernel's id, so that a later flow of the same addresses isn't taken for it.
    pub id: u32,
    /// Its zone.
    pub zone: u16,
    /// `IPS_…` bits.
    pub status: u32,
}

/// `IPS_DST_NAT`, in [`Flow::status`]: the flow's destination was translated.
pub const TRANSLATED: u32 = 1 << 5;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// TCP's protocol number.
pub const TCP: u8 = 6;

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// `CTA_FILTER_FLAG(CTA_PROTO_NUM)`
const FILTER_PROTOCOL: u32 = 1 << 3;

/// A netlink socket to the connection table of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket.
    pub fn open() -> io::Result<Conntrack> {
        let socket = Socket::open(NETFILTER)?;
        socket.receive_buffer(4 << 20)?;
        Ok(Conntrack { socket })
    }

    /// Gives each flow of a family and a protocol to `each`. The kernel sends those alone (since 5.8; older ones send all, and
    /// the rest is left out here).
    pub fn list(&mut self, family: Family, protocol: u8, mut each: impl FnMut(&Flow)) -> io::Result<()> {
        let mut request = Message::new(GET, 0);
        request.raw(&[family.number(), 0, 0, 0]);
        request.nest(TUPLE_ORIGINAL, |m| {
            m.nest(2, |m| {
                m.u8(1, protocol);
            });
        });
        request.nest(FILTER, |m| {
            m.u32(1, FILTER_PROTOCOL);
        });
        self.socket.dump(&mut request, |message| {
            if let Some(flow) = read(&message).filter(|flow| flow.protocol == protocol) {
                each(&flow);
            }
        })
    }

    /// Deletes a flow; `false` if it was gone already.
    pub fn delete(&mut self, flow: &Flow) -> io::Result<bool> {
        let family = if flow.original.source.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let mut request = Message::new(DELETE, 0);
        request.raw(&[family.number(), 0, 0, 0]);
        let tuple = &flow.original;
        request.nest(TUPLE_ORIGINAL, |m| {
            m.nest(1, |m| match (tuple.source, tuple.destination) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    m.bytes(1, &from.octets()).bytes(2, &to.octets());
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    m.bytes(3, &from.octets()).bytes(4, &to.octets());
                }
                _ => {}
            });
            m.nest(2, |m| {
                m.u8(1, flow.protocol).u16be(2, tuple.source_port).u16be(3, tuple.destination_port);
            });
        });
        request.u32be(ID, flow.id);
        if flow.zone != 0 {
            request.u16be(ZONE, flow.zone);
        }
        match self.socket.request(&mut request) {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the UDP flows of a family for which `doomed` says so, and returns how many. One walk over the table.
    pub fn delete_udp(&mut self, family: Family, mut doomed: impl FnMut(&Flow) -> bool) -> io::Result<usize> {
        let mut flows = Vec::new();
        self.list(family, UDP, |flow| {
            if doomed(flow) {
                flows.push(*flow);
            }
        })?;
        let mut deleted = 0;
        for flow in &flows {
            deleted += usize::from(self.delete(flow)?);
        }
        Ok(deleted)
    }
}

fn read(message: &Received<'_>) -> Option<Flow> {
    let attributes = message.attributes(4);
    let (protocol, original) = read_tuple(attributes.find(TUPLE_ORIGINAL)?.inside())?;
    let (_, reply) = read_tuple(attributes.find(TUPLE_REPLY)?.inside())?;
    Some(Flow {
        protocol,
        original,
        reply,
        id: attributes.find(ID).map_or(0, |a| a.u32be()),
        zone: attributes.find(ZONE).map_or(0, |a| a.u16be()),
        status: attributes.find(STATUS).map_or(0, |a| a.u32be()),
    })
}

fn read_tuple(tuple: Attributes<'_>) -> Option<(u8, Tuple)> {
    let addresses = tuple.find(1)?.inside();
    let address = |four: u16, six: u16| {
        if let Some(a) = addresses.find(four) {
            return Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(a.value).ok()?)));
        }
        let a = addresses.find(six)?;
        Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(a.value).ok()?)))
    };
    let ports = tuple.find(2)?.inside();
    let port = |kind| ports.find(kind).map_or(0, |a| a.u16be());
    let tuple = Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        source_port: port(2),
        destination_port: port(3),
    };
    Some((ports.find(1)?.u8(), tuple))
}
