//! From kube-proxy's rules to what it carries: which frontends it knows, and where their connections end.
//!
//! The rules are followed as the kernel would follow them, for all packets at once. What a rule asks of a packet's destination,
//! protocol and port is remembered; what else it asks (where from, which of several at random, a mark) may be so or not, and
//! both are followed. So the backends of a frontend are all that any client can be sent to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_plan::model::{Backend, Family, Frontend, Protocol};
use portolan_sys::nft::{Expression, MetaKey, PayloadBase, Register, Verdict};

/// A table of somebody else, as far as it is followed.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The rules of each chain.
    pub chains: BTreeMap<String, Vec<Vec<Expression>>>,
    /// The chains that packets come to by themselves.
    pub entrances: Vec<String>,
    /// The elements of each verdict map: key and verdict.
    pub verdicts: BTreeMap<String, Vec<(Vec<u8>, Verdict)>>,
    /// The data of each other map.
    pub data: BTreeMap<String, Vec<Vec<u8>>>,
}

/// What becomes of connections to one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// Where they can end.
    pub backends: BTreeSet<Backend>,
    /// Some are dropped.
    pub drops: bool,
    /// Some are refused.
    pub rejects: bool,
}

/// All frontends that somebody carries.
pub type Carried = BTreeMap<Frontend, Fate>;

/// The kernel allows jumps 16 deep (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 16;

/// Adds what a table carries of a family. `follow` says which chains are followed from an entrance.
pub fn trace(table: &Table, family: Family, follow: fn(&str) -> bool, carried: &mut Carried) {
    for entrance in &table.entrances {
        let mut run = Run { table, family, follow, carried };
        run.chain(entrance, Facts::default(), 0);
    }
}

/// What is known of the packets that come to a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Facts {
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    port: Option<u16>,
}

/// What is in a word of the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Word {
    #[default]
    Unknown,
    /// The beginning of the destination address.
    Destination,
    Protocol,
    Port,
    /// Four bytes that a rule put there.
    Constant([u8; 4]),
}

struct Run<'r> {
    table: &'r Table,
    family: Family,
    follow: fn(&str) -> bool,
    carried: &'r mut Carried,
}

impl Run<'_> {
    fn chain(&mut self, name: &str, facts: Facts, depth: usize) {
        let table = self.table;
        for rule in table.chains.get(name).into_iter().flatten() {
            self.rule(rule, facts, depth);
        }
    }

    fn rule(&mut self, rule: &[Expression], mut facts: Facts, depth: usize) {
        let table = self.table;
        let mut words = [Word::Unknown; 24];
        // Where one of these was loaded, nobody knows which.
        let mut one_of: Option<(Register, &[Vec<u8>])> = None;
        for expression in rule {
            match expression {
                Expression::Payload { base, offset, length, to } => {
                    put(&mut words, *to, *length as usize, self.loaded(*base, *offset, *length));
                }
                Expression::Meta { key, to } => {
                    let word = if *key == MetaKey::Protocol { Word::Protocol } else { Word::Unknown };
                    put(&mut words, *to, 4, word);
                }
                Expression::Immediate { to, value } => {
                    for (at, bytes) in value.chunks(4).enumerate() {
                        let mut word = [0; 4];
                        word[..bytes.len()].copy_from_slice(bytes);
                        put(&mut words, Register(to.0 + at as u8), 4, Word::Constant(word));
                    }
                }
                Expression::Compare { register, equal: true, value } => {
                    let Some(narrowed) = self.narrow(facts, at(&words, *register), value) else { return };
                    facts = narrowed;
                }
                // A destination of a set (the addresses that NodePorts answer on) is one of several.
                Expression::Compare { .. } | Expression::Lookup { .. } => {}
                Expression::Match { name, info } => {
                    let Some(narrowed) = matched(facts, name, info) else { return };
                    facts = narrowed;
                }
                Expression::VerdictMap { set, key, .. } => {
                    for (bytes, verdict) in table.verdicts.get(set).into_iter().flatten() {
                        if let Some(facts) = self.keyed(facts, &words, *key, bytes) {
                            self.verdict(verdict, facts, depth);
                        }
                    }
                }
                Expression::Verdict(verdict) => self.verdict(verdict, facts, depth),
                Expression::Map { set, to, .. } => {
                    put(&mut words, *to, 4, Word::Unknown);
                    one_of = table.data.get(set).map(|data| (*to, &data[..]));
                }
                // `dnat ip addr . port to numgen random mod 2 map { 0 : … }`
                Expression::Dnat { address, .. } if one_of.is_some_and(|(at, _)| at == *address) => {
                    let data = one_of.map_or(&[][..], |(_, data)| data);
                    let family = self.family;
                    self.note(facts, |fate| {
                        fate.backends.extend(data.iter().filter_map(|d| backend(d, family)))
                    });
                }
                Expression::Dnat { address, port, .. } => {
                    let backend = self.address(&words, *address).zip(port_of(&words, *port));
                    self.note(facts, |fate| {
                        fate.backends.extend(backend.map(|(address, port)| Backend { address, port }));
                    });
                }
                Expression::Target { name, info } if name == "DNAT" => {
                    let backend = translation(info, self.family);
                    self.note(facts, |fate| fate.backends.extend(backend));
                }
                Expression::Target { name, .. } if name == "REJECT" => {
                    self.note(facts, |fate| fate.rejects = true);
                }
                Expression::Reject(_) => self.note(facts, |fate| fate.rejects = true),
                Expression::Bitwise { to, mask, .. } => put(&mut words, *to, mask.len(), Word::Unknown),
                Expression::Random { to, .. }
                | Expression::SourceType { to }
                | Expression::DestinationType { to }
                | Expression::LeadsBack { to }
                | Expression::Ct { to, .. } => put(&mut words, *to, 4, Word::Unknown),
                _ => {}
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict, facts: Facts, depth: usize) {
        match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) if depth < DEPTH && (self.follow)(chain) => {
                self.chain(chain, facts, depth + 1);
            }
            Verdict::Drop => self.note(facts, |fate| fate.drops = true),
            _ => {}
        }
    }

    /// Notes an end of connections, if it is known of which frontend.
    fn note(&mut self, facts: Facts, end: impl FnOnce(&mut Fate)) {
        let protocol = match facts.protocol {
            Some(6) => Protocol::Tcp,
            Some(17) => Protocol::Udp,
            Some(132) => Protocol::Sctp,
            _ => return,
        };
        let Some(port) = facts.port else { return };
        let frontend = match facts.destination {
            Some(address) => Frontend::Address { address, protocol, port },
            None => Frontend::NodePort { family: self.family, protocol, port },
        };
        end(self.carried.entry(frontend).or_default());
    }

    fn loaded(&self, base: PayloadBase, offset: u32, length: u32) -> Word {
        // RFC 791, RFC 8200: destination, and the protocol of a packet without extension headers.
        match (base, self.family, offset, length) {
            (PayloadBase::Network, Family::V4, 16, 4) | (PayloadBase::Network, Family::V6, 24, 16) => {
                Word::Destination
            }
            (PayloadBase::Network, Family::V4, 9, 1) | (PayloadBase::Network, Family::V6, 6, 1) => {
                Word::Protocol
            }
            (PayloadBase::Transport, _, 2, 2) => Word::Port,
            _ => Word::Unknown,
        }
    }

    /// What is known if a word has this value as well; none if it can't.
    fn narrow(&self, mut facts: Facts, word: Word, value: &[u8]) -> Option<Facts> {
        match word {
            Word::Destination => agree(&mut facts.destination, address(value, self.family)?)?,
            Word::Protocol => agree(&mut facts.protocol, *value.first()?)?,
            Word::Port => agree(&mut facts.port, u16::from_be_bytes(value.get(..2)?.try_into().ok()?))?,
            Word::Unknown | Word::Constant(_) => {}
        }
        Some(facts)
    }

    /// The same for a key of several fields.
    fn keyed(&self, mut facts: Facts, words: &[Word], key: Register, bytes: &[u8]) -> Option<Facts> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let word = at(words, Register(key.0 + ((bytes.len() - rest.len()) / 4) as u8));
            // Each field of a key begins at a word.
            let length = match (word, self.family) {
                (Word::Destination, Family::V6) => 16,
                _ => 4,
            };
            let (field, after) = rest.split_at(length.min(rest.len()));
            facts = self.narrow(facts, word, field)?;
            rest = after;
        }
        Some(facts)
    }

    /// The address that a rule put into a register.
    fn address(&self, words: &[Word], register: Register) -> Option<IpAddr> {
        let count = if self.family == Family::V4 { 1 } else { 4 };
        let mut bytes = Vec::with_capacity(16);
        for offset in 0..count {
            let Word::Constant(word) = at(words, Register(register.0 + offset)) else { return None };
            bytes.extend(word);
        }
        address(&bytes, self.family)
    }
}

fn at(words: &[Word], register: Register) -> Word {
    words.get(usize::from(register.0)).copied().unwrap_or_default()
}

/// What is loaded covers as many words as it is long; the first one says what it is.
fn put(words: &mut [Word; 24], to: Register, length: usize, word: Word) {
    for offset in 0..length.div_ceil(4).max(1) {
        if let Some(place) = words.get_mut(usize::from(to.0) + offset) {
            *place = if offset == 0 { word } else { Word::Unknown };
        }
    }
}

/// Learns a value; none if another one is known.
fn agree<T: PartialEq>(known: &mut Option<T>, value: T) -> Option<()> {
    match known {
        Some(known) => (*known == value).then_some(()),
        None => {
            *known = Some(value);
            Some(())
        }
    }
}

fn address(bytes: &[u8], family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
    }
}

fn port_of(words: &[Word], register: Register) -> Option<u16> {
    match at(words, register) {
        Word::Constant([high, low, ..]) => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

/// An address and a port, as a map has them: each begins at a word.
fn backend(data: &[u8], family: Family) -> Option<Backend> {
    let length = if family == Family::V4 { 4 } else { 16 };
    let (ip, port) = (data.get(..length)?, data.get(length..length + 2)?);
    Some(Backend { address: address(ip, family)?, port: u16::from_be_bytes(port.try_into().ok()?) })
}

/// What is known if a match of iptables applies; none if it can't.
fn matched(mut facts: Facts, name: &str, info: &[u8]) -> Option<Facts> {
    let protocol = match name {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        _ => return Some(facts),
    };
    agree(&mut facts.protocol, protocol)?;
    // xt_tcpudp.h, xt_sctp.h: two source ports, then two destination ports, in the machine's order.
    let number = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    if let (Some(first), Some(last)) = (number(4), number(6))
        && first == last
    {
        agree(&mut facts.port, first)?;
    }
    Some(facts)
}

/// Where iptables' DNAT leads (nf_nat.h: `nf_nat_range2`, `nf_nat_range`, or for IPv4 `nf_nat_ipv4_multi_range_compat`).
fn translation(info: &[u8], family: Family) -> Option<Backend> {
    const RANGE: usize = 40;
    let (address_at, length, port_at) = match family {
        Family::V4 if info.len() < RANGE => (8, 4, 16),
        Family::V4 => (4, 4, 36),
        Family::V6 => (4, 16, 36),
    };
    let address = address(info.get(address_at..address_at + length)?, family)?;
    let port = u16::from_be_bytes(info.get(port_at..port_at + 2)?.try_into().ok()?);
    Some(Backend { address, port })
}

#[cfg(test)]
mod tests {
    use portolan_sys::nft::RejectWith;

    use super::*;

    const FIRST: Register = Register(0);
    const SECOND: Register = Register(4);

    fn load(offset: u32, length: u32, to: Register) -> Expression {
        Expression::Payload { base: PayloadBase::Network, offset, length, to }
    }

    fn port(to: Register) -> Expression {
        Expression::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to }
    }

    fn protocol(to: Register) -> Expression {
        Expression::Meta { key: MetaKey::Protocol, to }
    }

    fn is(register: Register, value: &[u8]) -> Expression {
        Expression::Compare { register, equal: true, value: value.to_vec() }
    }

    fn jump(chain: &str) -> Expression {
        Expression::Verdict(Verdict::Jump(chain.into()))
    }

    fn table(entrance: &str, chains: &[(&str, &[&[Expression]])]) -> Table {
        let chains = chains
            .iter()
            .map(|(name, rules)| ((*name).to_owned(), rules.iter().map(|rule| rule.to_vec()).collect()));
        Table { chains: chains.collect(), entrances: vec![entrance.into()], ..Table::default() }
    }

    fn said(table: &Table, family: Family, follow: fn(&str) -> bool) -> Vec<String> {
        let mut carried = Carried::new();
        trace(table, family, follow, &mut carried);
        let one = |(frontend, fate): (&Frontend, &Fate)| {
            let at = match frontend {
                Frontend::Address { address, protocol, port } => {
                    format!("{protocol:?} {}", std::net::SocketAddr::new(*address, *port))
                }
                Frontend::NodePort { protocol, port, .. } => format!("{protocol:?} node port {port}"),
            };
            format!("{at} {fate}")
        };
        carried.iter().map(one).collect()
    }

    #[test]
    fn nftables_mode_is_followed_through_its_maps() {
        // What kube-proxy 1.36 writes, without what asks for the source.
        let dnat = |last: u8| {
            vec![
                protocol(FIRST),
                is(FIRST, &[6]),
                Expression::Immediate { to: FIRST, value: vec![10, 244, 1, last] },
                Expression::Immediate { to: SECOND, value: 8080u16.to_be_bytes().to_vec() },
                Expression::Dnat { family: 2, address: FIRST, port: SECOND },
            ]
        };
        let map = |set: &str| Expression::VerdictMap { set: set.into(), id: 0, key: FIRST };
        let whole = [load(16, 4, FIRST), protocol(Register(1)), port(Register(2)), map("service-ips")];
        let node_port = [protocol(FIRST), port(Register(1)), map("service-nodeports")];
        let none =
            [load(16, 4, FIRST), protocol(Register(1)), port(Register(2)), map("no-endpoint-services")];
        // With session affinity there is a chain for each endpoint.
        let random = [Expression::Random { modulus: 2, to: FIRST }, map("__map0")];
        let plain = [
            protocol(FIRST),
            is(FIRST, &[6]),
            Expression::Random { modulus: 2, to: FIRST },
            Expression::Map { set: "__map1".into(), id: 0, key: FIRST, to: FIRST },
            Expression::Dnat { family: 2, address: FIRST, port: Register(1) },
        ];
        let mut table = table(
            "nat-prerouting",
            &[
                ("nat-prerouting", &[&[jump("services")]]),
                ("services", &[&whole, &node_port, &none]),
                ("service-web", &[&random]),
                ("service-plain", &[&plain]),
                ("endpoint-1", &[&dnat(1)]),
                ("endpoint-2", &[&dnat(2)]),
                ("reject-chain", &[&[Expression::Reject(RejectWith::Icmp(3))]]),
            ],
        );
        let goto = |chain: &str| Verdict::Goto(chain.into());
        let key = |parts: &[&[u8]]| parts.concat();
        let (tcp, eighty) = ([6, 0, 0, 0], [0, 80, 0, 0]);
        let verdicts = [
            (
                "service-ips",
                vec![
                    (key(&[&[10, 96, 0, 10], &tcp, &eighty]), goto("service-web")),
                    (key(&[&[10, 96, 0, 12], &tcp, &eighty]), goto("service-plain")),
                ],
            ),
            ("service-nodeports", vec![(key(&[&tcp, &[0x75, 0xd3, 0, 0]]), goto("service-web"))]),
            (
                "no-endpoint-services",
                vec![
                    (key(&[&[10, 96, 0, 11], &tcp, &eighty]), goto("reject-chain")),
                    (key(&[&[192, 0, 2, 1], &tcp, &eighty]), Verdict::Drop),
                ],
            ),
            ("__map0", vec![(vec![0, 0, 0, 0], goto("endpoint-1")), (vec![1, 0, 0, 0], goto("endpoint-2"))]),
        ];
        table.verdicts = verdicts.map(|(name, elements)| (name.to_owned(), elements)).into();
        let data = [[10, 244, 1, 3, 0x1f, 0x90, 0, 0], [10, 244, 1, 4, 0x1f, 0x90, 0, 0]];
        table.data = [("__map1".to_owned(), data.map(Vec::from).into())].into();
        assert_eq!(
            said(&table, Family::V4, |_| true),
            [
                "Tcp 10.96.0.10:80 goes to 10.244.1.1:8080, 10.244.1.2:8080",
                "Tcp 10.96.0.11:80 is refused",
                "Tcp 10.96.0.12:80 goes to 10.244.1.3:8080, 10.244.1.4:8080",
                "Tcp 192.0.2.1:80 is dropped",
                "Tcp node port 30163 goes to 10.244.1.1:8080, 10.244.1.2:8080",
            ]
        );
    }

    #[test]
    fn iptables_mode_is_followed_through_its_own_chains_alone() {
        let name = |name: &str| name.to_owned();
        // nf_nat_range2: flags, the least address, the greatest, the least port, the greatest, the base.
        let mut range = vec![3, 0, 0, 0];
        for _ in 0..2 {
            range.extend("fd00:244::1".parse::<Ipv6Addr>().expect("an address").octets());
        }
        range.extend([0x1f, 0x90, 0x1f, 0x90, 0, 0, 0, 0]);
        let ip: Ipv6Addr = "fd00:96::10".parse().expect("an address");
        let frontend = [
            protocol(FIRST),
            is(FIRST, &[6]),
            load(24, 16, FIRST),
            is(FIRST, &ip.octets()),
            port(FIRST),
            is(FIRST, &80u16.to_be_bytes()),
            jump("KUBE-SEP-A"),
        ];
        // An older iptables leaves the port to its own match: source ports, then destination ports.
        let mut ports = vec![0, 0, 0xff, 0xff];
        ports.extend([30163u16.to_ne_bytes(), 30163u16.to_ne_bytes()].concat());
        ports.extend([0; 4]);
        let node_port = [Expression::Match { name: name("tcp"), info: ports }, jump("KUBE-SEP-A")];
        let dnat = [Expression::Target { name: name("DNAT"), info: range }];
        let table = table(
            "PREROUTING",
            &[
                ("PREROUTING", &[&[jump("KUBE-SERVICES")], &[jump("DOCKER")]]),
                ("KUBE-SERVICES", &[&frontend, &node_port]),
                ("KUBE-SEP-A", &[&dnat]),
                ("DOCKER", &[&frontend, &[port(FIRST), is(FIRST, &[0, 81]), jump("KUBE-SEP-A")]]),
            ],
        );
        assert_eq!(
            said(&table, Family::V6, |chain| chain.starts_with("KUBE-")),
            [
                "Tcp [fd00:96::10]:80 goes to [fd00:244::1]:8080",
                "Tcp node port 30163 goes to [fd00:244::1]:8080",
            ]
        );
    }

    #[test]
    fn a_rule_that_contradicts_what_is_known_is_left_out() {
        let udp = [protocol(FIRST), is(FIRST, &[17]), Expression::Reject(RejectWith::Icmp(3))];
        let tcp = [protocol(FIRST), is(FIRST, &[6]), port(FIRST), is(FIRST, &[0, 80]), jump("next")];
        let table = table("in", &[("in", &[&tcp]), ("next", &[&udp, &[Expression::Verdict(Verdict::Drop)]])]);
        assert_eq!(said(&table, Family::V4, |_| true), ["Tcp node port 80 is dropped"]);
    }
}
