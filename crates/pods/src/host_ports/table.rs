//! The node's doors as nftables tables, one a family, beside those of the agent: the pods runtime has them also where no agent
//! of ours is. Every door is an element of a map, and the rules are always the same.
//!
//! Services come first (their tables' chains are at dstnat, these one later): a port that a NodePort has stays a NodePort.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use portolan_sys::conntrack::{Conntrack, SentTo};
use portolan_sys::nft::{
    Batch, ChainHook, CtKey, Expression, Family, Field, Hook, MetaKey, Nftables, PayloadBase, Register,
    SetDeclaration, SetFlags, Verdict, masquerade_fully_random,
};

use super::{Door, Doors, Protocol, leads_to};

/// The tables' name.
const TABLE: &str = "portolan-pods";
/// Doors at one address: address . protocol . port to address . port.
const AT: &str = "host-ports-at";
/// Doors at every address of the machine: protocol . port to address . port.
const ANY: &str = "host-ports";
/// Pods behind doors, each twice, as `ip saddr . ip daddr`: a pod that meets itself.
const HAIRPIN: &str = "hairpin";
/// Pods behind doors.
const PODS: &str = "pods";
/// All sets, with what decides which elements they have.
const SETS: [&str; 4] = [AT, ANY, HAIRPIN, PODS];
/// The pattern of the name of an anonymous set.
const ANONYMOUS: &str = "__set%d";

/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 32;
/// Longer than all the doors of a node make a batch: 110 pods of a dozen ports are some 100 KiB.
const BATCH: usize = 1 << 20;
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// What the kernel's sets are to hold: key and data by set.
type Elements = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Each field of a key or of data takes whole words.
fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The elements of a family's table.
fn elements(family: Family, doors: &Doors) -> Elements {
    let mut all: Elements = SETS.map(|set| (set, BTreeMap::new())).into();
    let mut add = |set: &'static str, key: Vec<u8>, data: Vec<u8>| {
        all.entry(set).or_default().insert(key, data);
    };
    for (door, to) in doors.iter().filter(|(door, _)| door.ipv6 == (family == Family::Ip6)) {
        let mut key = door.address.map(bytes).unwrap_or_default();
        key.extend([door.protocol.number(), 0, 0, 0]);
        key.extend(port(door.port));
        let pod = bytes(to.ip());
        add(if door.address.is_some() { AT } else { ANY }, key, [&pod[..], &port(to.port())].concat());
        add(HAIRPIN, [&pod[..], &pod].concat(), Vec::new());
        add(PODS, pod, Vec::new());
    }
    all
}

fn declaration(family: Family, set: &str) -> SetDeclaration {
    let (source, destination) = (Field::Source(family), Field::Destination(family));
    let (key, data) = match set {
        AT => (vec![destination, Field::Protocol, Field::Port], vec![destination, Field::Port]),
        ANY => (vec![Field::Protocol, Field::Port], vec![destination, Field::Port]),
        HAIRPIN => (vec![source, destination], vec![]),
        _ => (vec![destination], vec![]),
    };
    let flags = if data.is_empty() { SetFlags::default() } else { SetFlags::MAP };
    SetDeclaration { name: set.to_owned(), flags, key, data, size: 0 }
}

/// Where rules find addresses, and how long these are in bytes.
struct Shape {
    source: u32,
    destination: u32,
    length: u32,
}

impl Shape {
    fn of(family: Family) -> Shape {
        // struct iphdr, struct ipv6hdr
        match family {
            Family::Ip => Shape { source: 12, destination: 16, length: 4 },
            Family::Ip6 => Shape { source: 8, destination: 24, length: 16 },
        }
    }

    /// The register that comes after an address.
    fn words(&self) -> u8 {
        (self.length / 4) as u8
    }
}

const FIRST: Register = Register(0);

fn header(offset: u32, length: u32, to: Register) -> Expression {
    Expression::Payload { base: PayloadBase::Network, offset, length, to }
}

fn equals(value: Vec<u8>) -> Expression {
    Expression::Compare { register: FIRST, equal: true, value }
}

/// Protocol and port into these registers.
fn protocol_and_port(at: u8) -> [Expression; 2] {
    [
        Expression::Meta { key: MetaKey::Protocol, to: Register(at) },
        Expression::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: Register(at + 1) },
    ]
}

fn within(set: &str) -> Expression {
    Expression::Lookup { set: set.to_owned(), id: 0, key: FIRST, inverted: false }
}

fn translate(family: Family, map: &str) -> [Expression; 2] {
    let port = Register(Shape::of(family).words());
    [
        Expression::Map { set: map.to_owned(), id: 0, key: FIRST, to: FIRST },
        Expression::Dnat { family: family.number(), address: FIRST, port },
    ]
}

fn is_translated() -> [Expression; 3] {
    [
        Expression::Ct { key: CtKey::Status, original: false, to: FIRST },
        Expression::Bitwise {
            from: FIRST,
            to: FIRST,
            mask: TRANSLATED.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expression::Compare { register: FIRST, equal: false, value: vec![0; 4] },
    ]
}

/// A chain: its name, where it hangs, and its rules.
type Chain = (&'static str, Option<ChainHook>, Vec<Vec<Expression>>);

/// The chains of a family's table, each after those that it calls.
fn chains(family: Family) -> Vec<Chain> {
    let Shape { source, destination, length } = Shape::of(family);
    let words = Shape::of(family).words();
    let with_ports = || {
        let lookup = Expression::Lookup { set: ANONYMOUS.to_owned(), id: 0, key: FIRST, inverted: false };
        vec![Expression::Meta { key: MetaKey::Protocol, to: FIRST }, lookup]
    };
    let mut at = with_ports();
    at.push(header(destination, length, FIRST));
    at.extend(protocol_and_port(words));
    at.extend(translate(family, AT));
    let mut any = vec![Expression::DestinationType { to: FIRST }, equals(LOCAL.to_ne_bytes().to_vec())];
    any.extend(with_ports());
    any.extend(protocol_and_port(0));
    any.extend(translate(family, ANY));

    let masquerade = || Expression::Masquerade { flags: masquerade_fully_random() };
    // A pod that reaches itself by the node would take an answer of its own for somebody else's; and nobody answers to a
    // loopback address but the machine itself.
    let mut itself: Vec<Expression> = is_translated().into();
    itself.extend([
        header(source, length, FIRST),
        header(destination, length, Register(words)),
        within(HAIRPIN),
    ]);
    itself.push(masquerade());
    let (mut doors, mut sources) = (vec![at, any], vec![itself]);
    match family {
        Family::Ip => {
            let mut loopback: Vec<Expression> = is_translated().into();
            loopback.extend([header(source, 1, FIRST), equals(vec![127])]);
            loopback.extend([header(destination, length, FIRST), within(PODS), masquerade()]);
            sources.push(loopback);
        }
        // IPv6 has no `route_localnet`: an answer to ::1 would never arrive.
        Family::Ip6 => {
            let localhost = bytes(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
            let back = Expression::Verdict(Verdict::Return);
            doors.insert(0, vec![header(destination, length, FIRST), equals(localhost), back]);
        }
    }

    let nat = |hook, priority| Some(ChainHook { kind: "nat", hook, priority });
    let jump = || vec![vec![Expression::Verdict(Verdict::Jump("doors".to_owned()))]];
    let mut chains = vec![
        ("doors", None, doors),
        ("postrouting", nat(Hook::Postrouting, 101), sources),
        ("output", nat(Hook::Output, -99), jump()),
        ("prerouting", nat(Hook::Prerouting, -99), jump()),
    ];
    if family == Family::Ip {
        // The pods' links carry answers to 127.0.0.1 (`route_localnet`). Nobody may send anything there: answers are addressed
        // to the node before they are translated back, and here nothing is yet.
        let mut name = vec![0; 16];
        name[..2].copy_from_slice(b"lo");
        let guard = vec![
            Expression::Meta { key: MetaKey::InterfaceIn, to: FIRST },
            Expression::Compare { register: FIRST, equal: false, value: name },
            header(destination, 1, FIRST),
            equals(vec![127]),
            Expression::Verdict(Verdict::Drop),
        ];
        let raw = ChainHook { kind: "filter", hook: Hook::Prerouting, priority: -300 };
        chains.insert(0, ("guard", Some(raw), vec![guard]));
    }
    chains
}

fn add_rule(batch: &mut Batch, family: Family, chain: &str, rule: &[Expression]) {
    let mut rule = rule.to_vec();
    for expression in &mut rule {
        if let Expression::Lookup { set, id, .. } = expression
            && set == ANONYMOUS
        {
            let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            let declaration = SetDeclaration {
                name: ANONYMOUS.to_owned(),
                flags: SetFlags::ANONYMOUS.with(SetFlags::CONSTANT),
                key: vec![Field::Protocol],
                data: vec![],
                size: 3,
            };
            *id = batch.add_set(family, TABLE, &declaration);
            for protocol in protocols {
                batch.add_anonymous(family, TABLE, (ANONYMOUS, *id), &[protocol.number()]);
            }
        }
    }
    batch.add_rule(family, TABLE, chain, &rule);
}

/// Makes the kernel's doors these, in one transaction; a family without doors has no table.
pub(crate) fn replace(doors: &Doors) -> io::Result<()> {
    let mut nftables = Nftables::open(BATCH)?;
    let mut batch = Batch::new();
    for family in FAMILIES {
        if nftables.table(family, TABLE)?.is_some() {
            batch.delete_table(family, TABLE);
        }
        let elements = elements(family, doors);
        if elements.values().all(BTreeMap::is_empty) {
            continue;
        }
        batch.add_table(family, TABLE, "ports of the node that lead to its pods");
        for set in SETS {
            batch.add_set(family, TABLE, &declaration(family, set));
            for (key, data) in &elements[set] {
                batch.add_element(
                    family,
                    TABLE,
                    set,
                    key,
                    Some(&data[..]).filter(|data| !data.is_empty()),
                    None,
                );
            }
        }
        for (chain, hook, rules) in chains(family) {
            batch.add_chain(family, TABLE, chain, hook);
            for rule in &rules {
                add_rule(&mut batch, family, chain, rule);
            }
        }
    }
    nftables.commit(batch).map(drop)
}

/// Takes the tables away.
pub(crate) fn remove() -> io::Result<()> {
    replace(&Doors::new())
}

/// Whether the kernel still has these doors: the generation in which that is so. Nothing is read if that is `known`.
pub(crate) fn intact(doors: &Doors, known: u32) -> io::Result<Option<u32>> {
    let mut nftables = Nftables::open(BATCH)?;
    let generation = nftables.generation()?;
    if generation == known {
        return Ok(Some(generation));
    }
    for family in FAMILIES {
        let wanted = elements(family, doors);
        if wanted.values().all(BTreeMap::is_empty) {
            continue;
        }
        if nftables.table(family, TABLE)?.is_none_or(|table| table.dormant) {
            return Ok(None);
        }
        let rules = nftables.rules(family, TABLE)?.len();
        if rules != chains(family).iter().map(|(_, _, rules)| rules.len()).sum::<usize>() {
            return Ok(None);
        }
        for (set, wanted) in &wanted {
            let mut found = BTreeMap::new();
            nftables.elements(family, TABLE, set, |element| {
                found.insert(element.key.to_vec(), element.data.unwrap_or_default().to_vec());
            })?;
            if found != *wanted {
                return Ok(None);
            }
        }
    }
    Ok(Some(generation))
}

/// Forgets UDP flows that go elsewhere than their door leads by now: while their sender goes on, the kernel would never ask the
/// tables again. (A connection of another protocol begins anew.)
pub(crate) fn forget(changed: &BTreeSet<Door>, doors: &Doors, node_addresses: &[IpAddr]) -> io::Result<()> {
    for family in FAMILIES {
        let ipv6 = family == Family::Ip6;
        let mut sent = Vec::new();
        for door in changed.iter().filter(|door| door.protocol == Protocol::Udp && door.ipv6 == ipv6) {
            let everywhere = node_addresses.iter().copied().filter(|address| address.is_ipv6() == ipv6);
            let addresses: Vec<IpAddr> =
                door.address.map_or_else(|| everywhere.collect(), |address| vec![address]);
            sent.extend(addresses.into_iter().map(|at| SentTo { address: Some(at), port: Some(door.port) }));
        }
        if sent.is_empty() {
            continue;
        }
        let gone = |flow: &portolan_sys::conntrack::Flow| {
            let (address, port) = (flow.original.destination, flow.original.destination_port);
            let goes = SocketAddr::new(flow.reply.source, flow.reply.source_port);
            match leads_to(doors, address, Protocol::Udp, port) {
                Some(leads) => goes != leads,
                None => goes.ip() != address,
            }
        };
        Conntrack::open()?.delete_udp(family, sent, gone)?;
    }
    Ok(())
}
