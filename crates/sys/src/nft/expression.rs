//! What rules are made of.

use crate::netlink::{Attribute, Attributes, Message};

/// One of the sixteen 32-bit registers; values longer than four bytes run on into the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u8);

/// A short value: a constant to compare with, a mask.
pub type Bytes = Vec<u8>;

/// `NFT_META_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// The packet's priority (`skb->priority`), host order.
    Priority,
    /// The name of the link it came in by, 16 bytes.
    InterfaceIn,
    /// The transport protocol.
    Protocol,
    /// Any other.
    Other(u32),
}

/// Where a payload load counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadBase {
    /// The link layer's header.
    Link,
    /// The network header.
    Network,
    /// The transport header.
    Transport,
}

/// `NFT_CT_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// State bits.
    State,
    /// `IPS_…` bits.
    Status,
    /// The destination address of a direction, IPv4.
    Destination4,
    /// The destination address of a direction, IPv6.
    Destination6,
    /// The destination port of a direction.
    DestinationPort,
    /// Any other.
    Other(u32),
}

/// What a verdict does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `drop`
    Drop,
    /// `accept`
    Accept,
    /// `return`
    Return,
    /// `jump CHAIN`
    Jump(String),
    /// `goto CHAIN`
    Goto(String),
    /// Any other code.
    Other(i32),
}

/// What a refused packet is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    /// A TCP reset.
    TcpReset,
    /// An ICMP "unreachable" of this code.
    Icmp(u8),
}

/// What a rule does to a dynamic set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds, unless there.
    Add,
    /// Adds or refreshes.
    Update,
    /// Deletes.
    Delete,
}

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields say what they are
pub enum Expression {
    /// A property of the packet into a register.
    Meta { key: MetaKey, to: Register },
    /// A register into a property of the packet.
    MetaSet { key: MetaKey, from: Register },
    /// Bytes of the packet.
    Payload { base: PayloadBase, offset: u32, length: u32, to: Register },
    /// Goes on if equal (or, negated, unequal).
    Compare { register: Register, equal: bool, value: Bytes },
    /// `to = (from & mask) ^ xor`.
    Bitwise { from: Register, to: Register, mask: Bytes, xor: Bytes },
    /// Goes on if the key is in the set (or, inverted, is not).
    Lookup { set: String, id: u32, key: Register, inverted: bool },
    /// The value of the key in the map; ends the rule if there is none.
    Map { set: String, id: u32, key: Register, to: Register },
    /// The verdict of the key in the map; ends the rule if there is none.
    VerdictMap { set: String, id: u32, key: Register },
    /// A constant into a register.
    Immediate { to: Register, value: Bytes },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// A random number below the modulus, host order.
    Random { modulus: u32, to: Register },
    /// Destination translation to an address and a port.
    Dnat { family: u8, address: Register, port: Register },
    /// Source translation to the address of the outgoing link.
    Masquerade { flags: u32 },
    /// Refuses the packet.
    Reject(RejectWith),
    /// The type of the source address (`fib saddr type`), as `RTN_…`.
    SourceType { to: Register },
    /// The type of the destination address (`fib daddr type`), as `RTN_…`.
    DestinationType { to: Register },
    /// Whether the route to the destination leaves by the link that the packet came in by (`fib daddr . iif oif exists`):
    /// 1 or 0.
    LeadsBack { to: Register },
    /// A property of the connection; with a direction for the keys that have one.
    Ct { key: CtKey, original: bool, to: Register },
    /// Changes a dynamic set.
    Dynset { set: String, op: DynsetOp, key: Register, data: Option<Register>, timeout_ms: u64 },
    /// Counts packets in the rule.
    Counter { packets: u64, bytes: u64 },
    /// Counts packets in a named counter.
    NamedCounter(String),
    /// A match of iptables, as iptables-nft writes it: its name, and its structure of `include/uapi/linux/netfilter`.
    Match { name: String, info: Bytes },
    /// A target of iptables, likewise.
    Target { name: String, info: Bytes },
    /// One that this module doesn't know.
    Other(String),
}

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`, for [`Expression::Masquerade`].
pub fn masquerade_fully_random() -> u32 {
    0x10
}

/// `NFT_FIB_RESULT_OIF`, `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_RESULT_LINK: u32 = 1;
const FIB_RESULT_TYPE: u32 = 3;
/// `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR`.
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;
/// `NFTA_FIB_F_DADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT`.
const FIB_LEADS_BACK: u32 = 2 | 8 | 32;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

impl Register {
    fn number(self) -> u32 {
        // NFT_REG32_00 is 8.
        u32::from(self.0) + 8
    }

    fn read(attribute: Option<Attribute<'_>>) -> Register {
        // The kernel answers with NFT_REG_1..4 (four words each) where it can.
        let number = attribute.map_or(0, |a| a.u32be());
        Register(match number {
            0 => 0,
            1..=4 => (number as u8 - 1) * 4,
            _ => (number.saturating_sub(8)) as u8,
        })
    }
}

impl MetaKey {
    fn number(self) -> u32 {
        match self {
            MetaKey::Priority => 2,
            MetaKey::InterfaceIn => 6,
            MetaKey::Protocol => 16,
            MetaKey::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> MetaKey {
        match number {
            2 => MetaKey::Priority,
            6 => MetaKey::InterfaceIn,
            16 => MetaKey::Protocol,
            other => MetaKey::Other(other),
        }
    }
}

impl CtKey {
    fn number(self) -> u32 {
        match self {
            CtKey::State => 0,
            CtKey::Status => 2,
            CtKey::DestinationPort => 12,
            CtKey::Destination4 => 20,
            CtKey::Destination6 => 22,
            CtKey::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> CtKey {
        match number {
            0 => CtKey::State,
            2 => CtKey::Status,
            12 => CtKey::DestinationPort,
            20 => CtKey::Destination4,
            22 => CtKey::Destination6,
            other => CtKey::Other(other),
        }
    }
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Jump(_) => -3,
            Verdict::Goto(_) => -4,
            Verdict::Return => -5,
            Verdict::Other(code) => *code,
        }
    }

    /// Writes the verdict as the content of an `NFTA_…_DATA` attribute.
    pub(super) fn write(&self, m: &mut Message) {
        m.nest(DATA_VERDICT, |m| {
            m.u32be(1, self.code() as u32);
            if let Verdict::Jump(chain) | Verdict::Goto(chain) = self {
                m.str(2, chain);
            }
        });
    }

    /// Reads the content of an `NFTA_…_DATA` attribute, if it is a verdict.
    pub(super) fn read(data: Attributes<'_>) -> Option<Verdict> {
        let verdict = data.find(DATA_VERDICT)?.inside();
        let chain = || verdict.find(2).map_or_else(String::new, |c| c.str());
        Some(match verdict.find(1)?.u32be() as i32 {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            -3 => Verdict::Jump(chain()),
            -4 => Verdict::Goto(chain()),
            -5 => Verdict::Return,
            other => Verdict::Other(other),
        })
    }
}

impl Expression {
    /// Writes the expression as one `NFTA_LIST_ELEM`.
    pub(super) fn write(&self, m: &mut Message) {
        m.nest(1, |m| {
            m.str(1, self.name());
            m.nest(2, |m| self.write_body(m));
        });
    }

    fn name(&self) -> &str {
        match self {
            Expression::Meta { .. } | Expression::MetaSet { .. } => "meta",
            Expression::Payload { .. } => "payload",
            Expression::Compare { .. } => "cmp",
            Expression::Bitwise { .. } => "bitwise",
            Expression::Lookup { .. } | Expression::Map { .. } | Expression::VerdictMap { .. } => "lookup",
            Expression::Immediate { .. } | Expression::Verdict(_) => "immediate",
            Expression::Random { .. } => "numgen",
            Expression::Dnat { .. } => "nat",
            Expression::Masquerade { .. } => "masq",
            Expression::Reject(_) => "reject",
            Expression::SourceType { .. }
            | Expression::DestinationType { .. }
            | Expression::LeadsBack { .. } => "fib",
            Expression::Ct { .. } => "ct",
            Expression::Dynset { .. } => "dynset",
            Expression::Counter { .. } => "counter",
            Expression::NamedCounter(_) => "objref",
            Expression::Match { .. } => "match",
            Expression::Target { .. } => "target",
            Expression::Other(name) => name,
        }
    }

    fn write_body(&self, m: &mut Message) {
        let value = |m: &mut Message, kind: u16, bytes: &[u8]| {
            m.nest(kind, |m| {
                m.bytes(DATA_VALUE, bytes);
            });
        };
        match self {
            Expression::Meta { key, to } => {
                m.u32be(1, to.number()).u32be(2, key.number());
            }
            Expression::MetaSet { key, from } => {
                m.u32be(2, key.number()).u32be(3, from.number());
            }
            Expression::Payload { base, offset, length, to } => {
                let base = match base {
                    PayloadBase::Link => 0,
                    PayloadBase::Network => 1,
                    PayloadBase::Transport => 2,
                };
                m.u32be(1, to.number()).u32be(2, base).u32be(3, *offset).u32be(4, *length);
            }
            Expression::Compare { register, equal, value: bytes } => {
                m.u32be(1, register.number()).u32be(2, u32::from(!equal));
                value(m, 3, bytes);
            }
            Expression::Bitwise { from, to, mask, xor } => {
                m.u32be(1, from.number()).u32be(2, to.number()).u32be(3, mask.len() as u32);
                value(m, 4, mask);
                value(m, 5, xor);
            }
            Expression::Lookup { set, id, key, inverted } => {
                m.str(1, set).u32be(2, key.number()).u32be(4, *id);
                if *inverted {
                    m.u32be(5, 1);
                }
            }
            Expression::Map { set, id, key, to } => {
                m.str(1, set).u32be(2, key.number()).u32be(3, to.number()).u32be(4, *id);
            }
            Expression::VerdictMap { set, id, key } => {
                m.str(1, set).u32be(2, key.number()).u32be(3, 0).u32be(4, *id);
            }
            Expression::Immediate { to, value: bytes } => {
                m.u32be(1, to.number());
                value(m, 2, bytes);
            }
            Expression::Verdict(verdict) => {
                m.u32be(1, 0).nest(2, |m| verdict.write(m));
            }
            Expression::Random { modulus, to } => {
                m.u32be(1, to.number()).u32be(2, *modulus).u32be(3, 1).u32be(4, 0);
            }
            Expression::Dnat { family, address, port } => {
                m.u32be(1, 1).u32be(2, u32::from(*family));
                m.u32be(3, address.number()).u32be(5, port.number());
            }
            Expression::Masquerade { flags } => {
                m.u32be(1, *flags);
            }
            Expression::Reject(with) => {
                match with {
                    RejectWith::TcpReset => m.u32be(1, 1),
                    RejectWith::Icmp(code) => m.u32be(1, 0).u8(2, *code),
                };
            }
            Expression::SourceType { to } => {
                m.u32be(1, to.number()).u32be(2, FIB_RESULT_TYPE).u32be(3, FIB_SOURCE);
            }
            Expression::DestinationType { to } => {
                m.u32be(1, to.number()).u32be(2, FIB_RESULT_TYPE).u32be(3, FIB_DESTINATION);
            }
            Expression::LeadsBack { to } => {
                m.u32be(1, to.number()).u32be(2, FIB_RESULT_LINK).u32be(3, FIB_LEADS_BACK);
            }
            Expression::Ct { key, original, to } => {
                m.u32be(1, to.number()).u32be(2, key.number());
                if *original {
                    m.u8(3, 0);
                }
            }
            Expression::Dynset { set, op, key, data, timeout_ms } => {
                let op = match op {
                    DynsetOp::Add => 0,
                    DynsetOp::Update => 1,
                    DynsetOp::Delete => 2,
                };
                m.str(1, set).u32be(3, op).u32be(4, key.number());
                if let Some(data) = data {
                    m.u32be(5, data.number());
                }
                if *timeout_ms > 0 {
                    m.u64be(6, *timeout_ms);
                }
            }
            Expression::Counter { packets, bytes } => {
                m.u64be(1, *bytes).u64be(2, *packets);
            }
            Expression::NamedCounter(name) => {
                m.u32be(1, 1).str(2, name);
            }
            // Read only: what iptables writes is iptables' to write.
            Expression::Match { .. } | Expression::Target { .. } | Expression::Other(_) => {}
        }
    }

    /// Reads one `NFTA_LIST_ELEM`.
    pub(super) fn read(element: Attributes<'_>) -> Expression {
        let name = element.find(1).map_or_else(String::new, |n| n.str());
        let body = element.find(2).map_or(Attributes::new(&[]), |d| d.inside());
        Expression::read_body(&name, body).unwrap_or(Expression::Other(name))
    }

    fn read_body(name: &str, body: Attributes<'_>) -> Option<Expression> {
        let register = |kind| Register::read(body.find(kind));
        let number = |kind| body.find(kind).map(|a| a.u32be());
        let value =
            |kind| -> Option<Bytes> { Some(body.find(kind)?.inside().find(DATA_VALUE)?.value.to_vec()) };
        let text = |kind| body.find(kind).map_or_else(String::new, |n| n.str());
        Some(match name {
            "meta" => {
                let key = MetaKey::from_number(number(2)?);
                match body.find(1) {
                    Some(_) => Expression::Meta { key, to: register(1) },
                    None => Expression::MetaSet { key, from: register(3) },
                }
            }
            "payload" => Expression::Payload {
                base: match number(2)? {
                    0 => PayloadBase::Link,
                    1 => PayloadBase::Network,
                    2 => PayloadBase::Transport,
                    _ => return None,
                },
                offset: number(3)?,
                length: number(4)?,
                to: register(1),
            },
            "cmp" => {
                let equal = match number(2)? {
                    0 => true,
                    1 => false,
                    _ => return None,
                };
                Expression::Compare { register: register(1), equal, value: value(3)? }
            }
            "bitwise" => {
                Expression::Bitwise { from: register(1), to: register(2), mask: value(4)?, xor: value(5)? }
            }
            "lookup" => match number(3) {
                None => Expression::Lookup {
                    set: text(1),
                    id: 0,
                    key: register(2),
                    inverted: number(5).unwrap_or(0) & 1 != 0,
                },
                Some(0) => Expression::VerdictMap { set: text(1), id: 0, key: register(2) },
                Some(_) => Expression::Map { set: text(1), id: 0, key: register(2), to: register(3) },
            },
            "immediate" => match Verdict::read(body.find(2)?.inside()) {
                Some(verdict) => Expression::Verdict(verdict),
                None => Expression::Immediate { to: register(1), value: value(2)? },
            },
            "numgen" if number(3)? == 1 => Expression::Random { modulus: number(2)?, to: register(1) },
            "nat" if number(1)? == 1 => {
                Expression::Dnat { family: number(2)? as u8, address: register(3), port: register(5) }
            }
            "masq" => Expression::Masquerade { flags: number(1).unwrap_or(0) },
            "reject" => Expression::Reject(match number(1)? {
                1 => RejectWith::TcpReset,
                _ => RejectWith::Icmp(body.find(2)?.u8()),
            }),
            "fib" => match (number(2)?, number(3)?) {
                (FIB_RESULT_TYPE, FIB_SOURCE) => Expression::SourceType { to: register(1) },
                (FIB_RESULT_TYPE, FIB_DESTINATION) => Expression::DestinationType { to: register(1) },
                (FIB_RESULT_LINK, FIB_LEADS_BACK) => Expression::LeadsBack { to: register(1) },
                _ => return None,
            },
            "ct" => Expression::Ct {
                key: CtKey::from_number(number(2)?),
                original: body.find(3).is_some_and(|d| d.u8() == 0),
                to: register(1),
            },
            "dynset" => Expression::Dynset {
                set: text(1),
                op: match number(3)? {
                    0 => DynsetOp::Add,
                    1 => DynsetOp::Update,
                    _ => DynsetOp::Delete,
                },
                key: register(4),
                data: body.find(5).map(|r| Register::read(Some(r))),
                timeout_ms: body.find(6).map_or(0, |t| t.u64be()),
            },
            "counter" => Expression::Counter { packets: body.find(2)?.u64be(), bytes: body.find(1)?.u64be() },
            "objref" if number(1)? == 1 => Expression::NamedCounter(text(2)),
            "match" => Expression::Match { name: text(1), info: body.find(3)?.value.to_vec() },
            "target" => Expression::Target { name: text(1), info: body.find(3)?.value.to_vec() },
            _ => return None,
        })
    }
}
