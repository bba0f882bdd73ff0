//! Building rules: loads into successive registers, tests, verdicts.

use ipnet::IpNet;
use portolan_sys::nft::{
    Bytes, CtKey, DynsetOp, Expression, Family, MetaKey, PayloadBase, Register, RejectWith, Verdict,
    masquerade_fully_random,
};

/// Something that a rule reads into registers.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// `ip saddr`
    Source,
    /// `ip saddr & MASK`
    SourceNet(u8),
    /// `ip daddr`
    Destination,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    Port,
    /// `meta priority`
    Priority,
    /// `meta priority & MASK`
    PriorityBits(u32),
    /// `numgen random mod N`
    Random(u32),
    /// `ct original ip daddr`
    OriginalDestination,
    /// `ct original proto-dst`
    OriginalPort,
}

/// One rule under construction.
#[derive(Clone, Debug)]
pub struct Rule {
    family: Family,
    expressions: Vec<Expression>,
}

/// Where data goes that must not lie on a key: the ninth 32-bit register. A key of ours is at most 20 bytes where data is used
/// beside it; nft 1.0.6 puts the data of an IPv6 statement over the key's last four bytes, which is why a reload of its listing
/// loses client affinity for IPv6.
const DATA: Register = Register(8);

/// `RTN_LOCAL`
const LOCAL: u32 = 2;

const FIRST: Register = Register(0);

/// `NF_CT_STATE_…` bits.
pub mod state {
    #![allow(missing_docs)]
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
}

/// `IPS_…` bits.
pub mod status {
    #![allow(missing_docs)]
    pub const CONFIRMED: u32 = 8;
    pub const DNAT: u32 = 32;
}

impl Rule {
    /// A rule of a table of this family.
    pub fn new(family: Family) -> Rule {
        Rule { family, expressions: Vec::new() }
    }

    /// What it is made of.
    pub fn build(self) -> Vec<Expression> {
        self.expressions
    }

    fn then(mut self, expression: Expression) -> Rule {
        self.expressions.push(expression);
        self
    }

    /// Loads fields one after the other, each at a new register.
    fn load(mut self, fields: &[Load]) -> Rule {
        let mut at = 0u8;
        let address = if self.family == Family::Ip { 4u8 } else { 16 };
        // struct iphdr, struct ipv6hdr
        let (source, destination) = if self.family == Family::Ip { (12, 16) } else { (8, 24) };
        for field in fields {
            let to = Register(at);
            let payload =
                |base, offset, length: u8| Expression::Payload { base, offset, length: length.into(), to };
            let words = match field {
                Load::Source | Load::SourceNet(_) | Load::Destination | Load::OriginalDestination => {
                    address / 4
                }
                _ => 1,
            };
            let expression = match field {
                Load::Source | Load::SourceNet(_) => payload(PayloadBase::Network, source, address),
                Load::Destination => payload(PayloadBase::Network, destination, address),
                Load::Port => payload(PayloadBase::Transport, 2, 2),
                Load::Protocol => Expression::Meta { key: MetaKey::Protocol, to },
                Load::Priority | Load::PriorityBits(_) => Expression::Meta { key: MetaKey::Priority, to },
                Load::Random(modulus) => Expression::Random { modulus: *modulus, to },
                Load::OriginalDestination => {
                    let key =
                        if self.family == Family::Ip { CtKey::Destination4 } else { CtKey::Destination6 };
                    Expression::Ct { key, original: true, to }
                }
                Load::OriginalPort => Expression::Ct { key: CtKey::DestinationPort, original: true, to },
            };
            self.expressions.push(expression);
            let mask: Option<Bytes> = match field {
                Load::PriorityBits(bits) => Some(bits.to_ne_bytes().to_vec()),
                Load::SourceNet(length) if *length < address * 8 => Some(self.netmask(*length)),
                _ => None,
            };
            if let Some(mask) = mask {
                let xor = vec![0; mask.len()];
                self.expressions.push(Expression::Bitwise { from: to, to, mask, xor });
            }
            at += words;
        }
        self
    }

    fn netmask(&self, length: u8) -> Bytes {
        let any = if self.family == Family::Ip { "0.0.0.0" } else { "::" };
        let any = any.parse().expect("an address");
        match IpNet::new(any, length).expect("a prefix length").netmask() {
            std::net::IpAddr::V4(mask) => mask.octets().to_vec(),
            std::net::IpAddr::V6(mask) => mask.octets().to_vec(),
        }
    }

    /// Goes on if the fields are in a set.
    pub fn within(self, fields: &[Load], set: &str) -> Rule {
        let lookup = Expression::Lookup { set: set.into(), id: 0, key: FIRST, inverted: false };
        self.load(fields).then(lookup)
    }

    /// Goes on if the fields are not in a set.
    pub fn without(self, fields: &[Load], set: &str) -> Rule {
        let lookup = Expression::Lookup { set: set.into(), id: 0, key: FIRST, inverted: true };
        self.load(fields).then(lookup)
    }

    /// Goes on if the transport protocol has ports; the anonymous set is put in when the rule is written.
    pub fn with_ports(self) -> Rule {
        let lookup = Expression::Lookup { set: ANONYMOUS.into(), id: 0, key: FIRST, inverted: false };
        self.load(&[Load::Protocol]).then(lookup)
    }

    /// Goes on if this is the transport protocol.
    pub fn protocol(self, number: u8) -> Rule {
        self.load(&[Load::Protocol]).then(Expression::Compare {
            register: FIRST,
            equal: true,
            value: vec![number],
        })
    }

    /// Goes on if any of these bits of the priority is set, or none.
    pub fn priority_has(self, bits: u32, any: bool) -> Rule {
        self.load(&[Load::PriorityBits(bits)]).then(Expression::Compare {
            register: FIRST,
            equal: !any,
            value: vec![0; 4],
        })
    }

    /// Goes on if these bits of the priority have this value.
    pub fn priority_is(self, bits: u32, value: u32) -> Rule {
        self.load(&[Load::PriorityBits(bits)]).then(Expression::Compare {
            register: FIRST,
            equal: true,
            value: value.to_ne_bytes().to_vec(),
        })
    }

    /// Goes on if the connection is in one of these states.
    pub fn ct_state(self, bits: u32) -> Rule {
        self.ct_bits(CtKey::State, bits, true)
    }

    /// Goes on if the connection has any of these bits of status, or none.
    pub fn ct_status(self, bits: u32, any: bool) -> Rule {
        self.ct_bits(CtKey::Status, bits, any)
    }

    fn ct_bits(self, key: CtKey, bits: u32, any: bool) -> Rule {
        self.then(Expression::Ct { key, original: false, to: FIRST })
            .then(Expression::Bitwise {
                from: FIRST,
                to: FIRST,
                mask: bits.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .then(Expression::Compare { register: FIRST, equal: !any, value: vec![0; 4] })
    }

    /// Goes on if the packet didn't come in by the loopback link.
    pub fn not_loopback(self) -> Rule {
        let mut name = vec![0; 16];
        name[..2].copy_from_slice(b"lo");
        self.then(Expression::Meta { key: MetaKey::InterfaceIn, to: FIRST }).then(Expression::Compare {
            register: FIRST,
            equal: false,
            value: name,
        })
    }

    /// Goes on if the packet is addressed to 127.0.0.0/8.
    pub fn loopback_net(self) -> Rule {
        self.then(Expression::Payload { base: PayloadBase::Network, offset: 16, length: 1, to: FIRST })
            .then(Expression::Compare { register: FIRST, equal: true, value: vec![127] })
    }

    /// Goes on if the source is an address of this machine.
    pub fn local_source(self) -> Rule {
        self.then(Expression::SourceType { to: FIRST }).then(Expression::Compare {
            register: FIRST,
            equal: true,
            value: LOCAL.to_ne_bytes().to_vec(),
        })
    }

    /// Goes on if the packet would leave by the link that it came in by.
    pub fn leads_back(self) -> Rule {
        self.then(Expression::LeadsBack { to: FIRST }).then(Expression::Compare {
            register: FIRST,
            equal: true,
            value: 1u32.to_ne_bytes().to_vec(),
        })
    }

    /// Sets the priority to what a map says; ends the rule if it says nothing.
    pub fn priority_from(self, fields: &[Load], map: &str) -> Rule {
        self.load(fields)
            .then(Expression::Map { set: map.into(), id: 0, key: FIRST, to: FIRST })
            .then(Expression::MetaSet { key: MetaKey::Priority, from: FIRST })
    }

    /// Sets the priority to nothing.
    pub fn priority_clear(self) -> Rule {
        self.then(Expression::Immediate { to: FIRST, value: vec![0; 4] })
            .then(Expression::MetaSet { key: MetaKey::Priority, from: FIRST })
    }

    /// Translates the destination to what a map says; ends the rule if it says nothing.
    pub fn dnat(self, fields: &[Load], map: &str) -> Rule {
        let family = self.family.number();
        let port = Register(if self.family == Family::Ip { 1 } else { 4 });
        self.load(fields)
            .then(Expression::Map { set: map.into(), id: 0, key: FIRST, to: FIRST })
            .then(Expression::Dnat { family, address: FIRST, port })
    }

    /// Goes where a verdict map says, if it says something.
    pub fn verdict_from(self, fields: &[Load], map: &str) -> Rule {
        self.load(fields).then(Expression::VerdictMap { set: map.into(), id: 0, key: FIRST })
    }

    /// `update @MAP { FIELDS timeout T : meta priority }`, or `delete`.
    pub fn remember(self, fields: &[Load], map: &str, op: DynsetOp, timeout_ms: u64) -> Rule {
        self.load(fields)
            .then(Expression::Meta { key: MetaKey::Priority, to: DATA })
            .then(Expression::Dynset { set: map.into(), op, key: FIRST, data: Some(DATA), timeout_ms })
    }

    /// Counts in a named counter.
    pub fn count(self, counter: &str) -> Rule {
        self.then(Expression::NamedCounter(counter.into()))
    }

    /// Masquerades.
    pub fn masquerade(self) -> Rule {
        self.then(Expression::Masquerade { flags: masquerade_fully_random() })
    }

    /// Refuses with a TCP reset.
    pub fn reset(self) -> Rule {
        self.then(Expression::Reject(RejectWith::TcpReset))
    }

    /// Refuses with "port unreachable".
    pub fn unreachable(self) -> Rule {
        let code = if self.family == Family::Ip { 3 } else { 4 };
        self.then(Expression::Reject(RejectWith::Icmp(code)))
    }

    /// Drops.
    pub fn drop(self) -> Rule {
        self.then(Expression::Verdict(Verdict::Drop))
    }

    /// Returns to the calling chain.
    pub fn back(self) -> Rule {
        self.then(Expression::Verdict(Verdict::Return))
    }

    /// Calls a chain.
    pub fn jump(self, chain: &str) -> Rule {
        self.then(Expression::Verdict(Verdict::Jump(chain.into())))
    }

    /// Goes on in a chain, not to come back.
    pub fn goto(self, chain: &str) -> Rule {
        self.then(Expression::Verdict(Verdict::Goto(chain.into())))
    }
}

/// The pattern of the name of an anonymous set.
pub const ANONYMOUS: &str = "__set%d";
