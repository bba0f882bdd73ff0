//! The connection table: list, delete, shorten a life.
//!
//! The numbers are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{ACK, Attributes, Message, NETFILTER, Received, Socket, acknowledgement};
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
const CHANGE: u16 = SUBSYSTEM << 8;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// So many flows are named in one send: some 30 KiB, which the smallest send buffer holds.
const AT_ONCE: usize = 256;
/// `CTA_FILTER_FLAG(CTA_IP_DST)`, `…(CTA_PROTO_NUM)`, `…(CTA_PROTO_DST_PORT)`.
const FILTER_DESTINATION: u32 = 1 << 1;
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

/// Which flows of a family and a protocol a list is to have: those whose first packet was sent there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SentTo {
    /// To this address; to any if none.
    pub address: Option<IpAddr>,
    /// To this port; to any if none.
    pub port: Option<u16>,
}

impl SentTo {
    fn covers(self, tuple: &Tuple) -> bool {
        self.address.is_none_or(|a| a == tuple.destination)
            && self.port.is_none_or(|p| p == tuple.destination_port)
    }
}

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

    /// Gives each flow of a family and a protocol that was sent there to `each`. The kernel walks over its whole table but
    /// sends those alone (since 5.8; older ones send all, and the rest is left out here).
    pub fn list(
        &mut self,
        family: Family,
        protocol: u8,
        to: SentTo,
        mut each: impl FnMut(&Flow),
    ) -> io::Result<()> {
        let mut request = Message::new(GET, 0);
        request.raw(&[family.number(), 0, 0, 0]);
        let mut filter = FILTER_PROTOCOL;
        request.nest(TUPLE_ORIGINAL, |m| {
            // For IPv6 the kernel sends all but the flows to the address (6.18, ctnetlink_filter_match_tuple takes equal for
            // different): there the port has to do.
            if let Some(IpAddr::V4(address)) = to.address {
                filter |= FILTER_DESTINATION;
                m.nest(1, |m| {
                    m.bytes(2, &address.octets());
                });
            }
            m.nest(2, |m| {
                m.u8(1, protocol);
                if let Some(port) = to.port {
                    filter |= FILTER_DESTINATION_PORT;
                    m.u16be(3, port);
                }
            });
        });
        request.nest(FILTER, |m| {
            m.u32(1, filter);
        });
        self.socket.dump(&mut request, |message| {
            let wanted = |flow: &Flow| flow.protocol == protocol && to.covers(&flow.original);
            if let Some(flow) = read(&message).filter(wanted) {
                each(&flow);
            }
        })
    }

    /// Deletes flows, and returns how many were still there.
    pub fn delete(&mut self, flows: &[Flow]) -> io::Result<usize> {
        self.for_each(flows, |request, flow| {
            request.next(DELETE, 0);
            name(request, flow);
        })
    }

    /// Has flows end in so many seconds, unless another packet comes, which gives them their usual life again. Returns how many
    /// were still there. (The kernel goes by the addresses here: a later flow of the same is meant as well.)
    pub fn shorten(&mut self, flows: &[Flow], seconds: u32) -> io::Result<usize> {
        self.for_each(flows, |request, flow| {
            request.next(CHANGE, 0);
            name(request, flow);
            request.u32be(TIMEOUT, seconds);
        })
    }

    /// Asks something for each flow, and returns how many were still there. A thousand flows cost few system calls: the kernel
    /// takes many requests at once, and answers those alone that fail, and the last of each send.
    fn for_each(&mut self, flows: &[Flow], ask: impl Fn(&mut Message, &Flow)) -> io::Result<usize> {
        let mut gone_already = 0;
        for flows in flows.chunks(AT_ONCE) {
            let mut request = Message::empty();
            let mut sequence = 0;
            for flow in flows {
                ask(&mut request, flow);
                sequence = self.socket.next_sequence();
                request.sequence(sequence);
            }
            request.add_flags(ACK);
            self.socket.send(request.as_bytes())?;
            let (mut done, mut failed) = (false, None);
            while !done {
                self.socket.receive(|answer| {
                    match acknowledgement(&answer) {
                        Ok(()) => {}
                        // `ETIME`: it ends just now.
                        Err(refusal) if matches!(refusal.errno, libc::ENOENT | libc::ETIME) => {
                            gone_already += 1
                        }
                        Err(refusal) => failed = Some(refusal),
                    }
                    done |= answer.sequence == sequence;
                })?;
            }
            if let Some(refusal) = failed {
                return Err(refusal.into());
            }
        }
        Ok(flows.len() - gone_already)
    }

    /// Deletes the UDP flows of a family that were sent to any of these and for which `doomed` says so, and returns how many.
    pub fn delete_udp(
        &mut self,
        family: Family,
        to: impl IntoIterator<Item = SentTo>,
        mut doomed: impl FnMut(&Flow) -> bool,
    ) -> io::Result<usize> {
        let mut flows = Vec::new();
        for to in to {
            self.list(family, UDP, to, |flow| {
                if doomed(flow) {
                    flows.push(*flow);
                }
            })?;
        }
        self.delete(&flows)
    }
}

/// Says which flow a message is about.
fn name(message: &mut Message, flow: &Flow) {
    let family = if flow.original.source.is_ipv4() { Family::Ip } else { Family::Ip6 };
    message.raw(&[family.number(), 0, 0, 0]);
    let tuple = &flow.original;
    message.nest(TUPLE_ORIGINAL, |m| {
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
    message.u32be(ID, flow.id);
    if flow.zone != 0 {
        message.u16be(ZONE, flow.zone);
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
