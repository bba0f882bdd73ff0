//! A dataplane that only compares: what the plan says with what kube-proxy has put into the kernel. Nothing is written.

use std::collections::BTreeMap;
use std::time::SystemTime;

use portolan_dataplane::{Applied, Forget};
use portolan_plan::model::{Frontend, Plan, PlanChange};
use portolan_plan::planner::StaleUdp;
use portolan_sys::nft::Nftables;
use tokio::sync::watch;

use super::compare::{Difference, compare};
use super::read::{self, Mode};
use crate::dataplane::{Dataplane, Told};

/// What a look at kube-proxy's tables showed.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// When it was.
    pub at: Option<SystemTime>,
    /// Of which mode its tables are; none if there are none.
    pub mode: Option<Mode>,
    /// How many frontends the plan has.
    pub frontends: usize,
    /// The differences that were the same at the look before: what is only on its way on one side isn't one.
    pub differences: Vec<Difference>,
    /// What the plan has and kube-proxy doesn't, this time.
    pub missing: Vec<Difference>,
    /// Every difference has been seen twice.
    pub settled: bool,
}

/// How many differences are told one by one.
const TOLD: usize = 20;

/// The dataplane.
pub struct Shadow {
    nft: Nftables,
    plan: Plan,
    last: BTreeMap<Frontend, Difference>,
    /// Those told of.
    told: BTreeMap<Frontend, Difference>,
    compared: watch::Sender<Compared>,
}

impl Shadow {
    /// Compares in the network namespace of the calling thread.
    pub fn open(compared: watch::Sender<Compared>) -> anyhow::Result<Shadow> {
        let nft = Nftables::open(64 * 1024)?;
        Ok(Shadow { nft, plan: Plan::default(), last: BTreeMap::new(), told: BTreeMap::new(), compared })
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let mode = read::present(&mut self.nft)?;
        let carried = read::carried(&mut self.nft)?;
        let now: BTreeMap<_, _> = compare(&self.plan, &carried)
            .into_iter()
            .map(|difference| (difference.frontend, difference))
            .collect();
        let steady: BTreeMap<_, _> = now
            .iter()
            .filter(|(frontend, difference)| self.last.get(frontend) == Some(difference))
            .map(|(frontend, difference)| (*frontend, difference.clone()))
            .collect();
        self.tell(&steady, &now);
        let frontends = self.plan.services.values().map(|service| service.frontends.iter().count()).sum();
        self.compared.send_replace(Compared {
            at: Some(SystemTime::now()),
            mode,
            frontends,
            settled: steady.len() == now.len(),
            missing: now.values().filter(|d| d.ours.is_some() && d.theirs.is_none()).cloned().collect(),
            differences: steady.into_values().collect(),
        });
        self.last = now;
        Ok(())
    }

    /// Says what is new and what has gone since the last time.
    fn tell(&mut self, steady: &BTreeMap<Frontend, Difference>, now: &BTreeMap<Frontend, Difference>) {
        let known = self.told.len();
        self.told.retain(|frontend, difference| now.get(frontend) == Some(difference));
        let ended = known - self.told.len();
        if ended > 0 {
            tracing::info!(ended, left = self.told.len(), "differences from kube-proxy have ended");
        }
        let new: Vec<_> = steady.iter().filter(|(frontend, _)| !self.told.contains_key(frontend)).collect();
        for (_, difference) in new.iter().take(TOLD) {
            tracing::warn!("{difference}");
        }
        if new.len() > TOLD {
            tracing::warn!("and {} more differences from kube-proxy", new.len() - TOLD);
        }
        self.told.extend(new.into_iter().map(|(frontend, difference)| (*frontend, difference.clone())));
    }
}

impl Dataplane for Shadow {
    fn sync(&mut self, plan: &Plan) -> anyhow::Result<Applied> {
        self.plan = plan.clone();
        self.look()?;
        Ok(Applied::default())
    }

    fn apply(&mut self, change: &PlanChange) -> anyhow::Result<Applied> {
        self.plan.apply(change);
        Ok(Applied::default())
    }

    fn forget_udp(&mut self, _: &Plan, _: &StaleUdp, _: Forget) -> anyhow::Result<usize> {
        Ok(0)
    }

    fn watch(&mut self, _: Box<dyn Fn(Told) + Send>) -> anyhow::Result<()> {
        Ok(())
    }

    /// Nothing of ours is there to be disturbed: it is the time to compare.
    fn disturbed(&mut self) -> anyhow::Result<Option<String>> {
        self.look()?;
        Ok(None)
    }
}
