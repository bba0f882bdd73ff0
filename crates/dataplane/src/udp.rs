//! UDP flows that connection tracking still leads to where they went before.
//!
//! A UDP flow has no end: for as long as packets come, its translation stays as its first packet found it. When a backend is
//! gone the entry has to go, so that the next packet is decided anew. TCP and SCTP end by themselves.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use portolan_plan::model::{Backend, Frontend, Protocol};
use portolan_plan::planner::StaleUdp;
use portolan_sys::conntrack::{Conntrack, Flow, SentTo, TRANSLATED, UDP};

use crate::encode::FAMILIES;
use crate::ruleset;

/// How many frontends are looked for one by one. The kernel walks over its table for each, which costs a twentieth of what it
/// costs to be sent every flow (`benches/udp.rs`).
const ONE_BY_ONE: usize = 8;

/// What becomes of the stale flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// Those to a backend that leaves are given a second to live, and end unless another packet comes. A flow that is deleted
    /// between a question and its answer loses the answer, and so does one that was idle when it was listed and has a question when
    /// it is deleted. The others go at once.
    Unused,
    /// All go at once.
    All,
}

/// Seconds: the least that the kernel can be told.
const LAST_SECOND: u32 = 1;

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
        let (mut stale, mut leave) = (Vec::new(), Vec::new());
        for to in to {
            kernel.list(ruleset::family(family), UDP, to, |flow| {
                match fate(flow, frontends, node_addresses) {
                    Fate::GoesOn => {}
                    Fate::Leaves if which == Forget::Unused => leave.push(*flow),
                    Fate::Leaves | Fate::Stale => stale.push(*flow),
                }
            })?;
        }
        forgotten += kernel.delete(&stale)?;
        forgotten += kernel.shorten(&leave, LAST_SECOND)?;
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
