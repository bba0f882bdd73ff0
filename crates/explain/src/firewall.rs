//! What tables other than ours do to a new connection's first packet: rules are evaluated as the kernel does, as far as they
//! are understood, and what isn't understood is said to be so.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portolan_sys::nft::{
    CtKey, Expression, MetaKey, PayloadBase, Register, SurveyedChain, SurveyedTable, Verdict,
};

/// The first packet of a connection, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The IP protocol.
    pub protocol: u8,
    /// From.
    pub source: Option<IpAddr>,
    /// To.
    pub destination: IpAddr,
    /// To this port.
    pub port: u16,
}

/// A chain that drops a packet, or may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wall {
    /// The table: family and name.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What in it drops.
    pub why: String,
    /// Whether the packet is dropped for certain.
    pub certain: bool,
}

/// `NF_IP_PRI_NAT_DST`: what runs before it sees the address that the client asked for.
const TRANSLATION: i32 = -100;
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
/// The kernel allows jumps 16 deep (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 16;

/// The first chain at one of the hooks that drops the packet, else the first that may. `translated` says that the destination is
/// the backend already; `links` are the names of the links that there are.
pub fn meets(
    tables: &[SurveyedTable],
    links: &BTreeSet<String>,
    packet: &Packet,
    translated: bool,
    hooks: &[u32],
) -> Option<Wall> {
    let mut maybe = None;
    // Another proxy's own refusals are not a wall.
    for table in tables.iter().filter(|t| t.name != crate::kernel::KUBE_PROXY) {
        let Some(family) = concerns(table.family, packet) else { continue };
        for (name, chain) in &table.chains {
            let Some((hook, priority)) = chain.hook.filter(|(hook, _)| hooks.contains(hook)) else {
                continue;
            };
            let early = matches!(hook, 0 | 3) && priority < TRANSLATION;
            if early == translated {
                continue;
            }
            let mut run = Run { table, links, packet, doubts: Doubts::default() };
            let end = run.chain(chain, 0);
            let (certain, why) = match end {
                End::Drop(why) => (run.doubts.is_empty(), why),
                End::Fall if chain.drops => {
                    (run.doubts.is_empty(), "no rule accepts it, and its policy is drop".to_owned())
                }
                // A drop that was passed over because a rule wasn't understood.
                _ => match run.doubts.drop.take() {
                    Some(why) => (false, why),
                    None => continue,
                },
            };
            let hook = HOOKS.get(hook as usize).copied().unwrap_or("ingress");
            let wall = Wall {
                table: format!("{family} {}", table.name),
                chain: format!("chain {name} ({hook})"),
                why,
                certain,
            };
            if certain {
                return Some(wall);
            }
            maybe.get_or_insert(wall);
        }
    }
    maybe
}

/// The family's name, if its tables see the packet.
fn concerns(family: u8, packet: &Packet) -> Option<&'static str> {
    match family {
        1 => Some("inet"),
        2 if packet.destination.is_ipv4() => Some("ip"),
        10 if packet.destination.is_ipv6() => Some("ip6"),
        _ => None,
    }
}

/// What happened to rules that weren't understood.
#[derive(Default)]
struct Doubts {
    /// One that drops may have matched.
    drop: Option<String>,
    /// One that accepts, or leads elsewhere, may have matched.
    accept: bool,
}

impl Doubts {
    fn is_empty(&self) -> bool {
        !self.accept
    }
}

enum End {
    Accept,
    Drop(String),
    /// The chain ended without a verdict.
    Fall,
}

enum Match {
    Yes,
    No,
    Maybe,
}

struct Run<'r> {
    table: &'r SurveyedTable,
    links: &'r BTreeSet<String>,
    packet: &'r Packet,
    doubts: Doubts,
}

impl Run<'_> {
    fn chain(&mut self, chain: &SurveyedChain, depth: usize) -> End {
        for (index, rule) in chain.rules.iter().enumerate() {
            let (matched, verdict) = self.rule(rule);
            let drops = |what: &str| format!("its rule {} {what}", index + 1);
            match (matched, verdict) {
                (Match::No, _) | (_, None) => {}
                (Match::Yes, Some(Outcome::Drop(what))) => return End::Drop(drops(what)),
                (Match::Maybe, Some(Outcome::Drop(what))) => {
                    self.doubts.drop.get_or_insert(format!("{}, if it applies", drops(what)));
                }
                (Match::Yes, Some(Outcome::Accept)) => return End::Accept,
                (Match::Yes, Some(Outcome::Return)) => return End::Fall,
                (Match::Maybe, Some(Outcome::Accept | Outcome::Return | Outcome::Unknown)) => {
                    self.doubts.accept = true
                }
                (Match::Yes, Some(Outcome::Unknown)) => self.doubts.accept = true,
                (matched, Some(Outcome::To(name, goes))) => {
                    let Some(next) = self.table.chains.get(&name).filter(|_| depth < DEPTH) else { continue };
                    let end = self.chain(next, depth + 1);
                    match (matched, end) {
                        (Match::Yes, End::Fall) if goes => return End::Fall,
                        (Match::Yes, End::Fall) => {}
                        (Match::Yes, end) => return end,
                        (_, End::Drop(why)) => {
                            self.doubts.drop.get_or_insert(format!("{why} (chain {name}), if it applies"));
                        }
                        (_, End::Accept) => self.doubts.accept = true,
                        (_, End::Fall) => {}
                    }
                }
            }
        }
        End::Fall
    }

    /// Whether a rule matches, and what it does then.
    fn rule(&self, rule: &[Expression]) -> (Match, Option<Outcome>) {
        let mut registers: [Option<u8>; 64] = [None; 64];
        let mut doubt = false;
        let mut outcome = None;
        // Where the name of a link was loaded, or its number.
        let mut link: Option<(Register, MetaKey)> = None;
        for expression in rule {
            if !matches!(expression, Expression::Compare { .. }) {
                link = None;
            }
            match expression {
                Expression::Compare { register, equal, value }
                    if link.is_some_and(|(loaded, _)| loaded == *register) =>
                {
                    match link.is_some_and(|(_, key)| self.could_be(key, value)) {
                        true => doubt = true,
                        false if *equal => return (Match::No, None),
                        false => {}
                    }
                }
                Expression::Meta { key, to } if is_link(*key) => {
                    link = Some((*to, *key));
                    load(&mut registers, *to, None);
                }
                Expression::Meta { key, to } => load(&mut registers, *to, self.meta(*key)),
                Expression::Payload { base, offset, length, to } => {
                    let bytes = self.payload(*base, *offset as usize, *length as usize);
                    load(&mut registers, *to, bytes);
                }
                Expression::Ct { key: CtKey::State, to, .. } => {
                    // NF_CT_STATE_BIT(IP_CT_NEW), nf_conntrack_common.h
                    load(&mut registers, *to, Some(8u32.to_ne_bytes().to_vec()));
                }
                Expression::Ct { to, .. } | Expression::SourceType { to } | Expression::Random { to, .. } => {
                    load(&mut registers, *to, None);
                }
                Expression::Bitwise { from, to, mask, xor } => {
                    let bytes = read(&registers, *from, mask.len());
                    let value =
                        bytes.map(|b| b.iter().zip(mask).zip(xor).map(|((b, m), x)| b & m ^ x).collect());
                    load(&mut registers, *to, value);
                }
                Expression::Compare { register, equal, value } => {
                    match read(&registers, *register, value.len()) {
                        Some(bytes) if (bytes == *value) == *equal => {}
                        Some(_) => return (Match::No, None),
                        None => doubt = true,
                    }
                }
                Expression::Lookup { set, key, inverted, .. } => match self.contains(set, &registers, *key) {
                    Some(found) if found != *inverted => {}
                    Some(_) => return (Match::No, None),
                    None => doubt = true,
                },
                Expression::Immediate { to, value } => load(&mut registers, *to, Some(value.clone())),
                Expression::Verdict(verdict) => outcome = Some(Outcome::of(verdict)),
                Expression::Reject(_) => outcome = Some(Outcome::Drop("refuses it")),
                Expression::VerdictMap { .. } => {
                    doubt = true;
                    outcome = Some(Outcome::Unknown);
                }
                Expression::Counter { .. } | Expression::NamedCounter(_) | Expression::MetaSet { .. } => {}
                Expression::Other(name)
                    if matches!(name.as_str(), "log" | "notrack" | "objref" | "quota") => {}
                Expression::Target { .. } => {
                    doubt = true;
                    outcome = Some(Outcome::Unknown);
                }
                Expression::Dnat { .. } | Expression::Masquerade { .. } => outcome = Some(Outcome::Accept),
                _ => doubt = true,
            }
        }
        (if doubt { Match::Maybe } else { Match::Yes }, outcome)
    }

    /// Whether the packet's link could be this one: it is there, and isn't the loopback link, by which no backend is reached.
    fn could_be(&self, key: MetaKey, value: &[u8]) -> bool {
        match key {
            MetaKey::Other(META_LINK_IN | META_LINK_OUT) => value != 1u32.to_ne_bytes(),
            // A name that isn't padded with zeros is the beginning of one: `"veth*"`.
            _ => match value.iter().position(|byte| *byte == 0) {
                Some(end) => self.links.iter().any(|name| name.as_bytes() == &value[..end] && name != "lo"),
                None => self.links.iter().any(|name| name.as_bytes().starts_with(value) && name != "lo"),
            },
        }
    }

    /// Whether a set has what is in a register, if both are known.
    fn contains(&self, set: &str, registers: &[Option<u8>; 64], key: Register) -> Option<bool> {
        let set = self.table.sets.get(set)?;
        let length = set.elements.first().map_or(0, |(bytes, _)| bytes.len());
        let wanted = read(registers, key, length)?;
        if !set.intervals {
            return Some(set.elements.iter().any(|(bytes, _)| *bytes == wanted));
        }
        // The bounds of intervals in their order: a beginning, and what comes first after the end.
        let before = set.elements.iter().filter(|(bytes, _)| *bytes <= wanted);
        let last = before.max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        Some(last.is_some_and(|(_, ends)| !ends))
    }

    fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        match key {
            MetaKey::Protocol => Some(vec![self.packet.protocol]),
            // NFT_META_NFPROTO
            MetaKey::Other(15) => Some(vec![if self.packet.destination.is_ipv4() { 2 } else { 10 }]),
            _ => None,
        }
    }

    /// Bytes of the headers: addresses (RFC 791, RFC 8200), the protocol, the destination port.
    fn payload(&self, base: PayloadBase, offset: usize, length: usize) -> Option<Vec<u8>> {
        let whole = |address: IpAddr| match address {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        let (destination, v4) = (whole(self.packet.destination), self.packet.destination.is_ipv4());
        let (source_at, destination_at) = if v4 { (12, 16) } else { (8, 24) };
        let part = |bytes: &[u8], at: usize| bytes.get(offset - at..offset - at + length).map(<[u8]>::to_vec);
        match base {
            PayloadBase::Transport if (offset, length) == (2, 2) => {
                Some(self.packet.port.to_be_bytes().to_vec())
            }
            PayloadBase::Network if offset >= destination_at => part(&destination, destination_at),
            PayloadBase::Network if offset >= source_at => part(&whole(self.packet.source?), source_at),
            PayloadBase::Network if (offset, length) == (if v4 { 9 } else { 6 }, 1) => {
                Some(vec![self.packet.protocol])
            }
            _ => None,
        }
    }
}

/// `NFT_META_IIF`, `NFT_META_OIF`, `NFT_META_OIFNAME` (nf_tables.h).
const META_LINK_IN: u32 = 4;
const META_LINK_OUT: u32 = 5;
const META_NAME_OUT: u32 = 7;

/// Whether it is the name or the number of a link.
fn is_link(key: MetaKey) -> bool {
    matches!(key, MetaKey::InterfaceIn | MetaKey::Other(META_LINK_IN | META_LINK_OUT | META_NAME_OUT))
}

enum Outcome {
    Accept,
    Drop(&'static str),
    Return,
    /// Another chain; `true` if there is no way back.
    To(String, bool),
    Unknown,
}

impl Outcome {
    fn of(verdict: &Verdict) -> Outcome {
        match verdict {
            Verdict::Accept => Outcome::Accept,
            Verdict::Drop => Outcome::Drop("drops it"),
            Verdict::Return => Outcome::Return,
            Verdict::Jump(name) => Outcome::To(name.clone(), false),
            Verdict::Goto(name) => Outcome::To(name.clone(), true),
            Verdict::Other(_) => Outcome::Unknown,
        }
    }
}

fn load(registers: &mut [Option<u8>; 64], to: Register, value: Option<Vec<u8>>) {
    let at = usize::from(to.0) * 4;
    // What isn't known may be as long as a register can be.
    let length = value.as_ref().map_or(16, Vec::len);
    for (i, slot) in registers.iter_mut().skip(at).take(length).enumerate() {
        *slot = value.as_ref().and_then(|v| v.get(i).copied());
    }
}

fn read(registers: &[Option<u8>; 64], from: Register, length: usize) -> Option<Vec<u8>> {
    let at = usize::from(from.0) * 4;
    registers.get(at..at + length)?.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use portolan_sys::nft::SurveyedSet;

    use super::*;

    fn table(drops: bool, rules: Vec<Vec<Expression>>) -> Vec<SurveyedTable> {
        let chain = SurveyedChain { hook: Some((2, 0)), drops, rules };
        vec![SurveyedTable {
            family: 1,
            name: "fw".into(),
            chains: [("forward".to_owned(), chain)].into(),
            ..SurveyedTable::default()
        }]
    }

    fn links() -> BTreeSet<String> {
        ["lo", "eth0", "docker0"].map(str::to_owned).into()
    }

    fn packet(port: u16) -> Packet {
        Packet { protocol: 6, source: None, destination: "10.244.1.2".parse().unwrap(), port }
    }

    fn tcp_port(port: u16, verdict: Verdict) -> Vec<Expression> {
        let register = Register(0);
        vec![
            Expression::Meta { key: MetaKey::Protocol, to: register },
            Expression::Compare { register, equal: true, value: vec![6] },
            Expression::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: register },
            Expression::Compare { register, equal: true, value: port.to_be_bytes().to_vec() },
            Expression::Verdict(verdict),
        ]
    }

    /// `iifname "docker0" …`
    fn by_link(verdict: Verdict) -> Vec<Expression> {
        vec![
            Expression::Meta { key: MetaKey::InterfaceIn, to: Register(0) },
            Expression::Compare { register: Register(0), equal: true, value: b"docker0".to_vec() },
            Expression::Verdict(verdict),
        ]
    }

    #[test]
    fn a_rule_that_drops_the_port_is_found_and_another_is_not() {
        let tables = table(false, vec![tcp_port(80, Verdict::Drop)]);
        assert!(meets(&tables, &links(), &packet(80), true, &[2]).is_some_and(|w| w.certain));
        assert_eq!(meets(&tables, &links(), &packet(81), true, &[2]), None);
        assert_eq!(meets(&tables, &links(), &packet(80), true, &[0]), None, "at another hook");
    }

    #[test]
    fn a_policy_of_drop_is_certain_only_if_no_rule_could_accept() {
        assert!(meets(&table(true, vec![]), &links(), &packet(80), true, &[2]).is_some_and(|w| w.certain));
        let accepted = table(true, vec![tcp_port(80, Verdict::Accept)]);
        assert_eq!(meets(&accepted, &links(), &packet(80), true, &[2]), None);
        let doubtful = table(true, vec![by_link(Verdict::Accept)]);
        assert!(meets(&doubtful, &links(), &packet(80), true, &[2]).is_some_and(|w| !w.certain));
    }

    #[test]
    fn a_rule_for_a_link_that_is_not_there_or_is_the_loopback_is_no_doubt() {
        let drop = tcp_port(80, Verdict::Drop);
        for (name, certain) in
            [("nosuch\0", true), ("lo\0", true), ("docker0\0", false), ("docker", false), ("veth", true)]
        {
            let register = Register(0);
            let accept = vec![
                Expression::Meta { key: MetaKey::InterfaceIn, to: register },
                Expression::Compare { register, equal: true, value: name.as_bytes().to_vec() },
                Expression::Verdict(Verdict::Accept),
            ];
            let wall = meets(&table(false, vec![accept, drop.clone()]), &links(), &packet(80), true, &[2]);
            assert_eq!(wall.map(|w| w.certain), Some(certain), "{name:?}");
        }
    }

    #[test]
    fn what_is_compared_after_a_link_is_not_taken_for_one() {
        let mut both = by_link(Verdict::Drop);
        both.pop();
        both.extend(tcp_port(80, Verdict::Drop));
        let tables = table(false, vec![both]);
        assert!(meets(&tables, &links(), &packet(80), true, &[2]).is_some_and(|w| !w.certain));
        assert_eq!(meets(&tables, &links(), &packet(81), true, &[2]), None);
    }

    #[test]
    fn a_rule_over_a_set_of_ports_or_a_range_of_them_is_understood() {
        let register = Register(0);
        let rule = vec![
            Expression::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: register },
            Expression::Lookup { set: "ports".into(), id: 0, key: register, inverted: false },
            Expression::Verdict(Verdict::Drop),
        ];
        let with = |intervals, elements: &[(u16, bool)]| {
            let mut tables = table(false, vec![rule.clone()]);
            let elements = elements.iter().map(|(port, end)| (port.to_be_bytes().to_vec(), *end)).collect();
            tables[0].sets.insert("ports".into(), SurveyedSet { intervals, elements });
            tables
        };
        let drops = |tables: &[SurveyedTable], port| {
            meets(tables, &links(), &packet(port), true, &[2]).is_some_and(|w| w.certain)
        };
        let set = with(false, &[(80, false), (443, false)]);
        assert_eq!([80, 443, 81].map(|p| drops(&set, p)), [true, true, false]);
        let range = with(true, &[(0, true), (80, false), (90, true)]);
        assert_eq!([79, 80, 89, 90].map(|p| drops(&range, p)), [false, true, true, false]);
    }

    #[test]
    fn a_drop_that_depends_on_something_unknown_is_a_doubt() {
        let wall = meets(&table(false, vec![by_link(Verdict::Drop)]), &links(), &packet(80), true, &[2]);
        assert!(wall.is_some_and(|w| !w.certain && w.why.contains("if it applies")));
    }
}
