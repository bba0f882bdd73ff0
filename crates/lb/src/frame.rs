//! ARP and NDP frames: what to read of a question, and the bytes of an answer. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_sys::packet::FilterStep;

/// An Ethernet address.
pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Somebody asks for the Ethernet address of `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address asked for.
    pub target: IpAddr,
    /// Who asks: where the answer goes.
    pub asker: IpAddr,
    /// The asker's Ethernet address.
    pub asker_mac: Mac,
}

/// Kernel filter: ARP requests only (RFC 826: operation at offset 20 of the frame).
pub const ARP_REQUESTS: &[FilterStep] = &[
    FilterStep { code: 0x28, jt: 0, jf: 0, k: 20 }, // ldh [20]
    FilterStep { code: 0x15, jt: 0, jf: 1, k: ARP_REQUEST as u32 }, // jeq #1
    FilterStep { code: 0x06, jt: 0, jf: 0, k: 128 }, // ret #128
    FilterStep { code: 0x06, jt: 0, jf: 0, k: 0 },  // ret #0
];

/// Kernel filter: neighbour solicitations only (next header 58 at 20, ICMPv6 type 135 at 54; RFC 4861 section 4.3).
/// A solicitation never carries extension headers in practice, and one that did would be dropped by many stacks.
pub const SOLICITATIONS: &[FilterStep] = &[
    FilterStep { code: 0x30, jt: 0, jf: 0, k: 20 }, // ldb [20]
    FilterStep { code: 0x15, jt: 0, jf: 3, k: 58 }, // jeq #58
    FilterStep { code: 0x30, jt: 0, jf: 0, k: 54 }, // ldb [54]
    FilterStep { code: 0x15, jt: 0, jf: 1, k: NEIGHBOUR_SOLICITATION as u32 }, // jeq #135
    FilterStep { code: 0x06, jt: 0, jf: 0, k: 256 }, // ret #256
    FilterStep { code: 0x06, jt: 0, jf: 0, k: 0 },  // ret #0
];

fn array<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

/// Reads an ARP request. Anything else, and anything malformed, is `None`.
pub fn read_arp(frame: &[u8]) -> Option<Question> {
    let header: [u8; 8] = array(frame, 14)?;
    // Ethernet (1), IPv4 (0x0800), lengths 6 and 4, request.
    if header != [0, 1, 8, 0, 6, 4, 0, ARP_REQUEST as u8] {
        return None;
    }
    Some(Question {
        target: Ipv4Addr::from(array::<4>(frame, 38)?).into(),
        asker: Ipv4Addr::from(array::<4>(frame, 28)?).into(),
        asker_mac: array(frame, 22)?,
    })
}

/// Reads a neighbour solicitation. Anything else, and anything malformed, is `None`.
pub fn read_solicitation(frame: &[u8]) -> Option<Question> {
    // RFC 4861 section 7.1.1: hop limit 255, code 0; what a router forwarded is never believed.
    if frame.get(14)? >> 4 != 6 || *frame.get(20)? != 58 || *frame.get(21)? != 255 {
        return None;
    }
    if *frame.get(54)? != NEIGHBOUR_SOLICITATION || *frame.get(55)? != 0 {
        return None;
    }
    Some(Question {
        target: Ipv6Addr::from(array::<16>(frame, 62)?).into(),
        asker: Ipv6Addr::from(array::<16>(frame, 22)?).into(),
        asker_mac: array(frame, 6)?,
    })
}

fn arp(operation: u16, to: Mac, us: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend(to);
    frame.extend(us);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(us);
    frame.extend(sender.octets());
    frame.extend(target_mac);
    frame.extend(target.octets());
    frame.resize(60, 0); // the shortest Ethernet frame, without its checksum
    frame
}

/// An advertisement of `address`, from `us` to one host (`Some`) or to all (`None`).
fn advertisement(us: Mac, address: Ipv6Addr, to: Option<(Mac, Ipv6Addr)>) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let (to_mac, to_address, solicited) = match to {
        Some((mac, address)) => (mac, address, true),
        None => ([0x33, 0x33, 0, 0, 0, 1], all_nodes, false),
    };
    let mut body = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0];
    // Override is always set: a host that cached the previous announcer must follow (RFC 4861 section 4.4).
    body.extend([0x20 | if solicited { 0x40 } else { 0 }, 0, 0, 0]);
    body.extend(address.octets());
    body.extend([2, 1]); // option: target link-layer address, of 8 bytes
    body.extend(us);
    let sum = checksum(address, to_address, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend(to_mac);
    frame.extend(us);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(address.octets());
    frame.extend(to_address.octets());
    frame.extend(body);
    frame
}

/// The ICMPv6 checksum, with its pseudo-header (RFC 8200 section 8.1).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> u16 {
    let words = |bytes: &[u8]| {
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum::<u32>()
    };
    let mut sum =
        words(&source.octets()) + words(&destination.octets()) + body.len() as u32 + 58 + words(body);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The answer to a question: `us` has the target.
pub fn answer(us: Mac, question: &Question) -> Option<Vec<u8>> {
    match (question.target, question.asker) {
        (IpAddr::V4(target), IpAddr::V4(asker)) => {
            Some(arp(ARP_REPLY, question.asker_mac, us, target, question.asker_mac, asker))
        }
        // Duplicate address detection asks from `::`; the answer goes to all nodes (RFC 4861 section 7.2.4).
        (IpAddr::V6(target), IpAddr::V6(asker)) if asker.is_unspecified() => {
            Some(advertisement(us, target, None))
        }
        (IpAddr::V6(target), IpAddr::V6(asker)) => {
            Some(advertisement(us, target, Some((question.asker_mac, asker))))
        }
        _ => None,
    }
}

/// Tells everyone unasked that `us` has `address`: as ARP request and as reply, since hosts differ in which they
/// believe (RFC 5227 section 3); or as an unsolicited advertisement.
pub fn gratuitous(us: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(a) => {
            vec![arp(ARP_REQUEST, BROADCAST, us, a, [0; 6], a), arp(ARP_REPLY, BROADCAST, us, a, us, a)]
        }
        IpAddr::V6(a) => vec![advertisement(us, a, None)],
    }
}

/// The multicast group to which solicitations for `address` are sent (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let o = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, o[13], o[14], o[15]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Mac = [2, 0, 0, 0, 0, 1];
    const THEM: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_arp_request_is_read_and_answered_to_its_asker() {
        let (asker, target) = (Ipv4Addr::new(10, 80, 0, 100), Ipv4Addr::new(10, 80, 0, 200));
        let request = arp(ARP_REQUEST, BROADCAST, THEM, asker, [0; 6], target);
        let question = read_arp(&request).expect("an ARP request");
        assert_eq!(question, Question { target: target.into(), asker: asker.into(), asker_mac: THEM });
        let reply = answer(US, &question).expect("one family");
        assert_eq!(&reply[..6], &THEM);
        assert_eq!(&reply[20..22], &[0, 2]);
        assert_eq!(&reply[22..28], &US);
        assert_eq!(&reply[28..32], &target.octets());
        assert_eq!(&reply[38..42], &asker.octets());
        assert_eq!(read_arp(&reply), None, "a reply is no question");
        for cut in 0..42 {
            assert_eq!(read_arp(&request[..cut]), None, "a frame of {cut} bytes is no question");
        }
    }

    #[test]
    fn a_solicitation_is_read_and_its_answer_sums_to_zero() {
        let (asker, target): (Ipv6Addr, Ipv6Addr) =
            ("fd00:80::100".parse().unwrap(), "fd00:80::200".parse().unwrap());
        let mut frame = advertisement(THEM, asker, Some((US, target)));
        frame[54] = NEIGHBOUR_SOLICITATION;
        frame[62..78].copy_from_slice(&target.octets());
        let question = read_solicitation(&frame).expect("a solicitation");
        assert_eq!(question, Question { target: target.into(), asker: asker.into(), asker_mac: THEM });
        let reply = answer(US, &question).expect("one family");
        // A receiver that sums a right packet, checksum included, gets zero.
        assert_eq!(checksum(target, asker, &reply[54..]), 0);
        assert_eq!(reply[58] & 0x60, 0x60, "solicited and override");
        frame[21] = 254;
        assert_eq!(read_solicitation(&frame), None, "forwarded by a router");
        for cut in 0..78 {
            assert_eq!(read_solicitation(&frame[..cut]), None);
        }
    }

    #[test]
    fn the_group_of_an_address_ends_in_its_last_24_bits() {
        let group = solicited_node("fd00:80::1234:5678".parse().unwrap());
        assert_eq!(group, "ff02::1:ff34:5678".parse::<Ipv6Addr>().unwrap());
    }
}
