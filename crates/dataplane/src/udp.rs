//! UDP flows that connection tracking still leads to where they went before.
//!
//! A UDP flow has no end: for as long as packets come, its translation stays as its first packet found it. When a backend is
//! gone the entry has to go, so that the next packet is decided anew. TCP and SCTP end by themselves.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use portolan_plan::model::{Backend, Frontend, Protocol};
use portolan_plan::planner::StaleUdp;
use portolan_sys::conntrack::{Conntrack, Flow, SentTo, TRANSLATED};

use crate::encode::FAMILIES;
use crate::ruleset;

/// How many frontends are looked for one by one. The kernel walks over its table for each, which costs a twentieth of what it
/// costs to be sent every flow (`benches/udp.rs`).
const ONE_BY_ONE: usize = 8;

/// Forgets the UDP flows to these frontends, but for those to the backends given with each; returns how many. Works on the
/// calling thread's network namespace. The kernel sends only flows to these frontends if they are few, and all UDP flows, once,
/// if they are many.
pub fn forget_udp(keep: &StaleUdp, node_addresses: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let mut forgotten = 0;
    let mut kernel = None;
    for family in FAMILIES {
        let mut to: Vec<SentTo> = keep.keys().filter(|f| f.family() == family).map(sent_to).collect();
        if to.is_empty() {
            continue;
        }
        if to.len() > ONE_BY_ONE {
            to = vec![SentTo::default()];
        }
        let kernel = match &mut kernel {
            Some(kernel) => kernel,
            none => none.insert(Conntrack::open()?),
        };
        forgotten +=
            kernel.delete_udp(ruleset::family(family), &to, |flow| stale(flow, keep, node_addresses))?;
    }
    Ok(forgotten)
}

fn sent_to(frontend: &Frontend) -> SentTo {
    match *frontend {
        Frontend::Address { address, port, .. } => SentTo { address: Some(address), port: Some(port) },
        Frontend::NodePort { port, .. } => SentTo { address: None, port: Some(port) },
    }
}

fn stale(flow: &Flow, keep: &StaleUdp, node_addresses: &BTreeSet<IpAddr>) -> bool {
    let protocol = Protocol::Udp;
    let (address, port) = (flow.original.destination, flow.original.destination_port);
    let family = portolan_plan::model::Family::of(address);
    // The node may have lost the address since: then the flow is known by having been translated.
    let at_node = node_addresses.contains(&address) || flow.status & TRANSLATED != 0;
    let serving = keep
        .get(&Frontend::Address { address, protocol, port })
        .or_else(|| keep.get(&Frontend::NodePort { family, protocol, port }).filter(|_| at_node));
    let backend = Backend { address: flow.reply.source, port: flow.reply.source_port };
    serving.is_some_and(|serving| !serving.contains(&backend))
}
