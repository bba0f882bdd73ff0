//! The kernel as a dataplane: the nftables engine, and the connection table beside it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use portolan_dataplane::{Applied, Engine, Options};
use portolan_plan::model::{self, Backend, Frontend, Plan, PlanChange};
use portolan_sys::conntrack::{Conntrack, Flow};
use portolan_sys::nft::{Family, Nftables};

use crate::dataplane::{Dataplane, StaleUdp};

/// The kernel, in one network namespace.
pub struct Kernel {
    engine: Engine,
    conntrack: Conntrack,
    nft: Nftables,
    table: String,
    /// The generation of the ruleset when the tables were last seen in place.
    seen: Option<u32>,
}

impl Kernel {
    /// The kernel in the network namespace of the calling thread. Changes nothing.
    pub fn open(options: Options) -> anyhow::Result<Kernel> {
        const ANSWERS: usize = 64 * 1024; // only asked for single tables
        Ok(Kernel {
            conntrack: Conntrack::open()?,
            nft: Nftables::open(ANSWERS)?,
            table: options.table.clone(),
            engine: Engine::open(options)?,
            seen: None,
        })
    }
}

impl Dataplane for Kernel {
    fn sync(&mut self, plan: &Plan) -> anyhow::Result<Applied> {
        self.seen = None;
        Ok(self.engine.sync(plan)?)
    }

    fn apply(&mut self, change: &PlanChange) -> anyhow::Result<Applied> {
        Ok(self.engine.apply(change)?)
    }

    fn forget_udp(&mut self, plan: &Plan, stale: &StaleUdp) -> anyhow::Result<usize> {
        let keep = by_destination(plan, stale);
        let mut forgotten = 0;
        for (family, is_v4) in [(Family::Ip, true), (Family::Ip6, false)] {
            if keep.keys().any(|(address, _)| address.is_ipv4() == is_v4) {
                forgotten += self.conntrack.delete_udp(family, |flow| is_stale(&keep, flow))?;
            }
        }
        Ok(forgotten)
    }

    /// Other software commits too, and often; only a missing table is a reason to look closer. `nft flush ruleset`, as
    /// the nftables service of distributions does on reload, takes ours with it.
    fn disturbed(&mut self) -> anyhow::Result<bool> {
        let generation = self.nft.generation()?;
        if self.seen == Some(generation) {
            return Ok(false);
        }
        for family in [Family::Ip, Family::Ip6] {
            if self.nft.table(family, &self.table)?.is_none() {
                return Ok(true);
            }
        }
        self.seen = Some(generation);
        Ok(false)
    }
}

/// To which backends flows may go on, by what they are sent to.
type Keep<'a> = HashMap<(IpAddr, u16), &'a BTreeSet<Backend>>;

/// A node port counts on the node's own addresses only: the same port of another host is none of our business.
fn by_destination<'a>(plan: &Plan, stale: &'a StaleUdp) -> Keep<'a> {
    let mut keep = Keep::new();
    for (frontend, backends) in stale {
        match *frontend {
            Frontend::Address { address, port, .. } => {
                keep.insert((address, port), backends);
            }
            Frontend::NodePort { port, .. } => {
                let of_family =
                    plan.node.node_addresses.iter().filter(|a| model::Family::of(**a) == frontend.family());
                keep.extend(of_family.map(|a| ((*a, port), &**backends)));
            }
        }
    }
    keep
}

fn is_stale(keep: &Keep<'_>, flow: &Flow) -> bool {
    // Where the flow really went is where its answers come from.
    let backend = Backend { address: flow.reply.source, port: flow.reply.source_port };
    keep.get(&(flow.original.destination, flow.original.destination_port))
        .is_some_and(|k| !k.contains(&backend))
}
