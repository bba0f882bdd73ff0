//! First packets of connections, written and read byte by byte. Each carries a number that translation leaves alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portolan_plan::model::Protocol;

/// A first packet.
#[derive(Clone, Copy, Debug)]
pub struct First {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: Protocol,
    /// The flow's number: TCP's sequence number, SCTP's initiate tag, UDP's payload.
    pub number: u32,
}

/// A packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub what: What,
}

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The first of a connection, with its number.
    First(Protocol, u32),
    /// A TCP reset or any answer but the first packet's own kind.
    Reset,
    /// A second step of a handshake, or a datagram without a number.
    Answer(Protocol),
    /// "Port unreachable", about a packet that was sent from the first address to the second.
    Unreachable(Protocol, SocketAddr, SocketAddr),
}

/// The payload of a UDP packet is this and its number.
const MARK: &[u8; 4] = b"flow";
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// The packet, from its IP header on.
pub fn packet(first: &First) -> Vec<u8> {
    packet_with(first, SYN)
}

/// The packet with other TCP flags than a first packet's.
pub fn packet_with(first: &First, flags: u8) -> Vec<u8> {
    let (from, to) = (first.source.port().to_be_bytes(), first.destination.port().to_be_bytes());
    let number = first.number.to_be_bytes();
    let mut segment = [from, to].concat();
    match first.protocol {
        Protocol::Tcp => {
            segment.extend(number);
            segment.extend([0, 0, 0, 0, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
            let sum = transport_checksum(first, &segment).to_be_bytes();
            segment[16..18].copy_from_slice(&sum);
        }
        Protocol::Udp => {
            segment.extend([0, 16, 0, 0]);
            segment.extend(MARK);
            segment.extend(number);
            let sum = transport_checksum(first, &segment).to_be_bytes();
            segment[6..8].copy_from_slice(&sum);
        }
        Protocol::Sctp => {
            segment.extend([0; 8]); // verification tag of an INIT, checksum
            segment.extend([1, 0, 0, 20]); // INIT, no flags, length
            segment.extend(number);
            segment.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]); // window, streams, first sequence number
            let sum = crc32c(&segment).to_le_bytes();
            segment[8..12].copy_from_slice(&sum);
        }
    }
    let mut packet = match (first.source.ip(), first.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + segment.len()) as u16;
            let mut header = vec![0x45, 0];
            header.extend(length.to_be_bytes());
            header.extend([0, 1, 0, 0, 64, first.protocol.number(), 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = (!fold(sum(&header))).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((segment.len() as u16).to_be_bytes());
            header.extend([first.protocol.number(), 64]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => unreachable!("both addresses are of one family"),
    };
    packet.extend(segment);
    packet
}

/// Reads a packet from its IP header on; `None` for what isn't of interest here.
pub fn read(packet: &[u8]) -> Option<Seen> {
    let (source, destination, protocol, rest) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet[0] & 15) * 4;
            let octets = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
            let (from, to) = (Ipv4Addr::from(octets(12)?), Ipv4Addr::from(octets(16)?));
            (IpAddr::V4(from), IpAddr::V4(to), *packet.get(9)?, packet.get(length..)?)
        }
        6 => {
            let octets = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok();
            let (from, to) = (Ipv6Addr::from(octets(8)?), Ipv6Addr::from(octets(24)?));
            (IpAddr::V6(from), IpAddr::V6(to), *packet.get(6)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let u16_at = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_be_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    let mut ports = (0, 0);
    let what = match protocol {
        1 | 58 => {
            let unreachable = if protocol == 1 { (3, 3) } else { (1, 4) };
            if (*rest.first()?, *rest.get(1)?) != unreachable {
                return None;
            }
            let inner = read(rest.get(8..)?)?;
            let protocol = match inner.what {
                What::First(protocol, _) | What::Answer(protocol) => protocol,
                What::Reset | What::Unreachable(..) => Protocol::Tcp,
            };
            What::Unreachable(protocol, inner.source, inner.destination)
        }
        6 => {
            ports = (u16_at(0)?, u16_at(2)?);
            match rest.get(13)? & (SYN | RST | ACK) {
                SYN => What::First(Protocol::Tcp, u32_at(4)?),
                flags if flags & RST != 0 => What::Reset,
                _ => What::Answer(Protocol::Tcp),
            }
        }
        17 => {
            ports = (u16_at(0)?, u16_at(2)?);
            match rest.get(8..12) {
                Some(mark) if mark == MARK => What::First(Protocol::Udp, u32_at(12)?),
                _ => What::Answer(Protocol::Udp),
            }
        }
        132 => {
            ports = (u16_at(0)?, u16_at(2)?);
            match rest.get(12) {
                Some(1) => What::First(Protocol::Sctp, u32_at(16)?),
                _ => What::Answer(Protocol::Sctp),
            }
        }
        _ => return None,
    };
    Some(Seen { source: (source, ports.0).into(), destination: (destination, ports.1).into(), what })
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC 9293 and RFC 768: over a pseudo-header and the segment, whose own checksum is still zero.
fn transport_checksum(first: &First, segment: &[u8]) -> u16 {
    let addresses = match (first.source.ip(), first.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => unreachable!("both addresses are of one family"),
    };
    let pseudo = sum(&addresses) + u32::from(first.protocol.number()) + segment.len() as u32;
    match !fold(pseudo + sum(segment)) {
        0 => 0xffff,
        other => other,
    }
}

/// RFC 9260, appendix A: the checksum of SCTP.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for (source, destination) in [("192.0.2.1:7", "10.0.0.1:80"), ("[2001:db8::1]:7", "[fd00::1]:80")] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let first = First { source, destination, protocol, number: 77 };
            let what = What::First(protocol, 77);
            assert_eq!(read(&packet(&first)), Some(Seen { source, destination, what }));
        }
    }
}
