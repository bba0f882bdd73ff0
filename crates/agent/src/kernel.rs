//! The kernel as a dataplane: the nftables engine, and the connection table beside it.

use portolan_dataplane::{Applied, Engine, Options};
use portolan_plan::model::{Plan, PlanChange};
use portolan_plan::planner::StaleUdp;
use portolan_sys::nft::{Family, Nftables};

use crate::dataplane::Dataplane;

/// The kernel, in one network namespace.
pub struct Kernel {
    engine: Engine,
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
        Ok(portolan_dataplane::forget_udp(stale, &plan.node.node_addresses)?)
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
