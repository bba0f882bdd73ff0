//! UDP flows that connection tracking still leads to where they went before.
//!
//! A UDP flow has no end: for as long as packets come, its translation stays as its first packet found it. When a backend is
//! gone the entry has to go, so that the next packet is decided anew. TCP and SCTP end by themselves.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use portolan_plan::model::{Backend, Frontend, Protocol};
use portolan_plan::planner::StaleUdp;
use portolan_sys::conntrack::{ASSURED, Conntrack, Flow, SentTo, TRANSLATED};

use crate::encode::FAMILIES;
use crate::ruleset;

/// How many frontends are looked for one by one. The kernel walks over its table for each, which costs a twentieth of what it
/// costs to be sent every flow (`benches/udp.rs`).
const ONE_BY_ONE: usize = 8;

/// Which of the stale flows are to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// All but those to a backend that leaves which had a packet within the last second: that may have been a question, and
    /// without the entry its answer reaches nobody.
    Idle,
    /// All.
    All,
}

/// Forgets the UDP flows to these frontends, but for those to the backends that serve; returns how many. Works on the calling
/// thread's network namespace. The kernel sends only flows to these frontends if they are few, and all UDP flows, once, if they
/// are many.
pub fn forget_udp(
    frontends: &StaleUdp,
    node_addresses: &BTreeSet<IpAddr>,
    which: Forget,
) -> io::Result<usize> {
    let mut forgotten = 0;
    let mut kernel = None;
    let lifetimes = Lifetimes::read();
    for family in FAMILIES {
        let mut to: BTreeSet<SentTo> =
            frontends.keys().filter(|f| f.family() == family).map(sent_to).collect();
        if to.is_empty() {
            continue;
        }
        if to.len() > ONE_BY_ONE {
            to = [SentTo::default()].into();
        }
        let kernel = match &mut kernel {
            Some(kernel) => kernel,
            none => none.insert(Conntrack::open()?),
        };
        let doomed = |flow: &Flow| match fate(flow, frontends, node_addresses) {
            Fate::GoesOn => false,
            Fate::Leaves => which == Forget::All || !lifetimes.had_a_packet_just_now(flow),
            Fate::Stale => true,
        };
        forgotten += kernel.delete_udp(ruleset::family(family), to, doomed)?;
    }
    Ok(forgotten)
}

fn sent_to(frontend: &Frontend) -> SentTo {
    match *frontend {
        // The kernel can't be asked for the flows to an IPv6 address (see `Conntrack::list`): those to its port are asked for
        // once then, not for each address.
        Frontend::Address { address, port, .. } => {
            SentTo { address: Some(address).filter(IpAddr::is_ipv4), port: Some(port) }
        }
        Frontend::NodePort { port, .. } => SentTo { address: None, port: Some(port) },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    GoesOn,
    Leaves,
    Stale,
}

fn fate(flow: &Flow, frontends: &StaleUdp, node_addresses: &BTreeSet<IpAddr>) -> Fate {
    let protocol = Protocol::Udp;
    let (address, port) = (flow.original.destination, flow.original.destination_port);
    let family = portolan_plan::model::Family::of(address);
    // The node may have lost the address since: then the flow is known by having been translated.
    let at_node = node_addresses.contains(&address) || flow.status & TRANSLATED != 0;
    let backends = frontends
        .get(&Frontend::Address { address, protocol, port })
        .or_else(|| frontends.get(&Frontend::NodePort { family, protocol, port }).filter(|_| at_node));
    let backend = Backend { address: flow.reply.source, port: flow.reply.source_port };
    match backends {
        None => Fate::GoesOn,
        Some(backends) if backends.serving.contains(&backend) => Fate::GoesOn,
        Some(backends) if backends.leaving.contains(&backend) => Fate::Leaves,
        Some(_) => Fate::Stale,
    }
}

/// How many seconds a UDP flow lives after each of its packets: at first, and once it has gone to and fro for a while.
struct Lifetimes {
    young: u32,
    assured: u32,
}

impl Lifetimes {
    fn read() -> Lifetimes {
        let read = |name: &str, default| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_udp_{name}"));
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default)
        };
        Lifetimes { young: read("timeout", 30), assured: read("timeout_stream", 120) }
    }

    /// What is left of the lifetime is rounded down: a second or less after a packet, one less than the whole is left.
    fn had_a_packet_just_now(&self, flow: &Flow) -> bool {
        let whole = if flow.status & ASSURED != 0 { self.assured } else { self.young };
        flow.timeout + 1 >= whole
    }
}
